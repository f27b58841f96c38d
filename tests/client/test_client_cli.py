"""The command as users run it: a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import grpc
import pytest

from brats_ldm_client import PRESETS
from brats_ldm_client._cli import main
from brats_ldm_client._formats import file_names, files_per_image, stem
from support.common import heeding_signals, processor_seconds
from support.fake_triton import DIGEST, Served


def command_line(*args: object) -> list[str]:
    return [sys.executable, "-m", "brats_ldm_client", *map(str, args)]


def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_line(*args), capture_output=True, text=True, timeout=30, **options)


class Here:
    """The command inside this process: most tests need no process of their own, which takes half a second."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *args: object) -> subprocess.CompletedProcess[str]:
        status = main([str(arg) for arg in args])
        out, err = self._capsys.readouterr()
        return subprocess.CompletedProcess(args, status, out, err)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(capsys)


def test_generate(served: Served, tmp_path: Path) -> None:
    out = tmp_path / "slices"
    done = run("generate", "-n", 3, "--seed", 5, "--format", "png,nifti", "--out", out, "--url", served.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(out) in done.stdout
    assert "seeds 5 to 7" in done.stdout
    names = {path.name for path in out.iterdir()}
    images = {f"slice_seed00000000{seed}.{end}" for seed in (5, 6, 7) for end in ("png", "nii.gz", "json")}
    assert names == images | {"contact_sheet.png", "provenance.json"}


def test_generate_these_seeds(here: Here, served: Served, tmp_path: Path) -> None:
    arguments = ("--seeds", "1,5,9", "--format", "npz", "--format", "png", "--no-contact-sheet")
    done = here("generate", *arguments, "--steps", 20, "--sampler", "ddpm", "--out", tmp_path, "--url", served.url)
    assert done.returncode == 0, done.stderr
    assert served.triton.seeds() == [[1, 5, 9]]
    assert {path.name for path in tmp_path.iterdir()} >= {"slices.npz", "slice_seed000000009.png"}
    records = json.loads((tmp_path / "provenance.json").read_text())["images"]
    assert {(record["sampler"], record["steps"]) for record in records} == {("ddpm", 20)}


def test_generate_by_preset(here: Here, served: Served, tmp_path: Path) -> None:
    done = here("generate", "--preset", "draft", "--out", tmp_path, "--url", served.url)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "provenance.json").read_text())["images"]
    assert asdict(PRESETS["draft"]).items() <= record.items()


def test_images_that_are_there_are_kept_if_they_were_made_in_the_same_way(
    here: Here, served: Served, tmp_path: Path
) -> None:
    """The records of an older client name no decoder, and those of an older server no grid."""

    def asked(*more: object) -> list[int]:
        served.triton.received.clear()
        assert here("generate", "--seeds", "1,2", *more, "--out", tmp_path, "--url", served.url).returncode == 0
        images = [tensors for tensors in served.triton.received if tensors["steps"][0, 0] == 50]
        return [seed for tensors in images for seed in tensors["seed"][:, 0].tolist()]

    assert asked() == [1, 2]
    path = tmp_path / "provenance.json"
    records = json.loads(path.read_text())
    for image in records["images"]:
        assert (image.pop("timestep_grid"), image.pop("decoder")) == ("leading", "full")
    path.write_text(json.dumps(records))
    assert asked() == asked("--timestep-grid", "leading", "--decoder", "full") == []
    assert asked("--decoder", "tiny") == [1, 2]
    assert asked("--decoder", "tiny") == []
    assert asked("--timestep-grid", "karras", "--decoder", "tiny") == [1, 2]


