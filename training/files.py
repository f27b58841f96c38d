"""Files and folders that are whole or absent, also after a power cut, with errors that say what is kept."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brats_ldm_client import files

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NotWritten(OSError):
    """A file could not be written, for example on a full disk. The message names it, the reason, and what is kept."""


def not_written(path: Path, reason: object, kept: str = "") -> NotWritten:
    """The error about `path`. kept: the end of its sentence."""
    return NotWritten(f"{path} could not be written: {reason}{kept}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, in a folder that is made if needed; it takes the name `path` after the block.

    Raises:
        NotWritten: the folder or the file could not be written. What was at `path` is kept, the temporary file is not.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole_file(path, sync=True) as temporary:
            mode = temporary.stat().st_mode & 0o777
            yield temporary
            with suppress(OSError):  # safetensors makes a new file in its place, which only the owner can read
                temporary.chmod(mode)
    except BaseException as error:
        if isinstance(error, NotWritten) or (reason := _reason(error)) is None:
            raise
        before = "; the file before it is kept" if path.is_file() else ""
        raise not_written(path, reason, before) from error


def remove_temporary_files(folder: Path) -> None:
    """Delete what killed processes have left in a folder that only this process writes to."""
    for leftover in folder.glob(files.TEMPORARY):
        leftover.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its place when the block ends well.

    An interruption leaves either the old folder or the new one, complete. If it comes between the two renames, the next
    `whole_folder` or `finish_interrupted` does the second one.

    Raises:
        NotWritten: something in the folder could not be written. What was at `folder` is kept, the new one is not.
    """
    folder = folder.resolve()
    new, old = _beside(folder)
    finish_interrupted(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in new.rglob("*"):
            files.to_disk(path)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if not isinstance(error, (NotWritten, shutil.Error)):
            raise
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error  # copytree has a list of errors
        kept = f"; {folder} is as it was" if folder.is_dir() else ""
        raise NotWritten(f"{reason}{kept}") from error
    if folder.exists():
        folder.rename(old)
    with suppress(FileNotFoundError):  # a reader may have taken this for an interruption and renamed it
        new.rename(folder)
    files.to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def finish_interrupted(folder: Path) -> None:
    """Do the second rename of a `whole_folder` that was interrupted between the two. The new folder is complete."""
    folder = folder.resolve()
    new, old = _beside(folder)
    if folder.exists() or not old.is_dir():
        return
    with suppress(FileNotFoundError):  # its writer is still running and was faster
        (new if new.is_dir() else old).rename(folder)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Names of the new and the old folder. `folder` is resolved: "." has no name, and a link would be renamed."""
    # Hidden, because users may have their own folder OUT.new.
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises NotWritten."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_npz(path: Path, **arrays: NDArray[Any] | str) -> None:
    """Write arrays as a compressed npz, whole or not at all. Raises NotWritten."""
    import numpy as np

    content = io.BytesIO()  # on a full disk NumPy would leave its archive open, with a traceback at the end
    np.savez_compressed(content, **arrays)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


@contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """A name of a file or folder for libraries that accept only UTF-8, such as safetensors and TensorBoard."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield str(path) if is_utf8(path) else f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def is_utf8(path: Path) -> bool:
    """Whether a path is valid UTF-8. Linux allows any bytes, which Python represents by surrogates."""
    return str(path).encode("utf-8", "ignore").decode() == str(path)


def duplicate(path: Path, other: Path) -> None:
    """Give the file `path` the second name `other`; on a file system without links, copy it. Raises NotWritten."""
    with whole_file(other) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _reason(error: BaseException | None) -> str | None:
    """The system's reason for a failed write; None for other errors.

    safetensors gives the error number only in its text, and torch raises its own error while it handles the system's.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if number := re.search(r"os error (\d+)", str(error)):
        return os.strerror(int(number[1]))
    return _reason(error.__context__) if isinstance(error, RuntimeError) else None
