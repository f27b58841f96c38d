"""What all commands share: standard streams, errors in one line, the exit status."""

import sys
from collections.abc import Callable
from typing import NoReturn

from brats_ldm_client.printing import forgiving_streams
from training.files import NotWritten

OUT_OF_MEMORY = (
    "In training lower slices_per_volume or volumes_per_batch, with a higher accumulate for as large an update, or set "
    "precision to bf16; elsewhere give a smaller batch."
)
INTERRUPTED = "interrupted; a training run continues from its last saved state with the same command"


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit status. Problems with printing never change the status."""
    with forgiving_streams("warning"):
        try:
            status = main()
        except NotWritten as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    sys.exit(status)


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
