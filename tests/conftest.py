"""What the tests share: the serving code as an importable package, a small exported repository, a real server."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tritonclient.grpc as triton
from filelock import FileLock
from playwright.sync_api import Browser

from benchmarks.serving.analyzer import fetch
from brats_ldm_client import Client
from server.process import TritonServer
from support.browser import Visitor, chromium
from support.common import PHANTOM_SEED, ROOT, SMALL, dataset, run_python

# Triton's own client, which many tests use, takes a proxy to this machine, too.
os.environ["no_proxy"] = ",".join(filter(None, ("127.0.0.1", "localhost", os.environ.get("no_proxy"))))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, made by whichever of the processes that share the tests needs it first. Read only."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of the folders of all processes
    with FileLock(root / f"{name}.lock"):
        if not (root / name).exists():
            make(root / f"{name}.new")
            (root / f"{name}.new").rename(root / name)
    return root / name


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """A folder with Task01_BrainTumour: two phantom volumes. Read only."""
    from training.phantom import write_dataset

    return made_once(tmp_path_factory, "phantom", lambda folder: write_dataset(folder, volumes=2, seed=PHANTOM_SEED))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A folder with Task01_BrainTumour: six volumes of blocks, 32 x 32 x 4, one of them held out. Read only."""
    return made_once(tmp_path_factory, "small_data", dataset)


@pytest.fixture(scope="session")
def small_snapshot():
    """A whole snapshot of tiny networks with the demo's tensors; random weights, none of them zero.

    Its noise schedule is a mild one: random weights do not denoise, and with the usual schedule latents would grow
    seventyfold on the way, and with them what float32 can hold of an absolute tolerance.
    """
    from benchmarks.harness.weights import load_weights

    return load_weights("small")


@pytest.fixture(scope="session")
def tiny_snapshot(small_snapshot):
    """`small_snapshot` with a tiny decoder of random weights, which has nothing in common with its full decoder."""
    import torch

    from training.config import TinyDecoder
    from training.tiny_decoder import build_tiny_decoder

    config = replace(small_snapshot.config, tiny_decoder=TinyDecoder(channels=8, blocks=1))
    torch.manual_seed(7)
    weights = build_tiny_decoder(config.tiny_decoder).state_dict()
    return replace(small_snapshot, config=config, tiny_decoder=weights)


@pytest.fixture
def tiny(small_snapshot, monkeypatch):
    """A configuration for training tests: tiny networks on `small_data`, an iteration an epoch.

    The pictures of denoising that a second stage draws are of two steps: the latents of a picture are never tiny.
    """
    from training import validation
    from training.config import AutoencoderTraining, DiffusionTraining, NoiseSchedule

    monkeypatch.setattr(validation, "denoising_strips", partial(validation.denoising_strips, steps=2, columns=1))
    config = small_snapshot.config
    shared = {"epochs": 5, "volumes_per_batch": 3, "learning_rate": 1e-3, "checkpoint_every": 2}
    return replace(
        config,
        data=SMALL,
        discriminator=replace(config.discriminator, channels=4, num_layers=2),
        noise_schedule=NoiseSchedule(),
        autoencoder_training=AutoencoderTraining(slices_per_volume=1, **shared),
        diffusion_training=DiffusionTraining(slices_per_volume=2, ema_decay=0.9, milestones=(), **shared),
    )


@pytest.fixture(scope="session")
def small_repository(tiny_snapshot, tmp_path_factory) -> Path:
    """`tiny_snapshot`, exported, in fp16 too, step by step. Read only."""
    options = ("--onnx", "fp16", "--steps-per-call", "1")
    return (
        made_once(tmp_path_factory, "export", partial(export_by_command, tiny_snapshot, options)) / "model_repository"
    )


@pytest.fixture(scope="session")
def steps_repository(small_snapshot, tmp_path_factory) -> Path:
    """`small_snapshot` in float32, as ONNX and programs, with five steps in a call. Read only."""
    options = ("--torch", "fp32")
    return (
        made_once(tmp_path_factory, "steps", partial(export_by_command, small_snapshot, options)) / "model_repository"
    )


@pytest.fixture(scope="session")
def labelled_snapshot(small_snapshot):
    """`small_snapshot` with a UNet that takes labels, and does without them what that one does."""
    import torch

    from training.conditioning import widened

    before = small_snapshot.config.unet
    config = replace(small_snapshot.config, unet=replace(before, conditioning="labels"))
    weights = widened(small_snapshot.unet, before, config.unet)
    first = weights["conv_in.conv.weight"]
    first[:, 1:] = torch.randn(first[:, 1:].shape, generator=torch.Generator().manual_seed(3)) / 10
    return replace(small_snapshot, config=config, unet=weights)


