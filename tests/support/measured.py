"""Finds measured figures in the words of a page, so that none stands there without a record."""

from __future__ import annotations

import re

UNITS = (
    *("%", "s", "ms", "µs", "seconds?", "minutes?", "hours?", "days?", "kB", "MB", "GB", "times", "fold", "x"),
    *("images", "requests", "kills", "stops", "faults", "passed"),
)
COUNTED = (
    "an?|half an|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|forty|fifty|sixty|ninety"
)
MEASURED = (
    r"(?<![\w.])[\d,]*\d\.\d+(?!\.?\d)",  # a decimal fraction
    rf"(?<![\w.])[\d,.]*\d[ -]?(?:{'|'.join(UNITS)})(?![\w-])",  # a number with a unit, or of what was counted in a run
    r"(?<![\w.])\d{1,3}(?:,\d{3})+(?![\w,])",  # a number with thousands
    rf"\b(?:{COUNTED})(?: and a half)? (?:seconds?|minutes?|hours?|days?|times)\b",
    r"\b(?:once|twice|thrice|half|double) as\b",
)
FENCE = r"```(\w*)\n(.*?)```"  # of a console, what it prints counts
NOT_PROSE = (
    r"<!-- figures: .*?<!-- end of figures -->",  # written by `python -m benchmarks.report`
    r"`[^`\n]+`",
    r"\]\([^)]*\)",  # where a link or a picture leads
    r"^\$ [^\n]*$",  # a command in a console
    r"(?:Python|glibc|NumPy|TensorRT|Triton|torch|Apache)[ -]\d+\.\d+(?:\.\d+)*(?: to \d+\.\d+)?",  # versions
)


def measured(page: str) -> list[str]:
    """What looks like a measured figure in Markdown, outside of what a command writes.

    Found are decimal fractions, numbers with a unit of time, memory or share or a multiple, counts of requests and the
    like, numbers with thousands, and words such as "eight minutes" and "twice as". Whole numbers alone are settings
    more often than figures, and are not found.
    """
    page = re.sub(FENCE, lambda fence: fence[2] if fence[1] == "console" else " ", page, flags=re.DOTALL)
    for pattern in NOT_PROSE:
        page = re.sub(pattern, " ", page, flags=re.DOTALL | re.MULTILINE)
    return [match[0] for pattern in MEASURED for match in re.finditer(pattern, page)]
