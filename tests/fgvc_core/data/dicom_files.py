"""Small DICOM files made with pydicom, whose headers name somebody."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the 'formats' extra")

SECRET = "SENTINEL"
"""In every text of the headers, so that a test can look for it in what a command wrote."""


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    syntax: str = "1.2.840.10008.1.2.1",
    data: bytes | None = None,
    **elements: Any,
) -> Path:
    """A file of one frame (H, W) or (H, W, 3), or of several (F, H, W).

    Args:
        path: The file.
        pixels: Samples of 8, 16 or 32 bits.
        syntax: Transfer syntax; for a compressed one give ``data``.
        data: Value of PixelData; by default the samples.
        elements: Further elements by keyword; None takes one out.
    """
    color = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName = f"{SECRET}^Jane"
    dataset.PatientID = f"{SECRET}-17"
    dataset.InstitutionName = f"{SECRET} hospital"
    dataset.StudyDescription = f"{SECRET} study"
    dataset.Rows, dataset.Columns = pixels.shape[:2] if color else pixels.shape[-2:]
    if pixels.ndim == 3 and not color:
        dataset.NumberOfFrames = len(pixels)
    bits = pixels.dtype.itemsize * 8
    values = {
        "SamplesPerPixel": 3 if color else 1,
        "PhotometricInterpretation": "RGB" if color else "MONOCHROME2",
        "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"PlanarConfiguration": 0} if color else {}), **elements,
    }  # fmt: skip
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
        elif name in dataset:
            delattr(dataset, name)
    dataset.PixelData = pixels.tobytes() if data is None else data
    dataset["PixelData"].VR = "OB" if bits == 8 or data is not None else "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def ramp() -> np.ndarray:
    """Twelve bits: 0 to 4080 from left to right, uint16 (20, 256)."""
    return np.tile(np.arange(0, 4096, 16, dtype=np.uint16)[None], (20, 1))
