"""Files in MONAI's older layouts, written by the classes that had them. Reads nothing of this repository.

Each version in a folder of its own, before the environment's MONAI on the path:

    pip install --no-deps --target /tmp/old monai-generative==0.2.2 monai==1.3.2    # or: monai==1.4.0
    PYTHONPATH=/tmp/old python tests/data/make_monai_files.py

writes tests/data/monai_generative_0.2.2 (or tests/data/monai_1.4.0):

    state_dict_keys.txt             `network.key [shape]` of the bundle's networks
    models/model_autoencoder.pt     small networks of the same structure, every weight random, those without use too
    models/model.pt
    answers.safetensors             inputs of the small networks, and what these classes make of them
"""

import importlib.util
from pathlib import Path

import monai
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
AUTOENCODER = {
    "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "latent_channels": 1, "norm_eps": 1e-6,
    "attention_levels": (False,) * 3, "with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True,
}  # fmt: skip
UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}
BUNDLE_AUTOENCODER = {"channels": (64, 128, 256), "num_res_blocks": 2, "norm_num_groups": 32}
BUNDLE_UNET = {
    "channels": (32, 64, 128, 256), "attention_levels": (False, True, True, True),
    "num_head_channels": (0, 32, 32, 32), "num_res_blocks": 2, "norm_num_groups": 32,
}  # fmt: skip
SMALL_AUTOENCODER = {"channels": (4, 4, 8), "num_res_blocks": 1, "norm_num_groups": 4}
SMALL_UNET = {
    "channels": (4, 8, 8), "attention_levels": (False, True, True), "num_head_channels": (0, 4, 4),
    "num_res_blocks": 1, "norm_num_groups": 4,
}  # fmt: skip

if importlib.util.find_spec("generative"):
    from generative.networks.nets import AutoencoderKL, DiffusionModelUNet

    FOLDER, ONLY_HERE, CHANNELS = HERE / "monai_generative_0.2.2", {}, "num_channels"
else:
    from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

    assert monai.__version__ == "1.4.0"
    FOLDER, ONLY_HERE, CHANNELS = HERE / "monai_1.4.0", {"include_fc": False}, "channels"


def build(autoencoder: dict, unet: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Both networks, with the arguments under the names of this version."""

    def renamed(arguments: dict) -> dict:
        return {CHANNELS if name == "channels" else name: value for name, value in arguments.items()} | ONLY_HERE

    return (
        AutoencoderKL(**AUTOENCODER, **renamed(autoencoder)).eval(),
        DiffusionModelUNet(**UNET, **renamed(unet)).eval(),
    )


@torch.no_grad()
def main() -> None:
    """Write the folder of the installed version."""
    (FOLDER / "models").mkdir(parents=True, exist_ok=True)
    autoencoder, unet = build(BUNDLE_AUTOENCODER, BUNDLE_UNET)
    lines = [f"autoencoder.{key} {list(tensor.shape)}\n" for key, tensor in sorted(autoencoder.state_dict().items())]
    lines += [f"unet.{key} {list(tensor.shape)}\n" for key, tensor in sorted(unet.state_dict().items())]
    (FOLDER / "state_dict_keys.txt").write_text("".join(lines))

    autoencoder, unet = build(SMALL_AUTOENCODER, SMALL_UNET)
    generator = torch.Generator().manual_seed(0)
    for network, name in ((autoencoder, "model_autoencoder.pt"), (unet, "model.pt")):
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        torch.save(network.state_dict(), FOLDER / "models" / name)
    latent, picture = torch.randn(2, 1, 8, 8, generator=generator), torch.rand(2, 1, 32, 32, generator=generator)
    timesteps = torch.tensor([3, 980])
    mu, sigma = autoencoder.encode(picture)
    answers = {"latent": latent, "picture": picture, "timesteps": timesteps, "mu": mu, "sigma": sigma}
    answers |= {"image": autoencoder.decode(latent), "noise": unet(latent, timesteps)}
    save_file(answers, FOLDER / "answers.safetensors")


if __name__ == "__main__":
    main()
