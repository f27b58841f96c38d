"""Lesions where you ask for them: one seed with five label maps, in one picture.

python -m examples.lesions
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brats_ldm_client import Client
from brats_ldm_client.files import whole_file
from brats_ldm_client.labels import LabelLibrary, read_library
from brats_ldm_client.pictures import NOTICE, Pixels, as_rows, png, sheet, to_display
from brats_ldm_client.printing import forgiving_streams
from server.errors import ServerError
from server.process import TritonServer

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(__file__).with_name("label-maps.npz")
BRAIN = 0.15
"""Brighter pixels count as brain."""
GREY = np.array([0, 110, 170, 255], np.uint8)
"""Of each label in the picture of a map; the brain without a lesion is darker."""


def main() -> int:
    """Make the picture; returns the exit status."""
    parser = argparse.ArgumentParser("python -m examples.lesions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/lesions.png"), help="the picture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of all images (default: %(default)s)")
    parser.add_argument("--maps", type=int, default=5, help="number of label maps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=2.0, help="1 to 10 (default: %(default)s)")
    arguments = parser.parse_args()
    with forgiving_streams():
        try:
            with TritonServer(ROOT / "model_repository", profile="cpu") as server, Client(server.grpc_url) as client:
                client.wait_until_ready()
                picture = draw(client, read_library(LIBRARY), arguments.seed, arguments.maps, arguments.guidance)
        except ServerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(arguments.out) as temporary:
            temporary.write_bytes(png(picture, {}))
        print(f"seed {arguments.seed} with {arguments.maps} label maps: {arguments.out}")
    return 0


def draw(client: Client, library: LabelLibrary, seed: int, maps: int, guidance: float) -> Pixels:
    """The image of a seed without labels, and with maps from a library; each below its map."""
    plain = client.generate([seed]).images[0]
    chosen = suitable(library, plain, maps)
    # A seed is one image of a request, so each map has a request of its own.
    images = [client.generate([seed], labels=library.labels[i], guidance=guidance).images[0] for i in chosen]
    above = [(as_rows(np.zeros((240, 240), np.uint8)), "no map")]
    above += [(_map_picture(library.labels[i], library.brain[i]), f"map {i}") for i in chosen]
    below = [(to_display(image), f"seed {seed}") for image in (plain, *images)]
    return sheet([above, below], [(NOTICE, 230)])


def suitable(library: LabelLibrary, image: npt.NDArray[np.float32], count: int) -> list[int]:
    """The numbers of maps from slices with about the brain of `image` [240, 240], with lesions far from one another."""
    brain = image > BRAIN
    common = (library.brain & brain).sum((1, 2))
    dice = 2 * common / (library.brain.sum((1, 2)) + brain.sum())
    inside = ((library.labels > 0) & brain).sum((1, 2)) >= 0.95 * (library.labels > 0).sum((1, 2))
    near = np.argsort(np.where(inside, -dice, 0), kind="stable")[: 4 * count]
    centres = np.array([np.argwhere(library.labels[i]).mean(axis=0) for i in near])
    taken = [int(np.argmax([(library.labels[i] > 0).sum() for i in near]))]
    while len(taken) < count:
        distances: npt.NDArray[Any] = np.linalg.norm(centres[:, None] - centres[taken], axis=2).min(axis=1)
        taken.append(int(distances.argmax()))
    return [int(near[place]) for place in taken]


def _map_picture(labels: npt.NDArray[np.uint8], brain: npt.NDArray[np.bool_]) -> Pixels:
    return as_rows(np.maximum(GREY[labels], 45 * brain.astype(np.uint8)))


if __name__ == "__main__":
    sys.exit(main())
