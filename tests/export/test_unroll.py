"""Several steps in one graph: the demo's UNet against single steps, other numbers of steps, and the served samplers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.compare import ParityError, require_parity_of_outputs
from export.graphs import UNET_LABELS, random_inputs, unet_steps
from export.onnx.run import cpu_session, feeds_of, run_all
from export.onnx.steps import add_steps, onnx_network, stepped
from export.onnx.unroll import unroll
from mri_ldm.samplers import IDENTITY, NoiseSchedule, SamplerTable, advance, sampler_table
from support.common import ROOT

pytestmark = pytest.mark.slow

UNET = ROOT / "model_repository" / "unet" / "1" / "model.onnx"
SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195)
STATE = ("latent", "estimate", "earlier_estimate")
Arrays = dict[str, np.ndarray[Any, Any]]


def conditions(rows: int) -> np.ndarray:
    """What the rows see of labels: the first one of some, the others of none."""
    seen = np.zeros((rows, 4, 64, 64), np.float32)
    seen[0] = np.random.default_rng(0).random((4, 64, 64), np.float32)
    return seen


@dataclass(frozen=True)
class Unrolled:
    """The demo's UNet, K steps in a call."""

    steps: int
    path: Path
    session: onnxruntime.InferenceSession

    def call(self, state: Sequence[np.ndarray], timesteps: np.ndarray, coefficients: np.ndarray) -> Arrays:
        feeds = dict(zip(STATE, state, strict=True)) | {"timesteps": timesteps, "coefficients": coefficients}
        return self.run(feeds | {"condition": conditions(len(timesteps))})

    def run(self, feeds: Arrays) -> Arrays:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feeds), strict=True))

    def sample(self, table: SamplerTable, latent: np.ndarray) -> Arrays:
        """All steps of `table` for all rows; their number is a multiple of K."""
        state, estimates = [latent, np.zeros_like(latent), np.zeros_like(latent)], []
        for first in range(0, table.steps, self.steps):
            rows = slice(first, first + self.steps)
            timesteps = np.repeat(table.timesteps[None, rows], len(latent), axis=0)
            answer = self.call(state, timesteps, np.repeat(table.linear[None, rows], len(latent), axis=0))
            state = [answer[f"next_{name}"] for name in STATE]
            estimates.append(answer["estimates"])
        return {"latent": state[0], "estimates": np.concatenate(estimates, axis=1)}


@pytest.fixture(scope="module")
def unrolled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Unrolled]:
    folder = tmp_path_factory.mktemp("unrolled")
    networks = {}
    for steps in (1, 2, 5):
        unroll(UNET, unet_steps(steps, labels=True), folder / f"{steps}.onnx")
        networks[steps] = Unrolled(steps, folder / f"{steps}.onnx", cpu_session(folder / f"{steps}.onnx"))
    return networks


def latents(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 1, 64, 64)).astype(np.float32)


def test_the_weights_are_there_once(unrolled: dict[int, Unrolled]) -> None:
    one = onnx.load(UNET).graph
    for steps, network in unrolled.items():
        proto = onnx.load(network.path)
        assert network.path.stat().st_size < UNET.stat().st_size + 0.4e6
        assert len(proto.graph.initializer) == len(one.initializer) + 1  # an axis
        assert sum(node.op_type == "Conv" for node in proto.graph.node) == steps * sum(
            node.op_type == "Conv" for node in one.node
        )
        assert not {"Loop", "If", "Scan"} & {node.op_type for node in proto.graph.node}
        assert {node.domain for node in proto.graph.node} == {""}
        assert [opset.domain for opset in proto.opset_import] == [""]
        assert not proto.functions


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_3m", "unipc"])
def test_bits_do_not_depend_on_the_number_of_steps_in_a_call(
    unrolled: dict[int, Unrolled], sampler: str, rows: int
) -> None:
    table = sampler_table(SCHEDULE, sampler, 10, 0.0)
    expected = unrolled[1].sample(table, latents(rows))
    for steps in (2, 5):
        answer = unrolled[steps].sample(table, latents(rows))
        for name, array in expected.items():
            np.testing.assert_array_equal(answer[name], array)


