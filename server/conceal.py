"""Hides secrets from `ps`, which shows the command line of every process to everybody on the machine.

tritonserver takes the secret of a restricted API on its command line alone: it reads neither a file nor an environment
variable for it (`--http-restricted-api` and `--grpc-restricted-protocol` of 24.10). So the only way is to
overwrite the secret once tritonserver has read it. The kernel lets a parent write to its child's memory, unless
kernel.yama.ptrace_scope is above 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def conceal(pid: int, secrets: Sequence[str]) -> bool:
    """Overwrite secrets on the command line of a child that has read it; whether none is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            line = memory.read(end - start)
            for secret in secrets:
                for match in re.finditer(re.escape(secret.encode()), line):
                    memory.seek(start + match.start())
                    memory.write(b"*" * len(secret))
        shown = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return not any(secret.encode() in shown for secret in secrets)
