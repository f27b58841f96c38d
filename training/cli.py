"""What all commands share: standard streams, errors in one line, the exit status."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from training.files import NotWritten

OUT_OF_MEMORY = (
    "In training lower slices_per_volume or volumes_per_batch, with a higher accumulate for as large an update, or set "
    "precision to bf16; elsewhere give a smaller batch."
)
INTERRUPTED = "interrupted; a training run continues from its last saved state with the same command"


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit status. Problems with printing never change the status."""
    settle_streams()
    try:
        status = main()
    except NotWritten as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)


def settle_streams() -> None:
    """Replace stdout and stderr by streams that never fail and drop what cannot be written.

    They may be closed (2>&-, daemons), a pipe that is closed later (| head -1), a full disk, or a terminal that lacks
    some characters of a path.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened gets this number, and libraries print their errors into that file.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        buffer = io.BufferedWriter(_Lossy(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True))


class _Lossy(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def exit_status(work: Callable[[], object], interrupted: str = INTERRUPTED) -> int:
    """Do the work of a command; returns the exit status. Errors that a user can correct are printed in one line.

    interrupted: the message after Ctrl-C.
    """
    try:
        work()
    except (ValueError, FloatingPointError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which not every command imports
            raise
        print(f"error: {str(error).splitlines()[0]} {OUT_OF_MEMORY}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0
