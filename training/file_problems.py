"""Files that users have and that cannot be read: one line on what is wrong with each, all of them in one message."""

import gzip
from collections.abc import Sequence
from pathlib import Path

GZIP = b"\x1f\x8b"
# Other files that are often in the place of the right one: how they begin, and what they are.
FOREIGN = (
    (b"\x00\x05\x16\x07", "a companion file of macOS, not the file itself: leave it out"),
    (b"version https://git-lfs", "a pointer of git-lfs, not the file: run `git lfs pull`"),
    (b"<", "a web page, not the file: download it again"),
)


def describe_file(path: Path, error: BaseException, verdict: str = "cannot be read") -> str:
    """One line on a file that a reader refused with `error`: what its first bytes show, or else the error's text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{path} {_first_bytes_show(path) or f'{verdict}: {text}'}"


def list_problems(kind: str, problems: Sequence[str], advice: str = "") -> str:
    """The only problem, or all of them below a line that counts them; then `advice`. `kind` is a plural."""
    if len(problems) == 1:
        return problems[0] + f": {advice}" * bool(advice)
    return "\n  ".join([f"{len(problems)} {kind} cannot be used:", *problems]) + f"\n{advice}" * bool(advice)


def _first_bytes_show(path: Path) -> str | None:
    """The end of a sentence that begins with the path; None where the first bytes fit the name."""
    try:
        start = _start(path)
    except FileNotFoundError:
        return "does not exist"
    except IsADirectoryError:
        return "is a folder, not a file"
    except (OSError, ValueError):  # no permission, or no path at all
        return None
    if not start:
        return "is empty, 0 bytes: copy or download it again"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, what in FOREIGN:
        if text.startswith(beginning):
            return f"is {what}"
    if path.suffix != ".gz":
        return "is compressed by gzip: give it a name that ends in .gz" if start.startswith(GZIP) else None
    if not start.startswith(GZIP):
        return "is not compressed by gzip, though its name ends in .gz: rename it, or download it again"
    return "is compressed twice: unpack it once" if _unpacked_start(path).startswith(GZIP) else None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _unpacked_start(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(2)
    except Exception:  # damaged in any way; the reader's own message is shown then
        return b""
