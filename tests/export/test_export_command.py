"""The command line of export: its help is instant, and a wrong command gets one clear line."""

import pytest

from export.__main__ import main
from support.common import run_python

COMMANDS = ("repository", "check", "parity", "gate", "from-monai", "to-monai")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n    {command}" in shown for command in COMMANDS)


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = f"""import sys; from export.__main__ import main
for command in {COMMANDS}:
    try: main([command, "--help"])
    except SystemExit as end: assert end.code == 0
print({{"numpy", "torch", "tritonclient", "monai", "onnx"}} & set(sys.modules))"""
    shown = run_python("-c", code).stdout
    for command in COMMANDS:
        assert f"usage: python -m export {command} " in shown
    assert "--autoencoder FILE" in shown
    assert shown.endswith("set()\n")


@pytest.mark.parametrize("words", [["runs/diffusion/snapshot", "--onnx", "fp16"], ["--autoencoder", "a file.pt"]])
def test_a_path_without_a_command_is_met_with_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The form of the command before there were subcommands."""
    with pytest.raises(SystemExit, match="2"):
        main(words)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"use python -m export repository {words[0]} " in error


def test_what_no_gpu_has_run_is_called_experimental(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["repository", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("Experimental: not yet run on a GPU") == 2  # --tensorrt and --tensorrt-rtx
    assert shown.count("Experimental for CUDA: not yet run on a GPU") == 1  # --compile