def test_connection_refused_is_one_line_at_once(here: Here, tmp_path: Path) -> None:
    generate = ("generate", "--out", tmp_path / "new")
    for command, arguments in (
        (run, generate),
        (here, generate),
        (here, ("info",)),
        (here, ("ready", "--timeout", 0.3)),
    ):
        began = time.monotonic()
        done = command(*arguments, "--url", "127.0.0.1:1")
        assert time.monotonic() - began < 15, "lost connections are tried again for a minute"
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
        assert "no Triton server answers at 127.0.0.1:1" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_refused_request_is_one_line(here: Here, served: Served, tmp_path: Path) -> None:
    def refuse(seeds: list[int], context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "steps=0: must be 1 to 1000")

    served.triton.behave = refuse
    done = here("generate", "--steps", 0, "--out", tmp_path, "--url", served.url)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "steps=0: must be 1 to 1000" in done.stderr


def test_what_is_done_before_an_error_is_kept(here: Here, served: Served, tmp_path: Path) -> None:
    def fail_late(seeds: list[int], context: grpc.ServicerContext) -> None:
        if seeds[0] >= 272:
            context.abort(grpc.StatusCode.INTERNAL, "unet gave up")

    served.triton.behave = fail_late
    arguments = ("-n", 300, "--seed", 0, "--rows-per-request", 16, "--concurrency", 1, "--no-contact-sheet")
    done = here("generate", *arguments, "--out", tmp_path, "--url", served.url)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "unet gave up" in done.stderr
    assert "272 of 300 images are in" in done.stderr
    assert "the same command makes the rest" in done.stderr
    assert len(json.loads((tmp_path / "provenance.json").read_text())["images"]) == 272


def test_a_second_run_makes_what_is_missing(here: Here, served: Served, tmp_path: Path) -> None:
    def again(*more: object) -> tuple[set[int], str]:
        """The seeds that are asked for, but for the probe's, and what is said."""
        served.triton.received.clear()
        done = here(
            "generate", "-n", 5, "--seed", 1, "--format", "png,nifti", "--out", tmp_path, "--url", served.url, *more
        )
        assert done.returncode == 0, done.stderr
        assert len(json.loads((tmp_path / "provenance.json").read_text())["images"]) == 15
        return {seed for seeds in served.triton.seeds() for seed in seeds} - {0}, done.stdout

    assert again()[0] == {1, 2, 3, 4, 5}
    sheet = (tmp_path / "contact_sheet.png").read_bytes()
    asked, said = again()
    assert asked == set()
    assert "5 synthetic slices (seeds 1 to 5), 5 of them there before," in said
    (tmp_path / "slice_seed000000002.nii.gz").unlink()
    (tmp_path / "slice_seed000000004.png").write_bytes(b"half")
    assert again()[0] == {2, 4}
    assert (tmp_path / "contact_sheet.png").read_bytes() == sheet
    for change in (("--steps", 20), ("--eta", 0.25), ("--sampler", "ddpm")):
        assert again(*change)[0] == {1, 2, 3, 4, 5}
        served.triton.more = {"eta": 1.0}  # what the server says of ddpm
    again("--sampler", "ddpm")
    assert again("--sampler", "ddpm")[0] == set()
    served.triton.digest = "sha256:other weights"
    assert again("--sampler", "ddpm")[0] == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("format", files_per_image)
def test_a_second_run_makes_what_is_missing_in_every_format(
    format: str, here: Here, served: Served, tmp_path: Path
) -> None:
    def again() -> set[int]:
        served.triton.received.clear()
        done = here("generate", "-n", 3, "--seed", 1, "--format", format, "--out", tmp_path, "--url", served.url)
        assert done.returncode == 0, done.stderr
        return {seed for seeds in served.triton.seeds() for seed in seeds} - {0}

    assert again() == {1, 2, 3}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert again() == set()
    for name in file_names(format, stem(2)):
        (tmp_path / name).unlink()
        assert again() == {2}, name
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".json"} == {
            name: content for name, content in before.items() if not name.endswith(".json")
        }


