"""The output `png` of a real tritonserver: the client's picture of the same image, over gRPC, on a stream and alone."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL.PngImagePlugin import PngImageFile

from brats_ldm_client import Client
from server.process import TritonServer
from support.faulty_networks import write_faulty
from support.serving import infer, scrape, tensors, triton_counted, wait_until_idle

pytestmark = pytest.mark.slow

ROWS: dict[str, Any] = {"seed": [7, -(2**63), 9], "steps": [2, 3, 4], "sampler": ["ddim", "dpmpp_2m", "ddpm"]}


def content(file: Any) -> tuple[bytes, dict[str, str]]:
    """The pixels of a PNG file, and its text."""
    with PngImageFile(file) as image:
        return image.tobytes(), image.text


def served(result: triton.InferResult) -> list[tuple[bytes, dict[str, str]]]:
    """The same of each row of an answer."""
    rows = result.as_numpy("png")
    assert rows.shape[1:] == (1,)
    return [content(io.BytesIO(base64.b64decode(text, validate=True))) for text in rows[:, 0]]


def clients(client: Client, folder: Path, rows: dict[str, Any] = ROWS) -> list[tuple[bytes, dict[str, str]]]:
    """The same of the files that the client writes of these rows, each made alone."""
    pictures = []
    for seed, steps, sampler in zip(rows["seed"], rows["steps"], rows["sampler"], strict=True):
        made = client.generate(seeds=[seed], steps=steps, sampler=sampler)
        pictures.append(content(made.save(folder, "png", contact_sheet=False)[0]))
    return pictures


def test_every_row_has_the_clients_picture(client: Client, raw: triton.InferenceServerClient, tmp_path: Path) -> None:
    both = infer(raw, "png", "image", **ROWS)
    assert served(both) == clients(client, tmp_path)
    assert np.array_equal(both.as_numpy("image"), infer(raw, "image", **ROWS).as_numpy("image"))


def test_the_picture_alone(
    client: Client, raw: triton.InferenceServerClient, small_server: TritonServer, tmp_path: Path
) -> None:
    before = triton_counted(raw, small_server)["vae_decoder"].rows
    alone = infer(raw, "png", **ROWS)
    assert triton_counted(raw, small_server)["vae_decoder"].rows - before == 3
    assert [output.name for output in alone.get_response().outputs] == ["png"]
    assert served(alone) == clients(client, tmp_path)


def test_the_last_answer_of_a_stream_has_it(client: Client, raw: triton.InferenceServerClient, tmp_path: Path) -> None:
    answers: Queue[Any] = Queue()
    raw.start_stream(lambda result, error: answers.put(error or result))
    outputs = [triton.InferRequestedOutput(name) for name in ("step", "png")]
    raw.async_stream_infer("mri_ldm_stream", tensors(**ROWS, preview_every=[1, 1, 1]), outputs=outputs)
    got = [answers.get(timeout=30)]
    while got[-1].as_numpy("png") is None:
        got.append(answers.get(timeout=30))
    raw.stop_stream()
    assert len(got) >= 5, "four steps come first"
    assert all(answer.as_numpy("step") is not None for answer in got[:-1])
    assert served(got[-1]) == clients(client, tmp_path)


def test_the_most_rows_at_once(raw: triton.InferenceServerClient) -> None:
    many = infer(raw, "png", "image", "final_latent", "provenance", seed=list(range(64)), steps=[1] * 64)
    pictures = served(many)
    assert [text["seed"] for _, text in pictures] == [str(seed) for seed in range(64)]
    assert pictures[63] == served(infer(raw, "png", seed=[63], steps=[1]))[0]


def test_a_picture_that_cannot_be_made_fails_its_request_alone(tmp_path: Path) -> None:
    """Here because half a character in the name of the weights has no place in a file's text."""
    repository = write_faulty(tmp_path / "repository")
    for model in ("mri_ldm", "mri_ldm_stream"):
        record = repository / model / "1" / "model.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"name": "half \ud800"}))
    with TritonServer(repository) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        known = infer(raw, "image", seed=[1], steps=[2]).as_numpy("image")
        with pytest.raises(triton.InferenceServerException, match=r"\[INTERNAL\].*surrogates not allowed"):
            infer(raw, "png", seed=[1], steps=[2])
        assert np.array_equal(infer(raw, "image", seed=[1], steps=[2]).as_numpy("image"), known)
        wait_until_idle(server)
        now = scrape(server)
        assert (now["mri_ldm_errors_total"], now["mri_ldm_finished_requests_total"]) == (1, 2)