@pytest.fixture(scope="session")
def labelled_repository(labelled_snapshot, tmp_path_factory) -> Path:
    """`labelled_snapshot` in float32, as ONNX and programs, with five steps in a call. Read only."""
    make = partial(export_by_command, labelled_snapshot, ("--torch", "fp32"))
    return made_once(tmp_path_factory, "labelled", make) / "model_repository"


@pytest.fixture(scope="session")
def compiled_repository(small_snapshot, tmp_path_factory) -> Path:
    """`small_snapshot` for the profile torch, compiled for what is here, by the command that users type. Read only."""
    options = ("--torch", "fp32", "--compile", "--no-onnx")
    make = partial(export_by_command, small_snapshot, options)
    return made_once(tmp_path_factory, "compiled", make) / "model_repository"


def export_by_command(snapshot, options: tuple[str, ...], folder: Path) -> None:
    """A snapshot to folder/model_repository, by the command that users type."""
    from training.checkpoint import save_snapshot

    save_snapshot(snapshot, folder / "snapshot")
    into = ["--into", str(folder / "model_repository"), "--name", "small"]
    done = run_python("-m", "export", "repository", str(folder / "snapshot"), *into, *options, timeout=1200)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def torch_repository(small_snapshot, tmp_path_factory) -> Path:
    """`small_snapshot` for the profile torch alone, in float32, as a machine without ONNX makes it."""
    from export.repository import Extras, export_repository

    def export(into: Path) -> None:
        extras = Extras(torch="fp32", with_onnx=False, steps_per_call=1)
        export_repository(small_snapshot, into, "small", extras=extras)

    return made_once(tmp_path_factory, "torch_repository", export)


@pytest.fixture(scope="module")
def torch_backend() -> Iterator[SimpleNamespace]:
    """The modules of the backend torch_export, imported as the stub imports them: by their bare names."""
    networks = ("torch_program", "torch_compiled", "torch_recurrence", "torch_replays", "torch_steps")
    names = ("torch_noise", *networks, "torch_loading")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "server" / "backends" / "torch_export")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="session")
def small_server(small_repository) -> Iterator[TritonServer]:
    """A tritonserver that serves `small_repository`."""
    with TritonServer(small_repository, profile="cpu") as server:
        server.probe()
        yield server


@pytest.fixture(scope="session")
def perf_analyzer(tmp_path_factory) -> Path:
    """The folder of a fetched perf_analyzer: the default one, which is relative, as typed in some other folder."""
    here = tmp_path_factory.mktemp("fetch")
    command = [sys.executable, "-m", "benchmarks.serving.analyzer.fetch"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{here / fetch.FOLDER / fetch.BINARY}\n"
    return here / fetch.FOLDER


@pytest.fixture
def client(small_server) -> Iterator[Client]:
    """Our client, connected to `small_server`."""
    with Client(small_server.grpc_url) as client:
        yield client


@pytest.fixture
def raw(small_server) -> Iterator[triton.InferenceServerClient]:
    """Triton's own client, connected to `small_server`."""
    with triton.InferenceServerClient(small_server.grpc_url) as raw:
        yield raw


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for the tests of one module, in which nothing else may run an event loop in the main thread."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def visitor(browser) -> Iterator[Visitor]:
    """Somebody who opens pages; when the test is over nothing may have gone wrong in them, or asked another machine."""
    visitor = Visitor(browser)
    yield visitor
    visitor.leave()


COSTLY = {"phantom", "small_repository", "steps_repository", "torch_repository", "compiled_repository"}
COSTLY |= {"server", "small_server", "cautious", "perf_analyzer"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: whoever breaks something simple hears of it in seconds."""
    fast = [item for item in items if not item.get_closest_marker("slow")]
    costly = [item.nodeid for item in fast if COSTLY & set(getattr(item, "fixturenames", ()))]
    if costly:
        raise pytest.UsageError(f"these need the marker slow, for what their fixtures take: {', '.join(costly)}")
    # The longest of the slow ones are of the training, whose names come last, and no process should wait for another's.
    slow = [item for item in items if item not in fast]
    items[:] = [*fast, *sorted(slow, key=lambda item: item.path, reverse=True)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a green run means depends on the processor."""
    from support.capabilities import closing_lines

    for line in closing_lines():
        terminalreporter.write_line(line)
