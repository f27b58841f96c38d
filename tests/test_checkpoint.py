"""Snapshots: what goes in comes out, and what was tampered with is refused."""

import json

import pytest
import torch

from training.checkpoint import CheckpointError, Snapshot, load_snapshot, save_snapshot


def test_snapshot_round_trip_and_tampering(small_snapshot, tmp_path) -> None:
    save_snapshot(small_snapshot, tmp_path)
    loaded = load_snapshot(tmp_path)
    assert loaded.config == small_snapshot.config
    assert loaded.scale_factor == small_snapshot.scale_factor
    assert all(torch.equal(loaded.unet[name], tensor) for name, tensor in small_snapshot.unet.items())
    assert not list(tmp_path.glob("*.tmp"))

    path = tmp_path / "unet.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"unet\.safetensors: missing, or not the file"):
        load_snapshot(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"), [({"format_version": 9}, "format 9"), ({"sha256": {"../x": ""}}, "unknown")]
)
def test_a_foreign_snapshot_is_refused(small_snapshot, tmp_path, change, message) -> None:
    save_snapshot(Snapshot(small_snapshot.config, small_snapshot.autoencoder), tmp_path)
    record = json.loads((tmp_path / "snapshot.json").read_text())
    (tmp_path / "snapshot.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=message):
        load_snapshot(tmp_path)
