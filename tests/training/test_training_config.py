"""Configurations: every wrong type and every value out of its range is refused in one line that names it."""

import re
from dataclasses import replace

import pytest

from support.common import ROOT
from training import train_autoencoder, train_diffusion
from training.cli import exit_status
from training.config import Config, ConfigError, check_config, config_from_dict, load_config


@pytest.mark.parametrize(
    ("section", "field", "value", "reason"),
    [
        ("autoencoder_training", "channels_last", "false", "'false' is not true or false"),
        ("autoencoder_training", "compile", 1, "1 is not true or false"),
        ("autoencoder_training", "epochs", 1.7, "1.7 is not an integer"),
        ("diffusion_training", "epochs", True, "True is not an integer"),
        ("diffusion_training", "accumulate", "2", "'2' is not an integer"),
        ("diffusion_training", "learning_rate", "1e-4", "'1e-4' is not a number"),
        ("diffusion_training", "gamma", False, "False is not a number"),
        ("diffusion_training", "precision", "fp8", "'fp8' is not one of fp32, bf16, fp16"),
        ("diffusion_training", "milestones", [1.5], "1.5 is not an integer"),
        ("diffusion_training", "milestones", 3, "3 is not an array"),
        ("unet", "channels", "123", "'123' is not an array"),
        ("unet", "attention_levels", [0, 1, 1, 1], "0 is not true or false"),
        ("perceptual", "weights", False, "False is not a string"),
    ],
)
def test_a_value_of_another_type_is_refused(section, field, value, reason) -> None:
    """Libraries like to convert: "false" was True, 1.7 epochs one, "123" three channels."""
    with pytest.raises(ConfigError, match=re.escape(f"x.toml: {reason} @ $.{section}.{field}")):
        config_from_dict({section: {field: value}}, "x.toml")


def test_an_integer_will_do_for_a_number() -> None:
    values = {"data": {"cache_rate": 0}, "diffusion_training": {"milestones": [32, 33]}}
    config = config_from_dict(values, "x.toml")
    milestones = config.diffusion_training.milestones
    assert (config.data.cache_rate, type(config.data.cache_rate), milestones) == (0.0, float, (32, 33))


def test_all_wrong_values_are_named_at_once(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"'a' is not an integer @ \$\.seed; 'b' is not .* @ \$\.data\.size"):
        config_from_dict({"seed": "a", "data": {"size": "b"}}, "x.toml")
    path = tmp_path / "x.toml"
    path.write_text("seed = -1\n[data]\ndepth = 0")
    with pytest.raises(ConfigError, match=r"x\.toml: seed is -1, must be 0 .*; data\.depth is 0, must be 1 or more"):
        load_config(str(path))
    path.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match=r"x\.toml: .*utf-8"):
        load_config(str(path))


STAGE = {
    "epochs": (0, -1),
    "volumes_per_batch": (0,),
    "slices_per_volume": (0,),
    "accumulate": (0,),
    "learning_rate": (0.0, -1e-4, float("nan"), float("inf")),
    "warmup": (-1,),
    "milestones": ((0,), (5, 5), (9, 5)),
    "gamma": (0.0, 1.5),
    "max_grad_norm": (-1.0, float("nan")),
    "ema_decay": (-0.1, 1.0),
    "validate_every": (-1,),
    "validation_volumes": (0,),
    "patience": (-1, 3),  # 3 validations, of which there are none
    "checkpoint_every": (0,),
}
OUT_OF_RANGE = {
    "": {"seed": (-1, 2**63)},
    "data": {"channel": (-1,), "depth": (0,), "size": (0, 30, 241), "cache_rate": (-0.1, 2.0), "workers": (0,)},
    "autoencoder": {
        "channels": ((), (32, 64), (32, 32, 64, 64), (32, 48, 64), (0, 32, 64)),
        "num_res_blocks": (0,),
        "norm_num_groups": (0, -32),
    },
    "discriminator": {"channels": (0,), "num_layers": (0, 6)},
    "unet": {
        "channels": ((), (32, 64, 128, 250), (32,) * 8),
        "attention_levels": ((True,),),
        "num_head_channels": ((32,), (0, 0, 32, 32), (0, 32, 32, 0), (0, 32, 32, 33)),
        "num_res_blocks": (0,),
        "norm_num_groups": (0,),
    },
    "noise_schedule": {"num_train_timesteps": (0, 19), "beta_start": (0.0, 1.0), "beta_end": (0.001, 1.0)},
    "perceptual": {"weights": ("",), "weight": (-1.0,)},
    "autoencoder_training": {**STAGE, "kl_weight": (-1e-6,), "adversarial_weight": (-0.5,), "adversarial_start": (-1,)},
    "diffusion_training": {**STAGE, "scale_factor_batches": (0,), "max_loss_weight": (0.9,)},
    "tiny_decoder": {"channels": (0, 12), "blocks": (0,)},
    "tiny_decoder_training": {
        **STAGE,
        "squared_weight": (-0.5,),
        "ssim_weight": (-0.1,),
        "reuse": (0,),
        "latent_noise": (-0.1,),
    },
}
CASES = [
    (section, field, value)
    for section, fields in OUT_OF_RANGE.items()
    for field, values in fields.items()
    for value in values
]


