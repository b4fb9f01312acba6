"""Pictures that a person names on a command line: files, and folders with all below them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.files import PICTURE_ENDINGS, FileSource
from fgvc_core.errors import DataError


class NamedPictures:
    """N pictures by their paths, in order, each once.

    Args:
        paths: Files, and folders that are searched for files with a picture's ending.

    Attributes:
        paths: N files.

    Raises:
        DataError: for a path that is not there, or if there is no picture at all.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(dict.fromkeys(_found(paths)))
        if not self.paths:
            raise DataError(
                "There is no picture in what was named.",
                why=f"Looked for files that end in {', '.join(sorted(PICTURE_ENDINGS))}.",
                remedy="Name files, or folders that hold some.",
            )
        names = [str(path.absolute().relative_to("/")) for path in self.paths]
        self._source = FileSource(Path("/"), names)

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, position: int, size: int | None = None) -> NDArray[np.uint8]:
        """uint8 (height, width, 3); see :meth:`FileSource.picture`."""
        return self._source.picture(position, size)


def _found(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            below = (p for p in path.rglob("*") if p.suffix.lower() in PICTURE_ENDINGS)
            yield from sorted(p for p in below if p.is_file())
        elif path.is_file():
            yield path
        else:
            raise DataError(f"There is no picture or folder at '{path}'.", remedy="Check the path.")
