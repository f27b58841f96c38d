"""One record per exported network: what goes in, what comes out, and the module that computes it.

Everything that needs a name, a shape or a batch size (ONNX export, parity check, config check) reads it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training.checkpoint import CheckpointError, Snapshot, takes_labels, without_labels
from training.conditioning import CHANNELS
from training.networks import build_autoencoder, build_unet
from training.tiny_decoder import build_tiny_decoder


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a network; `shape` is that of one row, without the batch dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    spread: float = 1.0
    """Standard deviation of random values."""


@dataclass(frozen=True)
class Graph:
    """A network as it is served, with 1 to `max_batch_size` rows in a call.

    TensorRT chooses its kernels for `opt_batch_size` rows. `build` makes the module; its arguments are the inputs in
    order. For unet_steps, `build` makes the module of one step.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opt_batch_size: int
    max_batch_size: int
    build: Callable[[Snapshot], Network]

    @property
    def output(self) -> TensorSpec:
        """The first output. Only unet_steps has more than one."""
        return self.outputs[0]


class Denoiser(nn.Module):
    """(latent [B, 1, 64, 64], timesteps int32 [B, 1]) -> predicted noise [B, 1, 64, 64]; float32 outside."""

    dtype = torch.float32
    """The type that the network computes in; export.precision.reduced_precision makes copies with another type."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        if snapshot.unet is None:
            raise CheckpointError("the snapshot holds no UNet: give the one that training.train_diffusion wrote")
        self.unet = build_unet(snapshot.config.unet)
        self.unet.load_state_dict(snapshot.unet)

    def forward(self, latent: Tensor, timesteps: Tensor) -> Tensor:
        """Each row at its own timestep."""
        return self.predict(latent, timesteps)

    def predict(self, seen: Tensor, timesteps: Tensor) -> Tensor:
        """From all that the UNet sees, [B, channels, 64, 64]."""
        return self.unet(seen.to(self.dtype), timesteps.flatten())

    def last_layers(self) -> tuple[nn.Module, nn.Module]:
        """The normalisation and the convolution that make the output."""
        return self.unet.out[0], self.unet.out[-1]


class LabelledDenoiser(Denoiser):
    """As Denoiser, with the condition [B, CHANNELS, 64, 64] of `training.conditioning` between its inputs."""

    def forward(self, latent: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:  # type: ignore[override]
        """Each row with its own labels, or with zeros."""
        return self.predict(torch.cat([latent, condition], dim=1), timesteps)


class Decoder(nn.Module):
    """Scaled latent [B, 1, 64, 64] -> image [B, 1, 256, 256]; divides by the scale factor; float32 outside."""

    dtype = torch.float32
    """As in Denoiser; the division is always float32."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        if snapshot.scale_factor is None:
            raise CheckpointError(
                "the snapshot holds no scale factor: give the one that training.train_diffusion wrote"
            )
        self.scale_factor = snapshot.scale_factor
        self.autoencoder = build_autoencoder(snapshot.config.autoencoder)
        self.autoencoder.load_state_dict(snapshot.autoencoder)

    def forward(self, latent: Tensor) -> Tensor:
        """The whole decoder of the autoencoder."""
        return self.autoencoder.decode((latent / self.scale_factor).to(self.dtype))

    def last_layers(self) -> tuple[nn.Module, nn.Module]:
        """The normalisation and the convolution that make the output."""
        return self.autoencoder.decoder.blocks[-2], self.autoencoder.decoder.blocks[-1]


