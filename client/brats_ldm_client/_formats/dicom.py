"""DICOM: one MR image of 16 bits a file. Needs pydicom.

The images of one set of weights and parameters are one series. All identifiers are functions of the content: the same
image gets the same identifiers, and any other image gets others.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._extras import need
from ..pictures import NOTICE, SOURCE_TYPE, as_rows, from_rows
from .levels import LARGEST, scaling, stored_levels
from .record import core, describe, how_words

_NAME = "brats-ldm-triton"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, _NAME)
_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


def dicom(image: npt.NDArray[np.float32], record: Mapping[str, Any]) -> bytes:
    """One slice as an MR image, 1 mm pixels, in the orientation of a picture. The height is unknown: 0."""
    pydicom = need("pydicom")
    kept = core(record)
    rows = as_rows(stored_levels(image, 16)).astype("<u2")
    series = {key: value for key, value in kept.items() if key not in ("seed", "labels_sha256")}
    identifier = _uid("image", kept, hashlib.sha256(rows.tobytes()).hexdigest())
    data = pydicom.Dataset()
    for keyword, value in {
        **_who(series),
        **_what(kept, identifier),
        **_where(rows.shape),
        **_pixels(rows),
    }.items():
        setattr(data, keyword, value)
    data.ContributingEquipmentSequence = [_equipment(pydicom, kept)]
    data.RealWorldValueMappingSequence = [_values(pydicom)]
    data.file_meta = _file_meta(pydicom, identifier)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def _uid(kind: str, *content: object) -> str:
    """An identifier below 2.25, where any UUID may stand as a number; here one made from a name."""
    name = json.dumps([kind, *content], sort_keys=True)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def _line(value: object) -> str:
    """As DICOM's short texts are: ASCII, at most 64 characters, and no backslash, which would separate two values."""
    return str(value).encode("ascii", "replace").decode().replace("\\", "/")[:64]


def _who(series: Mapping[str, Any]) -> dict[str, Any]:
    """The patient that does not exist, the study and the series. Empty fields must be there, and nothing fits them."""
    study = _uid("study", series)
    short = study.removeprefix("2.25.")[:10]
    return {
        "PatientName": "SYNTHETIC^NO PATIENT",
        "PatientID": f"SYNTHETIC-{short}",
        "PatientBirthDate": "",
        "PatientSex": "",
        "PatientComments": NOTICE,
        "StudyInstanceUID": study,
        "StudyID": short,
        "StudyDate": "",
        "StudyTime": "",
        "StudyDescription": "SYNTHETIC brain slices",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesInstanceUID": _uid("series", series),
        "SeriesNumber": 1,
        "SeriesDescription": _line(f"SYNTHETIC FLAIR {how_words(series)}"),
        "FrameOfReferenceUID": _uid("frame of reference", series),
        "PositionReferenceIndicator": "",
        "Manufacturer": _NAME,
        "ManufacturerModelName": _line(series.get("model_name", "")),
    }


def _what(kept: Mapping[str, Any], identifier: str) -> dict[str, Any]:
    """The image and how it was made. RM is research mode: no scanner was involved."""
    return {
        "SOPClassUID": _MR_IMAGE,
        "SOPInstanceUID": identifier,
        "SyntheticData": "YES",
        "Modality": "MR",
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "InstanceNumber": kept["seed"] % 2**31,
        "ImageComments": NOTICE,
        "DerivationDescription": f"{NOTICE}. Made from noise by a latent diffusion model: {describe(kept)}. "
        f"{scaling(16)}. {SOURCE_TYPE}",
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "2D",
        "RepetitionTime": "",
        "EchoTime": "",
        "EchoTrainLength": "",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
    }


def _where(shape: tuple[int, ...]) -> dict[str, Any]:
    """DICOM's axes point to the patient's left and back, as the columns and rows of a picture do."""
    height, width = shape
    return {
        "BodyPartExamined": "BRAIN",
        "PatientPosition": "HFS",
        "PixelSpacing": [1, 1],
        "SliceThickness": 1,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-(width - 1) / 2, -(height - 1) / 2, 0],
    }


def _pixels(rows: npt.NDArray[np.uint16]) -> dict[str, Any]:
    height, width = rows.shape
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": height,
        "Columns": width,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "WindowCenter": 32768,
        "WindowWidth": 65536,
        "WindowCenterWidthExplanation": "values 0 to 1",
        "PixelData": rows.tobytes(),
    }


def _equipment(pydicom: Any, kept: Mapping[str, Any]) -> Any:
    """What made the image, as text and as the record."""
    item = pydicom.Dataset()
    item.PurposeOfReferenceCodeSequence = [_code(pydicom, "109102", "DCM", "Processing Equipment")]
    item.Manufacturer = _NAME
    item.ManufacturerModelName = _line(kept.get("model_name", ""))
    item.SoftwareVersions = _line(str(kept.get("model_digest", "")).removeprefix("sha256:"))
    item.ContributionDescription = json.dumps({"digital_source_type": SOURCE_TYPE, **kept}, sort_keys=True)
    return item


def _values(pydicom: Any) -> Any:
    """The scaling where a program finds it. MR images have no Rescale Slope."""
    item = pydicom.Dataset()
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = 0, LARGEST[16]
    item.RealWorldValueIntercept, item.RealWorldValueSlope = 0.0, 1 / LARGEST[16]
    item.LUTExplanation, item.LUTLabel = scaling(16), "VALUE"
    item.MeasurementUnitsCodeSequence = [_code(pydicom, "1", "UCUM", "no units")]
    return item


def _code(pydicom: Any, value: str, scheme: str, meaning: str) -> Any:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _file_meta(pydicom: Any, identifier: str) -> Any:
    """Whole, because pydicom would add its own version to what is missing."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = _MR_IMAGE
    meta.MediaStorageSOPInstanceUID = identifier
    meta.TransferSyntaxUID = _EXPLICIT_LITTLE_ENDIAN
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "BRATS_LDM"
    return meta


def read_dicom(path: Path) -> npt.NDArray[np.uint16]:
    pixels: npt.NDArray[np.uint16] = need("pydicom").dcmread(path).pixel_array
    return from_rows(pixels)
