"""Weights of MONAI can be read, whatever the names, and ours written; files that do not fit are refused.

`data/monai_generative_0.2.2` and `data/monai_1.4.0` were written by the classes of those versions, each in an
environment of its own, by `data/make_monai_files.py`: the names and shapes of the bundle's networks, small networks of
the same structure with every weight random (the projections that no network applies too), and what they answer.
MONAI >= 1.5 needs no such files: its classes are the ones that we build.
"""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from safetensors.torch import load_file

from export.__main__ import main
from export.graphs import UNET, VAE_DECODER, random_inputs
from export.monai import weights
from export.monai.layouts import Layout, convert, in_layout, shapes
from export.monai.weights import BUNDLE_FILES, bundle_files, load_monai, save_monai
from server.process import TritonServer
from support.common import ROOT, run_python
from support.serving import infer
from training.checkpoint import CheckpointError, Snapshot, save_snapshot
from training.config import load_config
from training.files import sha256
from training.networks import build_autoencoder, build_unet
from training.sample import decode, sample_latents
from training.weights import unwrap

DATA = ROOT / "tests" / "data"
LEGACY, MONAI_1_4 = DATA / "monai_generative_0.2.2", DATA / "monai_1.4.0"
OLD = [pytest.param(LEGACY, "monai-generative", id="0.2.2"), pytest.param(MONAI_1_4, "monai-1.4", id="1.4.0")]
SMALL = load_config(str(DATA / "monai_small.toml"))


def networks(snapshot: Snapshot) -> tuple[AutoencoderKL, DiffusionModelUNet]:
    """The networks of a snapshot, as the export builds them."""
    return VAE_DECODER.build(snapshot).autoencoder.eval(), UNET.build(snapshot).unet.eval()


def networks_by_monai(folder: Path) -> tuple[AutoencoderKL, DiffusionModelUNet]:
    """The files of a bundle folder as the bundle's configurations load them."""
    autoencoder, unet = build_autoencoder(SMALL.autoencoder), build_unet(SMALL.unet)
    autoencoder.load_old_state_dict(torch.load(folder / "models" / "model_autoencoder.pt", weights_only=True))
    unet.load_old_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    return autoencoder.eval(), unet.eval()


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the order of sums in float32."""
    assert expected.std() > 0.01  # or the comparison would say little
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def trained() -> Snapshot:
    """A snapshot with attention in both networks and a scale factor far from 1."""
    return load_monai(bundle_files(LEGACY), SMALL, scale_factor=0.37)


# --- read


@pytest.mark.parametrize("network", ["autoencoder", "unet"])
@pytest.mark.parametrize(("folder", "layout"), [*OLD, pytest.param(DATA, "monai-1.5", id="1.5")])
def test_the_bundles_networks_in_every_layout(folder: Path, layout: str, network: Any) -> None:
    """Each tensor gets its name. MONAI's own loader says which one, for the layout that it knows."""
    lines = (line.split(" ", 1) for line in (folder / "state_dict_keys.txt").read_text().splitlines())
    listed = {name.removeprefix(f"{network}."): json.loads(shape) for name, shape in lines if name.startswith(network)}
    counts = {"autoencoder": 178, "unet": 400} if layout == "monai-1.5" else {"autoencoder": 182, "unet": 432}
    assert len(listed) == counts[network]
    state = {key: torch.tensor(float(i)).expand(shape) for i, (key, shape) in enumerate(listed.items())}
    before, config = dict(state), load_config("brats")
    converted, detected = convert(state, shapes(network, config), "x")
    assert detected == layout
    assert list(state.items()) == list(before.items())  # the tensors by identity

    built: Any = build_autoencoder(config.autoencoder) if network == "autoencoder" else build_unet(config.unet)
    if layout == "monai-1.4":  # MONAI >= 1.5 refuses it; without the projections it has the new names
        built.load_state_dict({key: tensor for key, tensor in state.items() if "out_proj" not in key})
    else:
        built.load_old_state_dict(dict(state))
    assert list(converted) == list(built.state_dict())
    assert all(torch.equal(converted[key], tensor) for key, tensor in built.state_dict().items())


@pytest.mark.parametrize(("folder", "layout"), OLD)
def test_converted_weights_compute_what_the_original_classes_did(folder: Path, layout: str) -> None:
    snapshot = load_monai(bundle_files(folder), SMALL, scale_factor=0.7)
    assert [stage["monai"]["layout"] for stage in snapshot.history.values()] == [layout, layout]
    autoencoder, unet = networks(snapshot)
    answers = load_file(folder / "answers.safetensors")
    with torch.no_grad():
        mu, sigma = autoencoder.encode(answers["picture"])
        close(mu, answers["mu"])
        close(sigma, answers["sigma"])
        close(autoencoder.decode(answers["latent"]), answers["image"])
        close(unet(answers["latent"], answers["timesteps"]), answers["noise"])


