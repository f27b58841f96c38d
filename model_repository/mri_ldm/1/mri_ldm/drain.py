"""Draining: a command asks the models of a running server to take no more requests, and waits until they have finished.

Both sides are here: `Drain` for a model, `main` for the command. They use files in a folder, which the variable
$BRATS_LDM_DRAIN_FOLDER names. Only the server's user can read it, so no request can reach it. Without the variable a
server cannot be drained. Standard library only.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "BRATS_LDM_DRAIN_FOLDER"
ASKED, OVER = "drain", "over"
SERVING = ".serving"
POLL_SECONDS = 0.05


class Drain:
    """The side of one model instance: reports that it serves, sees the request to drain, reports the end."""

    def __init__(self, instance: str) -> None:
        folder = os.environ.get(VARIABLE)
        self._asked = Path(folder, ASKED) if folder else None
        self._over = Path(folder, OVER) if folder else None
        # The process id, so that an instance that died serving is not waited for.
        self._serving = Path(folder, f"{instance}.{os.getpid()}{SERVING}") if folder else None
        self.poll_seconds = POLL_SECONDS if folder else None
        self._say_serving()

    def asked(self) -> bool:
        """Whether to refuse new requests."""
        asked = self._asked is not None and self._asked.exists()
        if not asked:
            self._say_serving()
        return asked

    def _say_serving(self) -> None:
        """Report that this instance serves; again if the folder was cleaned. Only reported instances are waited for."""
        if self._serving and not self._serving.exists():
            with contextlib.suppress(OSError):  # a full disk must not end the sampling loop
                self._serving.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._serving.touch()

    def time_is_over(self) -> bool:
        """Whether to refuse running requests, too."""
        return self._over is not None and self._over.exists()

    def done(self) -> None:
        """Report that no request is left."""
        if self._serving:
            self._serving.unlink(missing_ok=True)


def drain(folder: Path, grace: float, refuse: bool = False) -> list[str]:
    """Let the models in `folder` finish; returns those that have not within `grace` seconds. Safe to call again.

    refuse: running requests are refused too, at their next step.
    """
    if refuse:
        (folder / OVER).touch()
    (folder / ASKED).touch()
    until = time.monotonic() + grace
    while (busy := _serving(folder)) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return busy


def _serving(folder: Path) -> list[str]:
    """Instances that are alive and have not drained."""
    parts = [path.name.removesuffix(SERVING).rpartition(".") for path in sorted(folder.glob(f"*{SERVING}"))]
    return [instance for instance, _, process in parts if _alive(process)]


def _alive(process: str) -> bool:
    try:
        state = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def main(argv: Sequence[str] | None = None) -> int:
    """0: drained, 1: some instance has not finished in time or there is no folder."""
    parser = argparse.ArgumentParser(
        description="Let the running requests of a server finish, and refuse new ones. The server stays up, so that "
        "it can be stopped next. The exit status is 1 if requests are left after the grace period."
    )
    folder = os.environ.get(VARIABLE)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=folder,
        help=f"drain folder of the server (default: ${VARIABLE}, {folder or 'not set'})",
    )
    parser.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds for running requests to finish (%(default)s)"
    )
    parser.add_argument(
        "--refuse", action="store_true", help="also refuse running requests; clients get a hint to try again"
    )
    options = parser.parse_args(argv)
    if options.folder is None or not options.folder.is_dir():
        print(f"error: no folder {options.folder}: pass the {VARIABLE} of the server", file=sys.stderr)
        return 1
    if busy := drain(options.folder, options.grace, options.refuse):
        print(f"error: not drained within {options.grace:g} s: {', '.join(busy)}", file=sys.stderr)
        return 1
    print("drained")
    return 0