def test_dicom_without_pydicom_is_one_line_before_any_work(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    done = here("generate", "--format", "png,dicom", "--out", tmp_path / "new", "--url", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "brats-ldm: pydicom is not installed: install it with pip install pydicom\n"
    assert not (tmp_path / "new").exists()


def test_a_warning_of_the_server_is_said_once(here: Here, served: Served, tmp_path: Path) -> None:
    served.triton.more = {"warning": "300 steps leave out something"}
    done = here("generate", "-n", 300, "--steps", 300, "--out", tmp_path, "--url", served.url, "--no-contact-sheet")
    assert (done.returncode, done.stderr) == (0, "brats-ldm: warning: 300 steps leave out something\n")


def test_ctrl_c(served: Served, tmp_path: Path) -> None:
    served.triton.behave = served.triton.stall
    arguments = command_line("generate", "-n", 16, "--out", tmp_path, "--url", served.url)
    process = subprocess.Popen(heeding_signals(arguments), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 10
    while len(served.triton.received) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert stderr == "brats-ldm: interrupted\n"
    served.triton.wait_cancelled(2)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("paint",),
        ("generate", "-n", "0"),
        ("generate", "-n", "x"),
        ("generate", "-n", "2", "--seeds", "1"),
        ("generate", "--seed", "2", "--seeds", "1"),
        ("generate", "--seeds", "1;2"),
        ("generate", "--seeds", ","),
        ("generate", "--format", "jpeg"),
        ("generate", "--watch", "ascii"),
        ("generate", "--preset", "quick"),
        ("generate", "--preset", "fast", "--steps", "20"),
        ("generate", "--preset", "standard", "--eta", "1"),
        ("generate", "--preset", "fast", "--timestep-grid", "karras"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: brats-ldm" in capsys.readouterr().err


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run("generate", "--out", tmp_path / "file", "--url", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr == f"brats-ldm: {tmp_path}/file is a file: choose a folder\n"


def test_info_and_ready(here: Here, served: Served) -> None:
    done = here("info", "--url", served.url)
    assert done.returncode == 0, done.stderr
    for words in ("triton 2.51.0", DIGEST, "mri_ldm_stream: ready", "seed", "[1, 240, 240]", "optional"):
        assert words in done.stdout
    assert not re.search(r"\w(STRING|FP32|INT)", done.stdout), "a name runs into its type"
    assert "queue\n  mri_ldm: 3 rows in flight and 2 waiting, at most 320; 90 steps left, about 1.2 s\n" in done.stdout
    served.triton.omit = {"queue"}  # as an older server
    done = here("info", "--url", served.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "queue" not in done.stdout
    done = here("ready", "--deep", "--url", served.url)
    assert done.returncode == 0
    checksum = re.fullmatch(rf"ready: {served.url}, image (sha256:[0-9a-f]{{64}})\n", done.stdout)
    assert checksum, done.stdout
    assert here("ready", "--deep", "--checksum", checksum[1], "--url", served.url).returncode == 0
    wrong = here("ready", "--deep", "--checksum", "sha256:0", "--timeout", "1", "--url", served.url)
    assert wrong.returncode == 1
    assert checksum[1] in wrong.stderr


def test_help_is_fast_complete_and_light() -> None:
    before = processor_seconds()
    done = run("generate", "--help")
    took = processor_seconds() - before
    options = "-n --seed --seeds --preset --steps --sampler --eta --timestep-grid --decoder"
    options += " --out --format --watch --url --tls-ca --concurrency"
    assert all(option in done.stdout for option in options.split())
    assert took < 1, "0.1 s is usual"
    program = (
        "import sys; from brats_ldm_client._cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'tritonclient', 'grpc', 'PIL', 'nibabel', 'tqdm', 'torch', 'blessed'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
    assert "exit status" in done.stdout


def test_the_client_does_not_import_torch() -> None:
    program = (
        "import sys, brats_ldm_client as b; [getattr(b, name) for name in b.__all__]\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0


def test_version() -> None:
    assert run("--version").stdout.startswith("brats-ldm ")