def test_a_value_out_of_its_range_is_named_with_what_is_allowed() -> None:
    """Zeros ended in ZeroDivisionError or another library's words, or in a snapshot that was never written."""
    for section, field, value in CASES:
        part = replace(getattr(Config(), section) if section else Config(), **{field: value})
        config = replace(Config(), **{section: part}) if section else part
        name = f"{section}.{field}".strip(".")
        with pytest.raises(ConfigError, match=re.escape(f"x.toml: {name} is {value!r}, must be ")) as error:
            check_config(config, "x.toml")
        assert len(str(error.value)) < 400


def test_every_number_of_a_configuration_has_a_range() -> None:
    """A new field without a rule would show here; switches and choices by name have none to have."""
    config = Config()
    fields = {
        f"{section}.{field}"
        for section, part in vars(config).items()
        if section != "seed"
        for field, value in vars(part).items()
        if not isinstance(value, bool) and field not in ("precision", "spacing", "modality", "conditioning")
    }
    assert fields | {".seed"} == {f"{section}.{field}" for section, field, _ in CASES}


def test_what_the_repository_holds_is_allowed() -> None:
    files = [*(ROOT / "training" / "configs").glob("*.toml"), *(ROOT / "tests" / "data").glob("*.toml")]
    assert len(files) >= 3
    for path in files:
        load_config(str(path))
    check_config(Config(), "defaults")


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_the_command_line_is_checked_like_a_file(tmp_path, stage) -> None:
    extra = ["--autoencoder", "x"] if stage == "diffusion" else []
    wrong = f"--{stage}-training.accumulate", "0", "--autoencoder.channels", "16", "16", "32", "64"
    verb = train_diffusion if stage == "diffusion" else train_autoencoder
    with pytest.raises(SystemExit) as ended:
        verb.main(["--data", str(tmp_path), "--out", str(tmp_path / "o"), *extra, *wrong])
    line = str(ended.value.code)
    assert line.startswith("error: command line: autoencoder.channels is (16, 16, 32, 64), must be 3 levels")
    assert line.endswith(f"; {stage}_training.accumulate is 0, must be 1 or more")
    assert not (tmp_path / "o").exists()


def test_a_full_gpu_is_one_line_with_what_to_lower(capsys) -> None:
    """torch's own error class; a GPU of this size is not at hand. Any other RuntimeError stays what it is."""
    import torch

    def fill() -> None:
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1.00 GiB free.\nSee the documentation"
        )

    def fail() -> None:
        raise RuntimeError("shapes do not fit")

    assert exit_status(fill) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1.00 GiB free. In training"
    )
    assert all(name in line for name in ("slices_per_volume", "volumes_per_batch", "accumulate", "precision"))
    with pytest.raises(RuntimeError, match="shapes"):
        exit_status(fail)
