"""Label maps and guidance on a real server: rows with and without them in the same calls, bit for bit as alone."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from benchmarks.harness.engine import Engine
from mri_ldm.request import RowParameters
from server.process import TritonServer
from support.toy_pipeline import Reference, write_pipeline

pytestmark = pytest.mark.slow
TYPES = {"seed": "INT64", "steps": "INT32", "sampler": "BYTES", "labels": "UINT8", "guidance": "FP32"}
NUMPY = {"seed": np.int64, "steps": np.int32, "sampler": np.object_, "labels": np.uint8, "guidance": np.float32}
OUTPUTS = ("image", "final_latent", "provenance")


def map_of(seed: int) -> np.ndarray:
    """A label map uint8 [1, 240, 240] with all labels; few pixels are alone, as in real ones."""
    coarse = np.random.default_rng(seed).integers(0, 4, (1, 48, 48), np.uint8)
    return coarse.repeat(5, axis=1).repeat(5, axis=2)


def tensors(rows: list[RowParameters]) -> list[triton.InferInput]:
    columns = {"seed": [[row.seed] for row in rows], "steps": [[row.steps] for row in rows]}
    columns["sampler"] = [[row.sampler.encode()] for row in rows]
    if rows[0].labels is not None:
        columns |= {"labels": [row.labels for row in rows], "guidance": [[row.guidance] for row in rows]}
    inputs = []
    for name, column in columns.items():
        array = np.array(column, NUMPY[name])
        inputs.append(triton.InferInput(name, list(array.shape), TYPES[name]))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def ask(client: triton.InferenceServerClient, rows: list[RowParameters]) -> triton.InferResult:
    return client.infer("mri_ldm", tensors(rows), outputs=[triton.InferRequestedOutput(name) for name in OUTPUTS])


def ask_together(server: TritonServer, requests: list[list[RowParameters]]) -> list[triton.InferResult]:
    """All requests at once, so that their rows share calls of the network."""
    answers: queue.Queue = queue.Queue()
    outputs = [triton.InferRequestedOutput(name) for name in OUTPUTS]
    with triton.InferenceServerClient(server.grpc_url) as client:
        for number, rows in enumerate(requests):
            client.async_infer(
                "mri_ldm",
                tensors(rows),
                lambda result, error, number=number: answers.put((number, result, error)),
                outputs=outputs,
            )
        got = sorted((answers.get(timeout=120) for _ in requests), key=lambda answer: answer[0])
    assert [error for *_, error in got] == [None] * len(requests)
    return [result for _, result, _ in got]


def mixed(count: int) -> list[list[RowParameters]]:
    """Requests without labels, with them, and with guidance, in turn."""
    requests = []
    for number in range(count):
        rows = []
        for place in range(1 + number % 3):
            seed, steps = 100 * number + place, 4 + (number + place) % 5
            sampler, kind = ("ddim", "ddpm", "dpmpp_2m")[number % 3], number % 4
            labels = map_of(seed) if kind else None
            guidance = 2.5 if kind == 3 else 1.0
            rows.append(RowParameters(seed, steps, sampler, 0.0, labels=labels, guidance=guidance))
        requests.append(rows)
    return requests


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder := tmp_path_factory.mktemp("toy") / "model_repository").mkdir()
    return write_pipeline(folder)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        server.probe()
        yield server


def test_mixed_rows_are_what_they_are_alone_bit_for_bit(server: TritonServer, repository: Path) -> None:
    reference, requests = Reference(repository), mixed(24)
    for rows, result in zip(requests, ask_together(server, requests), strict=True):
        latents, images = reference.rows(rows)
        np.testing.assert_array_equal(result.as_numpy("final_latent"), latents)
        np.testing.assert_array_equal(result.as_numpy("image"), images)
    with triton.InferenceServerClient(server.grpc_url) as client:
        (alone,) = requests[7][1:2]
        np.testing.assert_array_equal(
            ask(client, [alone]).as_numpy("image")[0],
            reference.rows([alone])[1][0],
        )


def test_labels_guidance_and_an_empty_map_each_change_the_image(server: TritonServer) -> None:
    empty = np.zeros((1, 240, 240), np.uint8)
    kinds = {
        "none": RowParameters(5, 6, "ddim", 0.0),
        "empty": RowParameters(5, 6, "ddim", 0.0, labels=empty),
        "map": RowParameters(5, 6, "ddim", 0.0, labels=map_of(1)),
        "other map": RowParameters(5, 6, "ddim", 0.0, labels=map_of(2)),
        "guided": RowParameters(5, 6, "ddim", 0.0, labels=map_of(1), guidance=3.0),
    }
    with triton.InferenceServerClient(server.grpc_url) as client:
        results = {name: ask(client, [row]) for name, row in kinds.items()}
    assert len({result.as_numpy("image").tobytes() for result in results.values()}) == len(kinds)
    records = {name: json.loads(result.as_numpy("provenance")[0, 0]) for name, result in results.items()}
    assert "labels_sha256" not in records["none"]
    assert len({record.get("labels_sha256") for record in records.values()}) == 4
    assert (records["map"]["guidance"], records["guided"]["guidance"]) == (1.0, 3.0)


@pytest.mark.parametrize("profile", ["cpu", "torch"])
def test_real_networks_with_several_steps_in_a_call(labelled_repository: Path, profile: str) -> None:
    """The answers are those of single steps in this process, to float32 rounding, and do not depend on the company."""
    engine, requests = Engine(labelled_repository), mixed(8)
    with TritonServer(labelled_repository, profile=profile) as server:
        server.probe()
        results = ask_together(server, requests)
        with triton.InferenceServerClient(server.grpc_url) as client:
            again = [ask(client, [row]) for row in requests[5]]
    for rows, result in zip(requests, results, strict=True):
        latents, _ = engine.generate(rows)
        np.testing.assert_allclose(result.as_numpy("final_latent"), latents, atol=2e-3)
    if profile == "cpu":
        together = results[5].as_numpy("image")
        np.testing.assert_array_equal(np.concatenate([one.as_numpy("image") for one in again]), together)


def test_weights_without_labels_say_so(small_repository: Path) -> None:
    row = RowParameters(1, 2, "ddim", 0.0, labels=map_of(1))
    with TritonServer(small_repository) as server:
        server.probe()
        with (
            triton.InferenceServerClient(server.grpc_url) as client,
            pytest.raises(
                triton.InferenceServerException, match="the weights of this server take none: leave them out"
            ),
        ):
            ask(client, [row])
