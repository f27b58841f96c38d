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
    """Run a command as this process, and end the process with its exit status. Printing never decides the status."""
    settle_streams()
    try:
        status = main()
    except NotWritten as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)


def settle_streams() -> None:
    """Replace stdout and stderr by streams that take everything, and drop what cannot be written.

    They may be closed (2>&-, daemons), a pipe that is closed later (| head -1), a full disk, or a terminal that knows
    fewer letters than a path has.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened gets this number, and with it what libraries print to standard error.
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
    """Do the work of a command and turn what a user can mend into one line; returns the exit status.

    interrupted: what to say after Ctrl-C.
    """
    try:
        work()
    except (ValueError, FloatingPointError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which not every command imports
            raise
        print(f"error: {str(error).splitlines()[0]} {OUT_OF_MEMORY}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0
