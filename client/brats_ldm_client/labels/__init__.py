"""Label maps: where the oedema and the tumour of an image are. Reads them, and draws new ones from training labels.

A map is uint8 [240, 240] with the axes of an image and the labels of Task01_BrainTumour: 0 background, 1 oedema,
2 non-enhancing tumour, 3 enhancing tumour. A map of zeros stands for a slice without a lesion.
"""

from .files import read_labels
from .library import LabelLibrary, make_library, read_library
from .maps import NAMES
from .sampler import LabelSampler
from .source import LabelSource

__all__ = ["NAMES", "LabelLibrary", "LabelSampler", "LabelSource", "make_library", "read_labels", "read_library"]
