"""A slice as a PNG file that says what it is. Standard library and NumPy only.

Pixels and text are those of the client's PNG of the same image (`brats_ldm_client.pictures`); tests hold that.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .job_queue import Array

# Hyphens, not dashes: this is the client's notice, whose font has no others.
NOTICE = "SYNTHETIC - research use only - not for diagnosis"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
RECORDED = ("synthetic", "seed", "sampler", "steps", "eta", "timestep_grid", "decoder", "model_name", "model_digest")
"""The image depends on these. Versions would make the files of two servers differ."""
DEFAULTS = {"timestep_grid": "leading", "decoder": "full"}
"""Left out of the text: a file without them says the same as one from before there were others."""
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""

SCALING = "value = level / 255, clipped to [0, 1]"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTH, GREY = 8, 0
UP = 2
"""The filter of all rows: each is stored as its difference from the row above."""


def png(image: Array, record: Mapping[str, Any]) -> bytes:
    """The slice [x to Right, y to Anterior] as a PNG file, with its provenance in the file's text."""
    pixels = to_display(image)
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, DEPTH, GREY, 0, 0, 0)
    chunks = [(b"IHDR", header), *_texts(record), (b"IDAT", _compressed(pixels)), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def to_display(image: Array) -> NDArray[np.uint8]:
    """Grey levels, 0 to 255 for the window [0, 1], with anterior up and the patient's right on the left."""
    levels = np.fmin(np.fmax(image, 0.0), 1.0) * 255.0  # NaN becomes 0
    return np.ascontiguousarray(np.rint(levels).astype(np.uint8).T[::-1, ::-1])


def _compressed(pixels: NDArray[np.uint8]) -> bytes:
    """Looks for runs of one byte alone: in a tenth of the usual time, and the file is little larger."""
    height, width = pixels.shape
    rows = np.full((height, 1 + width), UP, np.uint8)
    rows[:, 1:] = np.diff(pixels, axis=0, prepend=np.uint8(0))  # modulo 256, as PNG has it
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    return compressor.compress(rows.tobytes()) + compressor.flush()


def _texts(record: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Chunks for notice, source type, record and scaling; the source type again where image tools look for it."""
    recorded = {key: record[key] for key in RECORDED if key in record and record[key] != DEFAULTS.get(key)}
    for key, value in {"Description": NOTICE, "DigitalSourceType": SOURCE_TYPE, **recorded, "Scaling": SCALING}.items():
        yield _text(key, value if isinstance(value, str) else json.dumps(value))
    yield _unicode("XML:com.adobe.xmp", XMP)


def _text(key: str, value: str) -> tuple[bytes, bytes]:
    try:
        return b"tEXt", key.encode() + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        return _unicode(key, value)


def _unicode(key: str, value: str) -> tuple[bytes, bytes]:
    return b"iTXt", key.encode() + bytes(5) + value.encode()  # not compressed, no language, no translated key


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
