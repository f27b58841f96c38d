"""Request-level batching: LitServe with max_batch_size around PyTorch with fused attention.

python -m benchmarks.serving.rivals.litserve_server PORT WEIGHTS SNAPSHOT ROWS
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve

from benchmarks.serving.rivals.loops import diffusers_loop

BATCH_TIMEOUT_S = 0.05


class Images(litserve.LitAPI):
    """{"seed", "steps"} -> {"image": base64 of float32 [240, 240]}; requests of as many steps go together."""

    def __init__(self, weights: str, snapshot: Path, rows: int) -> None:
        super().__init__(max_batch_size=rows, batch_timeout=BATCH_TIMEOUT_S)
        self._arguments = weights, snapshot, rows

    def setup(self, device: str) -> None:
        self._generate = diffusers_loop(*self._arguments)

    def decode_request(self, request: dict[str, int]) -> tuple[int, int]:
        return request["seed"], request["steps"]

    def batch(self, inputs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        return list(inputs)

    def predict(self, inputs: list[tuple[int, int]]) -> list[Any]:
        images: list[Any] = [None] * len(inputs)
        for steps in {steps for _, steps in inputs}:
            places = [place for place, (_, wanted) in enumerate(inputs) if wanted == steps]
            made = self._generate([inputs[place][0] for place in places], steps)
            for place, image in zip(places, made, strict=True):
                images[place] = image
        return images

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, str]:
        return {"image": base64.b64encode(output.tobytes()).decode()}


def main() -> None:
    """Serve until killed."""
    port, weights, snapshot, rows = sys.argv[1:]
    api = Images(weights, Path(snapshot), int(rows))
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False)


if __name__ == "__main__":
    main()
