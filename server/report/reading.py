"""Reading a run's folder for its report."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fgvc_core.errors import DataError

LONGEST_PICTURE = 2_000_000
"""Pictures larger than this are left out of the page, in bytes."""
SMALL = 12_000
"""Up to so many bytes a picture stays as it is; a larger one (a photograph) becomes a JPEG."""


@dataclass(frozen=True)
class RunFolder:
    """What a run has left; parts that a run may lack are None.

    Attributes:
        folder: The run's folder.
        recipe: ``recipe.toml`` as text.
        metrics: ``metrics.json``.
        events: ``events.jsonl``.
        evaluation: ``evaluation.json``.
        comparison: ``compare.json``.
        partition: ``partition.json``.
    """

    folder: Path
    recipe: str
    metrics: dict[str, Any]
    events: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    comparison: dict[str, Any] | None
    partition: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> "RunFolder":
        """Read a folder.

        Raises:
            DataError: if ``recipe.toml`` or ``metrics.json`` is missing, or a file is
                damaged, naming it.
        """
        return cls(
            folder=folder,
            recipe=_text(folder / "recipe.toml"),
            metrics=_object(folder / "metrics.json"),
            events=_lines(folder / "events.jsonl"),
            evaluation=_optional(folder / "evaluation.json"),
            comparison=_optional(folder / "compare.json"),
            partition=_optional(folder / "partition.json"),
        )

    def picture(self, name: str) -> str | None:
        """A picture of the run as a ``data:`` address, or None if it is not there.

        Only files inside the run's folder are read, whatever the name says.
        """
        path = (self.folder / name).resolve()
        inside = path.is_relative_to(self.folder.resolve())
        if not inside or not path.is_file() or path.stat().st_size > LONGEST_PICTURE:
            return None
        data, kind = path.read_bytes(), "png"
        if len(data) > SMALL:
            packed = io.BytesIO()
            with Image.open(io.BytesIO(data)) as picture:
                picture.convert("RGB").save(packed, "JPEG", quality=85, optimize=True)
            data, kind = packed.getvalue(), "jpeg"
        return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"'{path}' cannot be read: {error}.",
            why="Without it there is nothing to report.",
            remedy="Name the folder of a run that has ended or was stopped, e.g. runs/demo.",
        ) from None


def _object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_text(path))
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(values, dict):
        raise _damaged(path, "it is no JSON object")
    return values


def _optional(path: Path) -> dict[str, Any] | None:
    return _object(path) if path.is_file() else None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    events = []
    lines = _text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            # A crash can tear the last line; anything before it is damage.
            if number == len(lines):
                break
            raise _damaged(path, f"line {number}: {error}") from None
    return events


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"'{path}' is damaged: {what}.",
        why="A report from half a file would mislead.",
        remedy="Restore the file, or resume the run to write it anew.",
    )
