"""Reading of a run's folder for its report: its files, and traffic by site."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fgvc_core.drawing.axes import count_ticks
from fgvc_core.errors import DataError
from fgvc_core.run_paths import RECIPE, no_run
from fieldmark.server.report.charts import cells

LONGEST_PICTURE = 2_000_000
"""Larger pictures are left out of the page, in bytes."""
SMALL = 12_000
"""Pictures up to this size, in bytes, are embedded unchanged; larger ones (photographs) become
JPEGs."""
GRID_SITES, GRID_COLUMNS = 40, 60
"""Largest grid of sites and rounds; with more rounds, several share a column."""

Event = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The files of a run; optional ones are None if missing.

    Attributes:
        folder: The run's folder.
        recipe: ``recipe.toml`` as text.
        metrics: ``metrics.json``.
        events: ``events.jsonl``.
        evaluation: ``evaluation.json``.
        comparison: ``compare.json``.
        partition: ``partition.json``.
        data: ``data.json``.
    """

    folder: Path
    recipe: str
    metrics: dict[str, Any]
    events: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    comparison: dict[str, Any] | None
    partition: dict[str, Any] | None
    data: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> "RunFolder":
        """Read a folder.

        Raises:
            ConfigurationError: if ``recipe.toml`` or ``metrics.json`` is missing.
            DataError: if a file is damaged.
        """
        for name in (RECIPE, "metrics.json"):
            if not (folder / name).is_file():
                raise no_run(folder, [name], "run to report")
        return cls(
            folder=folder,
            recipe=_text(folder / RECIPE),
            metrics=_object(folder / "metrics.json"),
            events=read_events(folder / "events.jsonl"),
            evaluation=_optional(folder / "evaluation.json"),
            comparison=_optional(folder / "compare.json"),
            partition=_optional(folder / "partition.json"),
            data=_optional(folder / "data.json"),
        )

    def picture(self, name: str) -> str | None:
        """A picture of the run as a ``data:`` URL, or None if it is missing.

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
            f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}.",
            why="Without it there is nothing to report.",
            remedy="Take it back from a copy of the run's folder.",
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


def read_events(path: Path) -> list[Event]:
    """The events of ``events.jsonl``; none if the file is missing.

    Raises:
        DataError: if a line before the last is damaged.
    """
    if not path.is_file():
        return []
    events = []
    lines = _text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            # A crash can truncate the last line; an invalid line before it is damage.
            if number == len(lines):
                break
            raise _damaged(path, f"line {number}: {error}") from None
    return events


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"'{path}' is damaged: {what}.",
        why="A report from half a file would mislead.",
        remedy="Restore the file, or resume the run to write it again.",
    )


def traffic(events: Sequence[Event], sites: Sequence[str], rounds: int) -> str | None:
    """Bytes of each site in each round as a heat map; None without a reply.

    Args:
        events: Of the run.
        sites: Their names; the first forty are shown.
        rounds: How many were run; the closing evaluation counts toward the last.
    """
    shown = list(sites[:GRID_SITES])
    wide = max(-(-max(rounds, 1) // GRID_COLUMNS), 1)
    columns = -(-max(rounds, 1) // wide)
    moved: dict[tuple[str, int], int] = {}
    refused: set[tuple[str, int]] = set()
    for event in events:
        if event.get("event") not in ("reply", "late_reply") or event.get("site") not in shown:
            continue
        at = (event["site"], min(max(int(event.get("round") or 1) - 1, 0) // wide, columns - 1))
        moved[at] = moved.get(at, 0) + int(event.get("bytes_up") or 0)
        moved[at] += int(event.get("bytes_down") or 0)
        if event.get("accepted") is False:
            refused.add(at)
    if not moved:
        return None
    labels = [
        _rounds(column * wide + 1, min((column + 1) * wide, rounds)) for column in range(columns)
    ]
    ticks = [((number - 1) // wide, str(number)) for number in count_ticks(rounds, 5)]
    return cells("Bytes by round and site", shown, labels, moved, refused, ticks)


def _rounds(first: int, last: int) -> str:
    return f"round {first}" if last <= first else f"rounds {first} to {last}"
