"""A failure to print never changes the exit status: streams may be closed, full, or lack some letters."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def forgiving_streams() -> Iterator[None]:
    """In the block, whatever is written to sys.stdout and sys.stderr is written as far as that is possible.

    Nothing is said where the reader has left (`| head -1`). Where a full disk does not take the output, stderr says so.
    """
    _open_descriptors()
    kept = sys.stdout, sys.stderr
    out, err = _Forgiving(sys.stdout), _Forgiving(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        if isinstance(out.trouble, OSError) and out.trouble.errno != errno.EPIPE:
            print(f"brats-ldm: the output cannot be written: {out.trouble.strerror}", file=err)
        err.flush()
        sys.stdout, sys.stderr = kept


def _open_descriptors() -> None:
    """A closed descriptor 0, 1 or 2 goes to the next file or socket, and with it what libraries print there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free


class _Forgiving(io.TextIOBase):
    """A text stream that drops what `stream` does not take. None: all of it, as Python has it for a closed one."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.trouble: Exception | None = None

    def write(self, text: str) -> int:
        self._try("write", self._encodable(text))
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _encodable(self, text: str) -> str:
        """Letters that the terminal lacks, and bytes of a file name that are no letters, as escapes."""
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def _try(self, method: str, *args: Any) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*args)
        except (OSError, ValueError) as error:  # ValueError: closed by somebody else
            self.trouble = error
            self._hang_up()

    def _hang_up(self) -> None:
        """Python flushes what is left when it ends, and complains; so that goes where everything is taken."""
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, stream.fileno())  # type: ignore[union-attr]
            os.close(sink)
