"""A short soak; `make test-reliability` has the long one."""

from pathlib import Path

from reliability.soak import Soak, plot, soak, write_repository

REQUESTS = 1000
# MB between the second and the last quarter: tritonserver's heap still spreads over its threads' arenas then.
MOST_GROWTH = {"tritonserver": 40.0}
MOST_GROWTH_OF_A_MODEL = 4.0


def test_a_short_soak_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    result = soak(write_repository(tmp_path / "repository"), REQUESTS)
    assert set(result.counts) <= {"images", "cancelled", "bad input told", "refused, queue full", "processes lost"}
    assert result.counts.total() == REQUESTS
    assert all(result.counts[kind] > 20 for kind in ("images", "cancelled", "bad input told", "refused, queue full"))
    assert result.counts["processes lost"] == 0
    models = {"mri_ldm_0_0", "mri_ldm_stream_0_0", "unet_0_0", "vae_decoder_0_0"}
    assert set(result.megabytes) == {"tritonserver", "/dev/shm", *models}
    for name, growth in result.growth().items():
        assert growth < MOST_GROWTH.get(name, MOST_GROWTH_OF_A_MODEL), (name, result.megabytes[name])
    assert plot(result, tmp_path / "soak.png").stat().st_size > 10_000


def test_a_leak_is_seen_and_a_warm_up_is_none() -> None:
    done = list(range(100))
    leak, warm_up = [20 + 0.5 * n for n in done], [min(60.0, 20.0 + 4 * n) for n in done]
    growth = Soak(requests=done, megabytes={"leak": leak, "warm-up": warm_up}).growth()
    assert growth == {"leak": 25.0, "warm-up": 0.0}