def test_bits_do_not_depend_on_the_company_of_a_row(unrolled: dict[int, Unrolled]) -> None:
    table, together = sampler_table(SCHEDULE, "dpmpp_2m", 5, 0.0), latents(3)
    expected = unrolled[5].sample(table, together)
    for row in range(3):
        alone = unrolled[5].sample(table, together[[0, row]])  # the first row sees labels
        for name, array in expected.items():
            np.testing.assert_array_equal(alone[name][0], array[0])
            if row:
                np.testing.assert_array_equal(alone[name][1], array[row])


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_3m", "unipc"])
def test_the_samplers_of_the_server_do_the_same_step_by_step(unrolled: dict[int, Unrolled], sampler: str) -> None:
    """The other form of the recurrence rounds differently. Seen: 2e-5 for latents of 1 and estimates of 5."""
    table, unet = sampler_table(SCHEDULE, sampler, 10, 0.0), cpu_session(UNET)
    x = latents(2)
    h = g = none = np.zeros_like(x)
    for k, timestep in enumerate(table.timesteps):
        timesteps = np.full((2, 1), timestep, np.int32)
        eps = unet.run(None, {"latent": x, "condition": conditions(2), "timesteps": timesteps})[0]
        x, h, g = advance(np.repeat(table.coefficients[None, k], 2, axis=0), x, eps, h, g, none)
    answer = unrolled[5].sample(table, latents(2))
    np.testing.assert_allclose(answer["latent"], x, atol=2e-4)
    np.testing.assert_allclose(answer["estimates"][:, -1], h, atol=2e-4)


def test_identity_rows_keep_latent_and_estimate_bit_for_bit(unrolled: dict[int, Unrolled]) -> None:
    """After the last two steps of a row, and for rows of a batch that have no step left."""
    table, x = sampler_table(SCHEDULE, "dpmpp_2m", 2, 0.0), latents(2)
    timesteps, coefficients = np.zeros((2, 5), np.int32), np.tile(IDENTITY, (2, 5, 1))
    timesteps[0, :2], coefficients[0, :2] = table.timesteps, table.linear
    state = [x, latents(3)[:2], latents(4)[:2]]
    answer = unrolled[5].call(state, timesteps, coefficients)
    two = unrolled[2].call([array[:1] for array in state], timesteps[:1, :2], coefficients[:1, :2])
    for name, array in zip(STATE, state, strict=True):
        expected = np.concatenate([two[f"next_{name}"], array[1:]])
        np.testing.assert_array_equal(answer[f"next_{name}"], expected)
    np.testing.assert_array_equal(two["next_earlier_estimate"], two["estimates"][:, 0])
    for k in range(2, 5):
        np.testing.assert_array_equal(answer["estimates"][:, k], answer["next_estimate"])


def test_noise_is_left_out(unrolled: dict[int, Unrolled]) -> None:
    graph = unet_steps(2, labels=True)
    feeds = feeds_of(graph, random_inputs(graph, rows=1, seed=0))
    other = feeds["coefficients"].copy()
    other[:, :, 3] += 1
    for name, array in unrolled[2].run(feeds).items():
        np.testing.assert_array_equal(unrolled[2].run(feeds | {"coefficients": other})[name], array)


def test_the_gate_finds_each_wrong_output(unrolled: dict[int, Unrolled]) -> None:
    graph = unet_steps(2, labels=True)
    inputs = random_inputs(graph, rows=2, seed=1)
    reference, answer = stepped(onnx_network(UNET_LABELS, UNET), inputs), run_all(graph, unrolled[2].session, inputs)
    assert require_parity_of_outputs("unrolled", graph, reference, answer, "fp32").relative_l2 < 1e-5
    for number, spec in enumerate(graph.outputs):
        wrong = [array * (1.001 if number == k else 1) for k, array in enumerate(answer)]
        with pytest.raises(ParityError, match=f"unrolled {spec.name} differs from float32"):
            require_parity_of_outputs("unrolled", graph, reference, wrong, "fp32")


def test_reduced_files_keep_latents_in_float32(small_snapshot, small_repository: Path, tmp_path: Path) -> None:
    """Coefficients and latents differ by less than fp16 can represent, so the bits are those of float32."""
    for name in ("model.onnx", "model.fp16.onnx"):
        (tmp_path / "unet" / "1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "unet" / "1" / name).symlink_to(small_repository / "unet" / "1" / name)
    parity, (fp16,) = add_steps(small_snapshot, tmp_path, 3, ("fp16",))
    assert parity.relative_l2 < 1e-5 < 1e-4 < fp16["parity"]["relative_l2"] < fp16["parity"]["tolerance_relative_l2"]
    assert (fp16["model"], fp16["file"]) == ("unet_steps", "unet_steps/1/model.fp16.onnx")
    session = cpu_session(tmp_path / fp16["file"])
    x = latents(2)
    coefficients = np.tile(IDENTITY, (2, 3, 1))
    feeds = {"latent": x, "estimate": x / 3, "earlier_estimate": x / 7}
    steps = {"timesteps": np.zeros((2, 3), np.int32), "coefficients": coefficients}
    for name, array in zip(STATE, session.run([f"next_{name}" for name in STATE], feeds | steps), strict=True):
        np.testing.assert_array_equal(array, feeds[name])
