"""Reads pictures of DICOM files (https://www.dicomstandard.org); needs pydicom (extra ``formats``).

A header names people. Of a file only what its pixels need is parsed, and the patient's id where a
site asks for it: no text of a header and none of pydicom's messages, which quote values, reaches an
error, a log or a cache. Files are not trusted: header and frame are read up to a stated size, and
deflated files, which may unfold into all of the memory, are refused.
"""

import io
import logging
import os
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgvc_core.data.decoding import wait_for_turn
from fgvc_core.data.depth import Depth
from fgvc_core.data.dicom_values import as_color, as_grey, unreadable
from fgvc_core.data.file_kinds import MARK_BYTES
from fgvc_core.data.reader import Frame, frame_place
from fgvc_core.data.soundness import MAX_FILE_BYTES, refuse_absurd_size
from fgvc_core.errors import DataError, FieldmarkError, missing_extra

# Both quote values of headers.
warnings.filterwarnings("ignore", module=r"pydicom\..*|fgvc_core\.data\.dicom.*")

MAX_HEADER_BYTES = 8 * 1024**2
"""Most bytes before the pixels; a few kilobytes are usual, and two megabytes for 1000 frames."""

_MAX_READS = 200_000
"""Most read calls of a parser, which takes about three for each element: a second or two."""

_MAX_RLE_BYTES = 32 * 1024**2
"""Longest RLE stream: pydicom decodes it in Python."""

_ROOM = 1024**2
_ITEM = 0xE000FFFE

_PIXELS = (
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration",
)  # fmt: skip
_VALUES = (
    "PixelPaddingValue", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept",
    "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_JPEG = (
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",
)  # fmt: skip
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED = "1.2.840.10008.1.2.1.99"
Read = TypeVar("Read")

_RAW = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


def can_read() -> bool:
    """Whether the extra is installed."""
    return find_spec("pydicom") is not None


def read_dicom(path: Path, depth: Depth | None, frame: Frame = "first") -> NDArray[np.uint8]:
    """One frame of a DICOM file, uint8 (height, width, 3).

    Args:
        path: The file.
        depth: A rule in place of the file's own window; None: the file's.
        frame: Which frame.

    Raises:
        DataError: if the file holds no picture that can be read, or has more than 8 bits and no
            window, or the extra is not installed.
        MemoryError: if memory ran out.
        OSError: if the file cannot be opened or read.
    """
    return _careful(path, lambda: _read(path, depth, frame))


def patient_of(path: Path) -> str:
    """Text that is equal for pictures of one patient: issuer and id; empty if there is none.

    It must never be shown, stored or sent.

    Raises:
        DataError: if the file is damaged.
        OSError: if it cannot be opened or read.
    """

    def read() -> str:
        with path.open("rb") as file:
            header = _header(path, file, ("PatientID", "IssuerOfPatientID"))
        own = str(header.values.get("PatientID", "") or "").strip()
        issuer = str(header.values.get("IssuerOfPatientID", "") or "").strip()
        return f"{issuer}\0{own}" if own else ""

    return _careful(path, read)


def frame_count(path: Path) -> int:
    """Number of frames, at least 1; 1 if it cannot be read."""
    try:
        with path.open("rb") as file:
            return _count(_header(path, file, ("NumberOfFrames",)).values)
    except Exception:
        # pydicom raises errors of any type; what is wrong is told where the file is decoded.
        return 1


def size_of(path: Path) -> tuple[int, int]:
    """Width and height by the header.

    Raises:
        Exception: of any type, if it cannot be read.
    """
    with path.open("rb") as file:
        values = _header(path, file, ("Rows", "Columns")).values
    return int(values.Columns), int(values.Rows)


@dataclass(frozen=True)
class _Header:
    """What was parsed: the elements, the transfer syntax, and where the pixels' element begins."""

    values: Any
    syntax: str
    implicit: bool
    little: bool


