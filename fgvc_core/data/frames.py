"""Further frames of picture files (animations, stacks, burst shots): counted, and not read."""

from pathlib import Path

from PIL import Image

from fgvc_core.data.dicom import frame_count
from fgvc_core.data.file_kinds import is_dicom
from fgvc_core.data.files import FileSource
from fgvc_core.data.soundness import FORMATS, refuse_unsound_file
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.unused import FURTHER_FRAMES

_SEVERAL = (".avif", ".gif", ".tif", ".tiff", ".webp")
_START_BYTES = 1 << 16


def count_further_frames(table: ExampleTable) -> None:
    """Add the further frames of a table's files to its ``unused``; only headers are read."""
    source = table.source
    if not isinstance(source, FileSource) or FURTHER_FRAMES in table.unused:
        return
    for position, row in enumerate(table.rows.tolist()):
        further = further_frames(source.real_root, source.path(row))
        if further > 0:
            name = f"{table.ids[position]} ({further:,} further)"
            table.unused.add(FURTHER_FRAMES, name, count=further)


def further_frames(root: str, path: Path) -> int:
    """Frames of a file after its first; 0 also if it cannot be read.

    Args:
        root: Resolved folder that the file must not lead out of; "/": any.
        path: The file.
    """
    try:
        refuse_unsound_file(root, path)
        if is_dicom(path):
            return frame_count(path) - 1
        if path.suffix.lower() not in _SEVERAL:
            with path.open("rb") as file:
                start = file.read(_START_BYTES)
            # An animated PNG's control chunk; the index of a phone's multi-picture JPEG.
            if b"acTL" not in start and b"MPF\0" not in start:
                return 0
        with Image.open(path, formats=FORMATS) as image:
            return int(getattr(image, "n_frames", 1)) - 1
    except Exception:
        # Whatever is wrong with the file is told where it is decoded.
        return 0
