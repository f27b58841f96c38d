"""docs/from-monai.md against the code: every field of the bundle has a row, and every flag in the rows exists."""

import importlib
import re

import pytest

from support.common import ROOT

PAGE = (ROOT / "docs" / "from-monai.md").read_text()
# Top-level fields of the bundle's configurations, version 1.1.2, that a user may want to set, and two of its trainers.
# Left out are those that are made from others, such as `dnetwork` and `output_dir`'s `create_output_dir`.
FIELDS = """
    amp autoencoder_def bundle_root channel ckpt_dir d_train_steps dataset_dir device discriminator_def image_channels
    infer_batch_size_img infer_batch_size_slice infer_patch_size latent_channels latent_shape load_autoencoder_path
    load_diffusion_path lr lr_scheduler model_dir network_def noise noise_scheduler output_dir output_filename
    output_postfix perceptual_loss_def perceptual_loss_model_weights_path preprocessing_transforms pretrained
    scale_factor set_determinism set_timesteps spatial_dims tf_dir train_batch_size_img train_batch_size_slice
    train_patch_size
"""
COMMANDS = (
    ("training.train_autoencoder",),
    ("training.train_diffusion",),
    ("training.reconstruct",),
    ("training.sample",),
    ("export.__main__", "from-monai"),
    ("export.__main__", "repository"),
)


def test_each_field_of_the_bundle_has_a_row() -> None:
    rows = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| ")]
    named = set(re.findall(r"`(?:--)?(\w+)[` ]", " ".join(rows)))
    assert not set(FIELDS.split()) - named


def test_each_flag_in_the_rows_exists(capsys: pytest.CaptureFixture[str]) -> None:
    flags = set(re.findall(r"--[a-z][\w.-]+", " ".join(re.findall(r" \| (.*) \|", PAGE))))
    flags -= {"--standalone", "--nproc-per-node", "--logdir"}  # torchrun's and TensorBoard's
    flags = {flag for flag in flags if not flag.endswith("-training.")}  # `--diffusion-training.…`
    assert len(flags) > 20
    for module, *subcommand in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(module).main([*subcommand, "--help"])
    shown = set(re.findall(r"--[a-z][\w.-]+", capsys.readouterr().out))
    assert flags <= shown