def _careful(path: Path, read: Callable[[], Read]) -> Read:
    """Run a reader; whatever pydicom raises becomes an error that quotes nothing of the file."""
    try:
        return read()
    except ImportError:
        raise _without_extra(path) from None
    except (FieldmarkError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        kind = type(error).__name__
    except Exception as error:
        kind = type(error).__name__
    raise unreadable(path, f"its DICOM data are damaged ({kind})") from None


def _without_extra(path: Path) -> DataError:
    missing = missing_extra("formats", f"Reading '{path}', a DICOM file,")
    return DataError(missing.what, remedy=missing.remedy)


def _read(path: Path, depth: Depth | None, frame: Frame) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        header = _header(path, file, (*_PIXELS, *_VALUES))
        values = header.values
        if any(name not in values for name in ("Rows", "Columns", "PhotometricInterpretation")):
            raise unreadable(path, "it holds no picture (a report, a plan or a directory)")
        size = (int(values.Columns), int(values.Rows))
        # Before anything of that size is read.
        refuse_absurd_size(path, size)
        wait_for_turn(size[0] * size[1])
        _refuse_samples(path, values)
        place = frame_place(frame, _count(values))
        stored = _frame(path, file, header, place)
    pixels = _decoded(path, header, stored)
    kind = _kind(values)
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        return as_grey(path, pixels, values, depth, place, inverted=kind == "MONOCHROME1")
    return as_color(pixels, values)


class _Bounded(io.RawIOBase):
    """A file of which a parser may read a stated number of bytes, in a stated number of calls."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._bytes, self._calls = file, most, _MAX_READS

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; ValueError beyond what may be read."""
        found = self._file.read(min(size, self._bytes + 1) if size >= 0 else self._bytes + 1)
        self._bytes -= len(found)
        self._calls -= 1
        if self._bytes < 0 or self._calls < 0:
            raise ValueError("too long")
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of the file."""
        return self._file.tell()


@cache
def _pydicom() -> Any:
    """The library, silent: its warnings and log records quote values of headers."""
    import pydicom
    import pydicom.encaps
    import pydicom.pixels

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _header(path: Path, file: BinaryIO, names: tuple[str, ...]) -> _Header:
    """Parse the named elements; the file is left at the element of the pixels."""
    library = _pydicom()
    if file.read(MARK_BYTES)[128:] != b"DICM":
        raise unreadable(path, "it has no mark of DICOM after 128 bytes")
    meta = library.filereader._read_file_meta_info(_Bounded(file, MAX_HEADER_BYTES))
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax == _DEFLATED:
        raise unreadable(path, "it is deflated", "Write it again, for instance with 'dcmconv +te'.")
    file.seek(0)
    values = library.dcmread(
        _Bounded(file, MAX_HEADER_BYTES), stop_before_pixels=True, specific_tags=list(names)
    )
    implicit, little = values.original_encoding
    return _Header(values, syntax, bool(implicit), bool(little))


def _count(values: Any) -> int:
    return max(int(values.get("NumberOfFrames", 1) or 1), 1)


def _refuse_samples(path: Path, values: Any) -> None:
    samples, bits = int(values.get("SamplesPerPixel", 1)), int(values.get("BitsAllocated", 0))
    if samples not in (1, 3) or bits not in (8, 16, 32) or (samples == 3 and bits != 8):
        raise unreadable(
            path,
            f"it has {samples} samples a pixel of {bits} bits",
            "Convert it to gray of 8 to 32 bits, or color of 8.",
        )


def _frame(path: Path, file: BinaryIO, header: _Header, place: int) -> bytes:
    """The frame at ``place`` as it is stored: its samples, or a JPEG, JPEG 2000 or RLE stream."""
    order = "<" if header.little else ">"
    if struct.unpack(f"{order}HH", file.read(4)) != (0x7FE0, 0x0010):
        raise unreadable(path, "it holds no pixels of whole numbers")
    if not header.implicit:
        # The type of the values; its own length is then one of 32 bits (PS3.5, section 7.1.2).
        file.read(4)
    (length,) = struct.unpack(f"{order}I", file.read(4))
    values = header.values
    whole = int(values.Rows) * int(values.Columns) * int(values.get("SamplesPerPixel", 1))
    whole = whole * int(values.BitsAllocated) // 8
    if header.syntax in _RAW:
        need = whole // 3 * 2 if _kind(values) == "YBR_FULL_422" else whole
        start = place * need
        file.seek(start, os.SEEK_CUR)
        frame = file.read(min(need, max(length - start, 0)))
        if len(frame) < need:
            raise unreadable(path, "it is cut short")
        return frame + b"\0" * (need % 2)
    if header.syntax not in (*_JPEG, _RLE):
        raise unreadable(
            path,
            "its pixels are compressed in a way that is not read (JPEG, JPEG 2000 and RLE are)",
            "Write it uncompressed, for instance with 'dcmdjpeg' or 'gdcmconv --raw'.",
        )
    most = min(2 * whole + _ROOM, _MAX_RLE_BYTES if header.syntax == _RLE else MAX_FILE_BYTES)
    start = file.tell()
    tag, table = struct.unpack("<II", file.read(8))
    if tag != _ITEM or table > _ROOM:
        raise unreadable(path, "its table of frames is damaged")
    file.seek(start)
    found: bytes = _pydicom().encaps.get_frame(
        _Bounded(file, min((place + 1) * most, MAX_FILE_BYTES)),
        place,
        number_of_frames=_count(values),
    )
    if len(found) > most:
        raise unreadable(path, "a frame is longer than its samples can be")
    return found


def _decoded(path: Path, header: _Header, frame: bytes) -> NDArray[Any]:
    """Samples of one frame, (height, width) or (height, width, 3); YBR becomes RGB."""
    library, values = _pydicom(), header.values
    size = (int(values.Columns), int(values.Rows))
    if header.syntax in _JPEG:
        # The stream has a size of its own, which a decoder would believe.
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            if image.size != size:
                raise unreadable(path, "its pixels have another size than its header says")
    one = library.Dataset()
    for name in _PIXELS:
        if name in values:
            setattr(one, name, values[name].value)
    one.NumberOfFrames = 1
    one.file_meta = library.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = library.uid.UID(header.syntax)
    one.PixelData = frame if header.syntax in _RAW else library.encaps.encapsulate([frame])
    one["PixelData"].VR = "OB" if int(values.BitsAllocated) == 8 else "OW"
    if header.syntax not in _RAW:
        one["PixelData"].is_undefined_length = True
    one.set_original_encoding(header.implicit, header.little)
    pixels: NDArray[Any] = library.pixels.pixel_array(one)
    return pixels


def _kind(values: Any) -> str:
    return str(values.PhotometricInterpretation).strip()