class SmallDecoder(nn.Module):
    """Scaled latent [B, 1, 64, 64] -> image [B, 1, 256, 256], as Decoder; float32 outside.

    It has learned from scaled latents, so there is nothing to divide.
    """

    dtype = torch.float32
    """As in Denoiser."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        if snapshot.tiny_decoder is None:
            raise CheckpointError("the snapshot holds no tiny decoder: training.distil_decoder adds one")
        self.decoder = build_tiny_decoder(snapshot.config.tiny_decoder, snapshot.tiny_decoder)

    def forward(self, latent: Tensor) -> Tensor:
        """The whole tiny decoder."""
        return self.decoder(latent.to(self.dtype))

    def last_layers(self) -> tuple[nn.Module, nn.Module]:
        """The activation and the convolution that make the output."""
        return self.decoder.activate, self.decoder.leave


Network = Denoiser | Decoder | SmallDecoder
TIMESTEPS = 1000
"""Timesteps of random inputs are below this number."""
LATENT = TensorSpec("latent", torch.float32, (1, 64, 64))
UNET = Graph(
    name="unet",
    inputs=(LATENT, TensorSpec("timesteps", torch.int32, (1,))),
    outputs=(TensorSpec("pred", torch.float32, (1, 64, 64)),),
    opt_batch_size=8,
    max_batch_size=64,
    build=lambda snapshot: Denoiser(without_labels(snapshot)),
)
"""The denoiser without labels, of any snapshot."""
CONDITION = TensorSpec("condition", torch.float32, (CHANNELS, *LATENT.shape[1:]))
UNET_LABELS = replace(UNET, inputs=(LATENT, CONDITION, *UNET.inputs[1:]), build=LabelledDenoiser)
"""The denoiser of a snapshot that takes labels."""
VAE_DECODER = Graph(
    name="vae_decoder",
    inputs=(LATENT,),
    outputs=(TensorSpec("image", torch.float32, (1, 256, 256)),),
    opt_batch_size=4,
    max_batch_size=4,
    build=Decoder,
)
VAE_DECODER_TINY = Graph(
    name="vae_decoder_tiny",
    inputs=VAE_DECODER.inputs,
    outputs=VAE_DECODER.outputs,
    opt_batch_size=16,
    max_batch_size=16,
    build=SmallDecoder,
)
GRAPHS = (UNET, VAE_DECODER)
"""The networks that every repository has; with UNET_LABELS in the place of UNET if its weights take labels."""


def graphs_of(snapshot: Snapshot, steps: int = 1) -> tuple[Graph, ...]:
    """The networks that a repository of `snapshot` has, for `steps` steps in a call."""
    return with_steps(steps, tiny=snapshot.tiny_decoder is not None, labels=takes_labels(snapshot))


def unet(labels: bool) -> Graph:
    """The denoiser, with or without labels."""
    return UNET_LABELS if labels else UNET


def unet_steps(steps: int, labels: bool = False) -> Graph:
    """`steps` steps of the denoiser in one call, with the recurrence of the samplers between them.

    `coefficients` has a row for each step: a, b, c, d, e, p, q, r as in export.onnx.unroll, which ignores d.
    """
    single, condition = unet(labels), (CONDITION,) if labels else ()
    state = (LATENT, *(TensorSpec(name, torch.float32, LATENT.shape) for name in ("estimate", "earlier_estimate")))
    # With this spread, a sum of three terms is about as large as one term.
    coefficients = TensorSpec("coefficients", torch.float32, (steps, 8), spread=3**-0.5)
    return Graph(
        name="unet_steps",
        inputs=(LATENT, *condition, *state[1:], TensorSpec("timesteps", torch.int32, (steps,)), coefficients),
        outputs=(
            *(TensorSpec(f"next_{spec.name}", torch.float32, LATENT.shape) for spec in state),
            TensorSpec("estimates", torch.float32, (steps, *LATENT.shape)),
        ),
        opt_batch_size=single.opt_batch_size,
        max_batch_size=single.max_batch_size,
        build=single.build,
    )


def with_steps(steps: int, *, tiny: bool = False, labels: bool = False) -> tuple[Graph, ...]:
    """The networks of a repository that takes `steps` steps in a call; for one step, `unet` does it.

    tiny: with the tiny decoder. labels: with a denoiser that takes labels.
    """
    graphs = (unet(labels), VAE_DECODER, *([VAE_DECODER_TINY] if tiny else []))
    return (*graphs, unet_steps(steps, labels)) if steps > 1 else graphs


def random_inputs(graph: Graph, rows: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs with `rows` rows: normal latents and coefficients, timesteps uniform below TIMESTEPS."""
    generator = torch.Generator().manual_seed(seed)

    def draw(spec: TensorSpec) -> Tensor:
        shape = (rows, *spec.shape)
        if spec.dtype == torch.int32:
            return torch.randint(TIMESTEPS, shape, generator=generator, dtype=spec.dtype)
        return torch.randn(shape, generator=generator) * spec.spread

    return tuple(draw(spec) for spec in graph.inputs)
