"""What may not change the weights: compilation, memory layout, several processes; and what a run writes to see."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.common import both_stages
from training import train_autoencoder, train_diffusion
from training.checkpoint import load_state, save_snapshot, save_state
from training.config import Config
from training.networks import build_autoencoder, build_discriminator, build_unet
from training.pictures import ERROR_GAIN
from training.processes import Processes, joined
from training.update import Trained, update_autoencoder, update_unet


def stage1_of(config: Config, snapshot, folder: Path) -> Path:
    save_snapshot(replace(snapshot, config=config, unet=None, scale_factor=None), folder)
    return folder


# --- torch.compile and channels_last


@pytest.fixture
def without_inductor(monkeypatch) -> list[torch.nn.Module]:
    """torch.compile up to its last part: Dynamo and AOTAutograd, without minutes of a C++ compiler. Lists its calls."""
    compile_module, compiled = torch.nn.Module.compile, []

    def compile_quickly(network: torch.nn.Module) -> None:
        compiled.append(network)
        compile_module(network, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    yield compiled
    torch._dynamo.reset()


class Networks:
    """The three of `config` with their optimisers, from the same start each time."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(0)
        settings = config.autoencoder_training
        self._config = config
        self.autoencoder = Trained(build_autoencoder(config.autoencoder), settings, joined())
        self.discriminator = Trained(build_discriminator(config.discriminator), settings, joined())
        self.unet = Trained(build_unet(config.unet), config.diffusion_training, joined())

    def update(self, iteration: int) -> dict[str, float]:
        """One update of each on its own random batch; losses and norms of gradients."""
        generator = torch.Generator().manual_seed(iteration)
        images = torch.rand(2, 1, 32, 32, generator=generator)
        latents = torch.randn(2, 1, 8, 8, generator=generator)
        for network in (self.autoencoder, self.discriminator, self.unet):
            network.begin(1e-3)
        stage1, norms1, _ = update_autoencoder(
            self.autoencoder, self.discriminator, None, {0: images}, iteration, self._config
        )
        alpha_bars = torch.linspace(0.99, 0.01, 1000)
        stage2, norms2 = update_unet(self.unet, {0: latents}, alpha_bars, iteration, self._config)
        return {**stage1, **norms1, **stage2, **norms2}

    def state_dict(self) -> dict[str, dict]:
        names = ("autoencoder", "discriminator", "unet")
        return {"iteration": 0, **{name: getattr(self, name).state_dict() for name in names}}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        for name in ("autoencoder", "discriminator", "unet"):
            getattr(self, name).load_state_dict(state[name])


@pytest.mark.slow
def test_compiled_networks_resume_to_the_same_numbers_and_learn_the_same(tiny, tmp_path, without_inductor) -> None:
    """Two updates and two more through a file; and against the networks as they are: float32 in another order."""
    config = both_stages(tiny, compile=True, ema_decay=0.9)
    whole = Networks(config)
    losses = [whole.update(i) for i in range(2)]
    save_state(whole.state_dict(), tmp_path / "state.pt")
    losses += [whole.update(i) for i in range(2, 4)]
    resumed = Networks(config)
    resumed.load_state_dict(load_state(tmp_path / "state.pt"))
    assert [resumed.update(i) for i in range(2, 4)] == losses[2:]
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert len(without_inductor) == 2 * 3

    plain = Networks(both_stages(tiny, ema_decay=0.9))
    for i in range(4):
        assert plain.update(i) == pytest.approx(losses[i], rel=1e-3), i
    assert len(without_inductor) == 2 * 3
    for name in ("autoencoder", "discriminator", "unet"):
        networks = [getattr(which, name).averaged for which in (whole, plain)]
        assert networks[0].state_dict().keys() == networks[1].state_dict().keys()


