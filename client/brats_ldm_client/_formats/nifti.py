"""NIfTI with the record in a header extension, and a JSON sidecar with the field names of BIDS."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from ..pictures import NOTICE, SOURCE_TYPE
from .record import core, describe


def nifti(image: npt.NDArray[np.float32], record: Mapping[str, Any]) -> bytes:
    """One slice as .nii.gz: raw values, 1 mm RAS voxels, x and y centred on 0. The height z is unknown: 0."""
    return _volume(image.astype(np.float32), record, 1.0)


def nifti_labels(labels: npt.NDArray[np.uint8], record: Mapping[str, Any]) -> bytes:
    """The label map of a slice, on the same grid."""
    return _volume(labels, record, 3.0)


def _volume(plane: npt.NDArray[Any], record: Mapping[str, Any], largest: float) -> bytes:
    affine = np.eye(4)
    affine[:2, 3] = [-(size - 1) / 2 for size in plane.shape]
    volume = nibabel.Nifti1Image(plane[:, :, None], affine)  # type: ignore[no-untyped-call]
    header: Any = volume.header
    header.set_xyzt_units("mm")
    header.set_intent("none", name="SYNTHETIC")
    header["descrip"] = describe(record).encode()
    header["cal_min"], header["cal_max"] = 0.0, largest
    text = json.dumps({"notice": NOTICE, "digital_source_type": SOURCE_TYPE, **core(record)}, sort_keys=True)
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, buffer, mtime=0) as stream:  # a time would make each file differ
        stream.write(volume.to_bytes())
    return buffer.getvalue()


def sidecar(record: Mapping[str, Any]) -> bytes:
    """The JSON file beside it. Fields that BIDS does not define are the record's, spelled as BIDS spells fields."""
    kept = core(record)
    made_by = {
        key: kept[known] for key, known in (("Name", "model_name"), ("Version", "model_digest")) if known in kept
    }
    fields = {
        "Description": f"{NOTICE}. A FLAIR slice of the brain from a latent diffusion model, not of a patient.",
        "Modality": "MR",
        "BodyPart": "BRAIN",
        "SpatialReference": "orig",  # a space of its own: there is no image that it is aligned with
        "Resolution": "1 x 1 mm, one slice of unknown height",
        "Units": "arbitrary",
        "GeneratedBy": [{**made_by, "Description": describe(kept)}],
        "DigitalSourceType": SOURCE_TYPE,
        **{"".join(map(str.capitalize, key.split("_"))): value for key, value in kept.items()},
    }
    return (json.dumps(fields, indent=1) + "\n").encode()


def read_nifti(path: Path) -> npt.NDArray[Any]:
    """The pixels [x, y] of an image, float32, or of a label map, uint8."""
    volume: Any = nibabel.load(path)
    return np.ascontiguousarray(np.asarray(volume.dataobj)[:, :, 0])