def prefixed(state: dict[str, torch.Tensor], prefix: str = "module.") -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": prefixed(state), "epoch": 7, "optimizer": {"param_groups": []}},
        lambda state: {"model": {"state_dict": prefixed(prefixed(state, "_orig_mod."))}},
    ],
    ids=["bare", "module", "nested"],
)
def test_a_state_dict_is_found_in_what_is_wrapped_around_it(wrap, trained, tmp_path: Path) -> None:
    state = torch.load(LEGACY / "models" / "model.pt", weights_only=True)
    content = wrap(state)
    keys = list(content)
    assert list(unwrap(content, "x")) == list(state)
    assert list(content) == keys
    torch.save(content, tmp_path / "model.pt")
    loaded = load_monai({**bundle_files(LEGACY), "unet": tmp_path / "model.pt"}, SMALL, scale_factor=1.0)
    assert all(torch.equal(loaded.unet[key], tensor) for key, tensor in trained.unet.items())


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        ("middle_block.attention.to_q.bias", {}, r"unet\.pt \(unet\) .*: 1 missing \(middle_block\S+to_q\.bias\)$"),
        ("", {"label_emb": torch.zeros(3)}, r"monai-generative as the closest layout: 1 left over \(label_emb\)$"),
        ("", {"out.0.bias": torch.zeros(8)}, r"1 of another shape \(out\.0\.bias \[8\] instead of \[4\]\)$"),
    ],
)
def test_one_tensor_amiss_is_refused(removed: str, added: Any, message: str, tmp_path: Path) -> None:
    state = torch.load(LEGACY / "models" / "model.pt", weights_only=True) | added
    state.pop(removed, None)
    torch.save(state, tmp_path / "unet.pt")
    with pytest.raises(CheckpointError, match=message):
        load_monai({**bundle_files(LEGACY), "unet": tmp_path / "unet.pt"}, SMALL, scale_factor=1.0)


def test_other_networks_are_refused_in_one_short_line() -> None:
    with pytest.raises(CheckpointError, match=r"^[^\n]+: \d+ missing \(\S+, \S+, \S+, \.\.\.\)[^\n]+$") as error:
        load_monai(bundle_files(LEGACY), load_config("brats"), scale_factor=1.0)
    assert len(str(error.value)) < 1000


def test_the_published_files_need_no_scale_factor_and_others_do(monkeypatch) -> None:
    """There is no copy of them here, so other files are used with their MD5."""
    files = bundle_files(LEGACY)
    with pytest.raises(CheckpointError, match=r"--scale-factor .*'scale factor: \.\.\.', or with 1\.0"):
        load_monai(files, SMALL)
    md5 = {stage: record["monai"]["md5"] for stage, record in load_monai(files, SMALL, 0.5).history.items()}
    monkeypatch.setitem(weights.PUBLISHED_MD5, "unet", md5["diffusion"])
    with pytest.raises(CheckpointError, match="not the two published files"):
        load_monai(files, SMALL)
    monkeypatch.setitem(weights.PUBLISHED_MD5, "autoencoder", md5["autoencoder"])
    snapshot = load_monai(files, SMALL)
    assert snapshot.scale_factor == 1.0
    record = snapshot.history["diffusion"]["monai"]
    assert (record["file"], record["published"], record["sha256"]) == ("model.pt", True, sha256(files["unet"]))
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match="positive number"):
            load_monai(files, SMALL, nonsense)


# --- written


def test_the_bundle_decodes_what_we_decode_without_a_scale_factor(trained, tmp_path: Path) -> None:
    """It also encodes to our latents times the scale factor, so that its training can continue."""
    save_monai(trained, tmp_path)
    (ours, our_unet), (monai, their_unet) = networks(trained), networks_by_monai(tmp_path)
    latent, timesteps, picture = torch.randn(2, 1, 8, 8), torch.tensor([1, 900]), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(their_unet(latent, timesteps), our_unet(latent, timesteps))
        close(monai.decode_stage_2_outputs(latent), ours.decode(latent / 0.37))
        (mu, sigma), (their_mu, their_sigma) = ours.encode(picture), monai.encode(picture)
        close(their_mu, 0.37 * mu)
        close(their_sigma, 0.37 * sigma)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_out_and_in_again_gives_the_same_images(trained, layout: Layout, tmp_path: Path) -> None:
    paths = save_monai(trained, tmp_path / layout, layout)
    assert [str(path.relative_to(tmp_path / layout)) for path in paths] == list(BUNDLE_FILES.values())
    again = load_monai(bundle_files(tmp_path / layout), SMALL, scale_factor=1.0)
    assert again.history["diffusion"]["monai"]["layout"] == layout
    assert all(torch.equal(again.unet[key], tensor) for key, tensor in trained.unet.items())
    latent, *_ = random_inputs(VAE_DECODER, rows=1, seed=4)
    with torch.no_grad():
        close(VAE_DECODER.build(again).eval()(latent), VAE_DECODER.build(trained).eval()(latent))
    twice = save_monai(again, tmp_path / "twice", layout)  # the scale factor is 1 by now: not a bit may change
    assert [path.read_bytes() for path in twice] == [path.read_bytes() for path in paths]