def test_the_memory_layout_changes_speed_alone(tiny) -> None:
    """float32 sums in another order, hence 1e-4 after three updates."""
    losses = {}
    for channels_last in (False, True):
        networks = Networks(both_stages(tiny, channels_last=channels_last))
        kernels = [p for p in networks.unet.network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) == channels_last for p in kernels)
        losses[channels_last] = [networks.update(i) for i in range(3)][-1]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


# --- several processes


def test_gradients_are_exchanged_once_an_update(tiny) -> None:
    """Four parts an update, one exchange for each network; without `no_sync` there would be four.

    The group has one member, as the exchange itself is not what is looked at.
    """
    config = both_stages(tiny, accumulate=4)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        processes, exchanged = Processes(0, 2, torch.device("cpu")), []

        def watched(name: str, network: torch.nn.Module) -> Trained:
            def hook(_, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
                if bucket.is_last():
                    exchanged.append(name)
                done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
                done.set_result(bucket.buffer())
                return done

            trained = Trained(network, config.autoencoder_training, processes)
            trained.model.register_comm_hook(None, hook)
            trained.begin(1e-3)
            return trained

        autoencoder = watched("autoencoder", build_autoencoder(config.autoencoder))
        discriminator = watched("discriminator", build_discriminator(config.discriminator))
        unet = watched("unet", build_unet(config.unet))
        for iteration in range(2):
            images = {part: torch.rand(1, 1, 32, 32) for part in range(4)}
            update_autoencoder(autoencoder, discriminator, None, images, iteration, config)
            latents = {part: torch.randn(1, 1, 8, 8) for part in range(4)}
            update_unet(unet, latents, torch.linspace(0.99, 0.01, 1000), iteration, config)
    finally:
        dist.destroy_process_group()
    assert exchanged == ["autoencoder", "discriminator", "unet"] * 2


# --- what a run writes


def test_tensorboard_shows_input_reconstruction_and_their_difference(tiny, small_data, tmp_path) -> None:
    """Rows of 32 pixels, a column a slice; greys are rounded, so five times a difference is right to 6 of 255.

    Where a reconstruction leaves [0, 1] its grey is cut off and the difference is not.
    """
    train_autoencoder.train(both_stages(tiny, epochs=2, checkpoint_every=1, slices_per_volume=2), small_data, tmp_path)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    shown = events.Images("reconstruction")
    assert [image.step for image in shown] == [1, 2]
    with Image.open(io.BytesIO(shown[-1].encoded_image_string)) as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    assert pixels.shape == (3 * 32, 6 * 32)
    image, reconstruction, error = np.split(pixels, 3)
    expected = np.minimum(255, ERROR_GAIN * np.abs(image - reconstruction))
    inside = (reconstruction > 0) & (reconstruction < 255)
    assert inside.mean() > 0.2
    assert np.abs(error - expected)[inside].max() <= ERROR_GAIN + 1
    assert (error - expected).min() >= -ERROR_GAIN - 1
    assert len(np.unique(image)) > 100  # the slices are noise, drawn with replacement
    assert len({column.tobytes() for column in np.split(image, 6, axis=1)}) > 1
    assert len(np.unique(error)) > 10
    with Image.open(tmp_path / "pictures" / "reconstruction_0000002.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)


def test_a_diverging_second_stage_stops_and_keeps_the_batch(tiny, small_snapshot, small_data, tmp_path) -> None:
    config = both_stages(tiny, learning_rate=1e15, checkpoint_every=1000, epochs=9)
    stage1 = stage1_of(config, small_snapshot, tmp_path / "stage1")
    with pytest.raises(FloatingPointError, match=r"is (nan|inf).* at iteration \d.*give a new --out"):
        train_diffusion.train(config, stage1, small_data, tmp_path / "run")
    batch = load_file(tmp_path / "run" / "not_finite_rank0.safetensors")
    assert batch["part0"].shape == (6, 1, 8, 8)
    assert batch["part0"].isfinite().all()
    assert not (tmp_path / "run" / "state.pt").exists()
