"""Compare synthetic slices with real ones: distances between distributions, diversity, and a search for copies.

`python -m training.evaluation` runs all of it; `python -m training.evaluation.slices` writes the real slices.
`python -m training.evaluation.labels` measures whether slices follow the label maps that they were made from.
"""

import os
from pathlib import Path

# This project's own encoder: the demo autoencoder, trained on phantoms. Relative, so that records name no machine.
ENCODER = Path(os.path.relpath(Path(__file__).parents[1] / "encoder"))
# The least number of slices in a folder. Its halves are compared too, and need more than NEAREST_K + 1 slices.
FEWEST = 20