@pytest.mark.parametrize(("folder", "layout"), OLD)
def test_old_layouts_are_written_as_the_old_classes_wrote_them(folder: Path, layout: Layout) -> None:
    snapshot = load_monai(bundle_files(folder), SMALL, scale_factor=1.0)
    for path, state in zip(bundle_files(folder).values(), (snapshot.autoencoder, snapshot.unet), strict=True):
        original = torch.load(path, weights_only=True)
        written = in_layout(state, layout)
        assert {key: tensor.shape for key, tensor in written.items()} == {k: t.shape for k, t in original.items()}
        same = {key for key in original if torch.equal(written[key], original[key])}
        assert all("proj" in key for key in original.keys() - same)


def test_writing_keeps_what_is_there(trained, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_text("a download of an hour")
    with pytest.raises(CheckpointError, match="exists already"):
        save_monai(trained, tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["model.pt"]
    with pytest.raises(CheckpointError, match="holds no UNet"):
        save_monai(Snapshot(SMALL, trained.autoencoder), tmp_path / "new")


@pytest.mark.slow
def test_a_bundle_folder_is_served(tmp_path: Path, capsys) -> None:
    """As a user types it. MONAI's own loader of the old layout and scheduler make the images to compare with."""
    into = tmp_path / "repository"
    arguments = ["repository", str(LEGACY), "--config", str(DATA / "monai_small.toml"), "--into", str(into)]
    assert main(arguments) == 1
    assert "give --scale-factor" in capsys.readouterr().err
    assert main([*arguments, "--scale-factor", "0.6"]) == 0
    manifest = json.loads((into / "manifest.json").read_text())
    assert manifest["scale_factor"] == 0.6
    assert manifest["training"]["history"]["autoencoder"]["monai"]["file"] == "model_autoencoder.pt"

    start = np.random.default_rng(5).standard_normal((2, 1, 64, 64), np.float32)
    with TritonServer(into) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        answer = infer(raw, seed=[0, 0], steps=[5, 5], latent=start)
    autoencoder, unet = networks_by_monai(LEGACY)
    latents = sample_latents(unet, SMALL.noise_schedule, torch.from_numpy(start), steps=5)
    for name, expected in (("final_latent", latents), ("image", decode(autoencoder, latents, scale_factor=0.6))):
        # These random weights do not denoise, so five steps multiply the errors of one.
        actual, largest = answer.as_numpy(name), float(expected.abs().max())
        assert largest > 1
        np.testing.assert_allclose(actual, expected.numpy(), atol=1e-4 * largest)


def test_the_commands_say_what_is_wrong(trained, tmp_path: Path, capsys) -> None:
    save_snapshot(trained, tmp_path / "snapshot")
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "metadata.json").write_text("{}")
    one = LEGACY / "models" / "model.pt"
    wrong: list[tuple[list[object], str]] = [
        ([tmp_path / "bundle"], "large_files.yml"),
        ([tmp_path / "snapshot", "--scale-factor", "1"], "has its own scale factor"),
        ([one], "--autoencoder FILE --unet FILE"),
        (["--autoencoder", one, "--unet", tmp_path / "none.pt", "--scale-factor", 1], "none.pt"),
        (["--autoencoder", one, "--unet", one, "--config", "no"], "no configuration 'no'"),
    ]
    for arguments, message in wrong:
        assert main(["repository", *map(str, arguments), "--into", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    for usage in ([], [str(one), "--autoencoder", str(one), "--unet", str(one)], ["--autoencoder", str(one)]):
        with pytest.raises(SystemExit, match="2"):
            main(["repository", *usage])
    assert not (tmp_path / "out").exists()

    out = ["to-monai", str(tmp_path / "snapshot"), "--out", str(tmp_path / "new")]
    assert main(out) == 0
    assert "unet.channels = (4, 8, 8)" in capsys.readouterr().out
    assert main(out) == 1
    assert "exists already" in capsys.readouterr().err
    help_text = run_python("-m", "export", "to-monai", "--help").stdout
    assert all(layout in help_text for layout in get_args(Layout))
