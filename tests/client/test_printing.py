"""Standard streams that are closed, full, hung up or of a small alphabet: the work counts, not the words about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from brats_ldm_client._cli import main
from support.fake_triton import Served


class Ends:
    """Standard streams that do not take what is written, as shells, daemons and terminals have them."""

    @staticmethod
    def full() -> IO[str]:
        return open("/dev/full", "w")

    @staticmethod
    def left() -> IO[str]:
        """A pipe whose reader has gone: `| true`."""
        reader, writer = os.pipe()
        os.close(reader)
        return open(writer, "w")

    @staticmethod
    def closed() -> None:
        """What Python has for `>&-`."""

    @staticmethod
    def ascii() -> IO[str]:
        return open(os.devnull, "w", encoding="ascii")


@pytest.mark.parametrize("end", [Ends.full, Ends.left, Ends.closed, Ends.ascii], ids=lambda end: end.__name__)
def test_printing_never_decides_the_exit_status(
    end: Callable[[], IO[str] | None], served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files were written, then came UnicodeEncodeError or a broken pipe, and the exit status was 1."""
    out = ("--out", tmp_path / os.fsdecode(b"sch\xc3\xa4del \xe9"), "--seeds", "1,3,5,7,9")  # the last is no UTF-8
    commands: list[tuple[object, ...]] = [("generate", *out), ("info",), ("ready", "--deep"), ("calibrate", "-n", 2)]
    for stream in ("stdout", "stderr"):
        for words in commands:
            monkeypatch.setattr(sys, stream, end())
            assert main([str(word) for word in (*words, "--url", served.url)]) == 0
        for words in (["--help"], ["generate", "--help"]):
            monkeypatch.setattr(sys, stream, end())
            with pytest.raises(SystemExit, match="0"):
                main(words)
        monkeypatch.setattr(sys, stream, end())
        assert main(["info", "--url", "127.0.0.1:1"]) == 1
        if opened := getattr(sys, stream):
            opened.close()  # as Python does at its end: nothing is left that could fail
        monkeypatch.undo()
    assert len(list((tmp_path / os.fsdecode(b"sch\xc3\xa4del \xe9")).iterdir())) == 7


def test_output_that_a_full_disk_does_not_take_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Ends.full())
    assert main(["info", "--url", served.url]) == 0
    assert capsys.readouterr().err == "brats-ldm: the output cannot be written: No space left on device\n"


def test_a_process_without_standard_streams(served: Served, tmp_path: Path) -> None:
    """As a daemon or a GUI starts it, with -OO. What libraries print must not go to a file that got the number 2."""
    arguments = ["-OO", "-m", "brats_ldm_client", "generate", "-n", "2", "--seed", "1", "--format", "png,nifti,npz"]
    # A shell closes them: Python code between fork and exec may meet a lock of this process's gRPC server, and abort.
    shell = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    command = [*shell, sys.executable, *arguments, "--out", str(tmp_path), "--url", served.url]
    done = subprocess.run(command, timeout=30, check=False)
    assert done.returncode == 0
    assert len(list(tmp_path.iterdir())) == 9
