"""What the processes of a server hold in memory."""

from __future__ import annotations

import re
from pathlib import Path


def anonymous_bytes(process: int) -> int:
    """Bytes in memory that belong to the process alone: no file, and none of what /dev/shm holds."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc", str(process), "status").read_text())
    assert match
    return int(match[1]) * 1024
