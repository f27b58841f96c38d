"""The processor of this machine, as the kernel describes it."""

import platform
import re
from pathlib import Path

# Instructions that a compiler may choose for arithmetic and bits; the other words of the kernel's list are none.
INSTRUCTIONS = re.compile(
    "s?sse|avx|fma|f16c|bmi|abm|popcnt|movbe|adx|v?aes|v?pclmul|gfni|sha|amx|xop|asimd|sve|bf16|i8mm|atomics|fp|crc32"
)


def instructions() -> set[str]:
    """The instruction sets of this processor; a compiled package may use any of them."""
    words = _fields().get("flags") or _fields().get("Features") or ""
    return {word for word in words.split() if INSTRUCTIONS.match(word)}


def processor_name() -> str:
    """The model, or the architecture if the kernel names no model."""
    return _fields().get("model name") or platform.machine()


def _fields() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor."""
    first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
