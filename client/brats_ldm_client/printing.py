"""Printing never decides the exit status: standard streams may be closed, full, hung up, or lack characters.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def forgiving_streams(program: str = "brats-ldm") -> Iterator[None]:
    """In the block, writing to sys.stdout and sys.stderr never fails; what cannot be written is dropped.

    There is no message if the reader has left (`| head -1`). If a full disk refuses the output, a line on stderr tells
    it, after the name of the program.
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
            print(f"{program}: the output cannot be written: {out.trouble.strerror}", file=err)
        err.flush()
        sys.stdout, sys.stderr = kept


def _open_descriptors() -> None:
    """Open closed descriptors. Otherwise the next file or socket gets the number, and libraries print into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest free number. Child processes need it, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class _Forgiving(io.TextIOBase):
    """A text stream that writes each line at once and drops what `stream` refuses. None, a closed stream: drops all."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.trouble: Exception | None = None

    def write(self, text: str) -> int:
        self._try("write", self._encodable(text))
        if "\n" in text:
            self.flush()
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
        """The text, with escapes for characters that the terminal lacks and for bytes of paths that are not text."""
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def _try(self, method: str, *args: Any) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*args)
        except (OSError, ValueError) as error:  # ValueError: closed by other code
            self.trouble = error
            self._hang_up()

    def _hang_up(self) -> None:
        """Send the rest to /dev/null. Python flushes its buffers at the end, and would fail then."""
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, stream.fileno())  # type: ignore[union-attr]
            os.close(sink)
