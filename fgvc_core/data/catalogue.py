"""Registry of data sets by name, each a function from settings to a table of examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from fgvc_core.components import DATA_SETS
from fgvc_core.configuration import Settings
from fgvc_core.data.files import FileSource, first_few, missing_pictures
from fgvc_core.data.guessing import where_they_are
from fgvc_core.data.labels import LEFT_OUT, NO_LABEL, LeftOut
from fgvc_core.data.settings import PATIENT, WITH_PATIENTS, DataSettings
from fgvc_core.data.table import UNLABELLED, ExampleTable
from fgvc_core.data.unused import refuse_lost
from fgvc_core.errors import ConfigurationError, DataError, nearest

Knowledge = Literal["taxonomy", "attributes"]
"""What a kind of data set knows about its classes, independent of its pictures."""

PUBLISHED = frozenset({"fieldmarks", "cub", "cars", "aircraft", "ham10000"})
"""Names of data sets whose pictures are publicly available."""

Builder = Callable[[DataSettings, Path], ExampleTable]
TolerantBuilder = Callable[[DataSettings, Path, LeftOut | None], ExampleTable]

_KNOWS: dict[str, tuple[Knowledge, ...]] = {}
_TOLERANT: set[str] = set()


def dataset(
    name: str, *, knows: tuple[Knowledge, ...] = (), settings: type[Settings] | None = None
) -> Callable[[Builder], Builder]:
    """Register a data set under a name for ``data.name``.

    The function gets ``[data]`` and a cache folder. It need not check that picture files
    exist: ``load_table`` does.

    Args:
        name: For ``data.name``, and for ``kind`` in a site's settings.
        knows: What tables of this kind know about their classes from separate files. It must
            never be derived from rows, so that it depends on no picture.
        settings: Model of the data set's own table, ``[data.NAME]``; ``settings.own(MODEL)``
            reads it.

    >>> @dataset("my-camera-traps")
    ... def build(settings: DataSettings, cache: Path) -> ExampleTable: ...
    """

    def register(build: Builder) -> Builder:
        _KNOWS[name] = knows
        DATA_SETS.register(name, settings)(build)
        return build

    return register


def tolerant_dataset(
    name: str, *, knows: tuple[Knowledge, ...] = (), settings: type[Settings] | None = None
) -> Callable[[TolerantBuilder], TolerantBuilder]:
    """Register a data set whose builder can leave faulty rows out.

    The function gets a record as its third argument, or None. With a record it does not raise
    for faults of single rows: it gives each such row the label ``LEFT_OUT`` (or omits the
    row) and records it. Whether a row is left out, and what it becomes, must depend on that
    row and its picture alone: differential privacy relies on this.

    Args:
        name: See :func:`dataset`.
        knows: See :func:`dataset`.
        settings: See :func:`dataset`.
    """

    def register(build: TolerantBuilder) -> TolerantBuilder:
        _KNOWS[name] = knows
        _TOLERANT.add(name)
        DATA_SETS.register(name, settings)(build)
        return build

    return register


def knowledge_by_kind(name: str) -> tuple[Knowledge, ...]:
    """What every table of a kind knows about its classes; reads no data."""
    if name in DATA_SETS.names():
        DATA_SETS.get(name)
    return _KNOWS.get(name, ())


def dataset_names() -> tuple[str, ...]:
    """Valid values of ``data.name``, sorted."""
    return tuple(sorted(DATA_SETS.names()))


def may_be_shown(settings: DataSettings) -> bool:
    """Whether a report may show pictures of a data set."""
    return settings.name in PUBLISHED if settings.public is None else settings.public


def load_table(
    settings: DataSettings,
    cache: Path,
    *,
    require_pictures: bool = True,
    left_out: LeftOut | None = None,
) -> ExampleTable:
    """Load the table of examples that ``[data]`` describes, on this machine.

    Args:
        settings: ``[data]``.
        cache: Cache folder; created when needed.
        require_pictures: False accepts a table with missing picture files
            (``fieldmark data check`` counts them).
        left_out: If given, unusable rows are left out and recorded here instead of raising, so
            that no single row decides whether this function returns. Faults of the whole (no
            such folder, manifest or column) still raise. A kind of data set that cannot leave
            rows out is read strictly.

    Raises:
        ConfigurationError: for an unknown name, or if ``data.path`` is needed and missing.
        DataError: if the data are missing, damaged or contradictory, or pictures outside
            the pool have no label.
    """
    known = dataset_names()
    if settings.name not in known:
        raise ConfigurationError(
            f"data.name = '{settings.name}' is not a known data set.",
            why=f"Known are: {', '.join(known)}.",
            remedy=nearest(settings.name, known, 1) or "Set data.name to one of these.",
        )
    if settings.subject_column == PATIENT and settings.name not in WITH_PATIENTS:
        raise ConfigurationError(
            f"data.subject_column = '{PATIENT}' is not for data.name = '{settings.name}'.",
            why=f"Files of patients are read by {', '.join(WITH_PATIENTS)}.",
            remedy="Take it out.",
        )
    build = DATA_SETS.get(settings.name).make
    if left_out is not None and settings.name in _TOLERANT:
        kept = _without_faulty(build(settings, cache, left_out), left_out)
        return _as_shown(kept, settings, left_out)
    table: ExampleTable = build(settings, cache, *([None] if settings.name in _TOLERANT else []))
    if (table.labels_N == LEFT_OUT).any():
        table = table.take(np.flatnonzero(table.labels_N != LEFT_OUT))
    table = _as_shown(table, settings, left_out)
    if require_pictures:
        refuse_lost(table.unused, len(table), settings.max_left_out)
    if require_pictures and isinstance(table.source, FileSource):
        missing = table.source.missing()
        if missing:
            guess = where_they_are(table.source.root, missing)
            raise missing_pictures(missing, len(table), guess)
    if require_pictures:
        _refuse_unlabelled(table)
    return table


def _as_shown(
    table: ExampleTable, settings: DataSettings, left_out: LeftOut | None
) -> ExampleTable:
    if isinstance(table.source, FileSource):
        table.source.read_as(settings)
    if settings.crop == "none":
        return table
    # Imported here because few data sets have boxes.
    from fgvc_core.data.boxes import cut_out

    return cut_out(table, settings, data_root(settings), left_out)


def _without_faulty(table: ExampleTable, left_out: LeftOut) -> ExampleTable:
    """Drop rows with a faulty label or a missing file; no picture is opened."""
    faulty = set(np.flatnonzero(table.labels_N == LEFT_OUT).tolist())
    if isinstance(table.source, FileSource):
        missing, paths = set(table.source.missing()), table.source.relative_paths
        for position, row in enumerate(table.rows.tolist()):
            if position not in faulty and paths[row] in missing:
                faulty.add(position)
                left_out.add("whose picture is missing", table.ids[position])
    for position in np.flatnonzero(table.labels_N == UNLABELLED).tolist():
        if table.splits[position] != "pool":
            faulty.add(position)
            left_out.add(NO_LABEL, table.ids[position])
    return table.take([i for i in range(len(table)) if i not in faulty])


def _refuse_unlabelled(table: ExampleTable) -> None:
    bare = table.unlabelled()
    if bare:
        raise DataError(
            f"{len(bare)} of {len(table)} pictures have no label, and are not in the pool: "
            f"{first_few(bare)}.",
            why="They can neither be learned from nor scored.",
            remedy="Add the file that holds their labels; 'fieldmark data check' says more.",
        )


def data_root(settings: DataSettings) -> Path:
    """The folder ``data.path``.

    Raises:
        ConfigurationError: if no path is given.
        DataError: if there is no such folder.
    """
    if not settings.path:
        raise ConfigurationError(
            f"data.path is missing: data.name = '{settings.name}' is read from a folder.",
            why="Nothing was started.",
            remedy="Give it with --set data.path=FOLDER or in the recipe's [data].",
        )
    root = Path(settings.path)
    try:
        root = root.expanduser()
        is_folder = root.is_dir()
    except (OSError, RuntimeError) as error:
        # RuntimeError: '~name' without such a user.
        raise DataError(
            f"data.path = '{settings.path}' cannot be looked at: "
            f"{getattr(error, 'strerror', None) or error}.",
            why=f"The pictures of data.name = '{settings.name}' are read from there.",
            remedy="Check the path, and that this user may read the folder.",
        ) from None
    if not is_folder:
        kind = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"data.path = '{settings.path}' {kind}.",
            why=f"The pictures of data.name = '{settings.name}' are read from there.",
            remedy="Check the path; a relative one counts from the current folder.",
        )
    return root
