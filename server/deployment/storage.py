"""The SuperLink's SQLite database: compaction, since it does not shrink by itself, and its version.

SQLite keeps the pages of deleted data, and its write-ahead log never gets shorter. Flower shrinks
neither, so the file would stay as large as the most data that sites have sent within one run
(https://www.sqlite.org/lang_vacuum.html, https://www.sqlite.org/wal.html, section 6). Little is
left after a run, so rewriting it takes milliseconds.
"""

import contextlib
import shlex
import sqlite3
from pathlib import Path

from fgvc_core.errors import DataError
from fgvc_core.words import visible
from fieldmark.server.deployment.flower_internals import known_revisions

DATABASE = "superlink.db"
WORTH_BYTES = 4_000_000
"""A database with fewer unused bytes is not compacted."""
WAIT_S = 2.0
"""Longest wait for the SuperLink's own writes, in seconds; it waits 5 s for ours."""
LARGEST_KEPT_BYTES = 256_000_000
"""A database with more used bytes is not rewritten: the SuperLink would wait too long."""


def compact(database: Path) -> int:
    """Free the unused space of a database; another process may have it open.

    Args:
        database: An SQLite file with a write-ahead log; it may be missing.

    Returns:
        Bytes freed; 0 if there are few, or if it is in use now and must be retried later.

    Raises:
        DataError: if the file is damaged or not a database.
    """
    if not database.exists():
        return 0
    before = _size(database)
    try:
        _give_back(database, before)
    except sqlite3.OperationalError:
        # In use, or the disk is full: retried the next time.
        pass
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"The SuperLink's database '{database}' is damaged: {error}.",
            why="Without it no site's message is taken.",
            remedy=f"Stop the coordinator, delete {shlex.quote(str(database))} and its -wal and "
            "-shm files, and start it again: sites' keys are registered again from sites.json.",
        ) from None
    return max(before - _size(database), 0)


def check_revision(database: Path) -> None:
    """Refuse a database that a later Flower has changed: the installed one would never come up.

    An older database is brought up to date by the SuperLink itself.

    Args:
        database: The SuperLink's; it may be missing, or damaged, which :func:`compact` reports.

    Raises:
        DataError: with the way back.
    """
    known = known_revisions()
    if not database.exists() or not known:
        return
    try:
        with _opened(database) as link:
            found = link.execute("select version_num from alembic_version").fetchall()
    except sqlite3.DatabaseError:
        return
    for (revision,) in found:
        if revision not in known:
            raise DataError(
                f"The SuperLink's database '{database}' is of a later version (revision "
                f"'{visible(str(revision))[:40]}'), which the installed Flower cannot read.",
                why="The later one has changed its tables when it was started.",
                remedy=f"Install the later version again; or, between runs, delete "
                f"{shlex.quote(str(database))} and its -wal and -shm files, and start: sites' keys "
                "are registered again from sites.json.",
            )


def _give_back(database: Path, before: int) -> None:
    with _opened(database) as link:
        page = link.execute("pragma page_size").fetchone()[0]
        pages = link.execute("pragma page_count").fetchone()[0]
        unused = page * link.execute("pragma freelist_count").fetchone()[0]
        log = before - database.stat().st_size
        if unused + log >= WORTH_BYTES:
            if unused >= WORTH_BYTES and page * pages - unused <= LARGEST_KEPT_BYTES:
                link.execute("vacuum")
            # The rewritten pages are in the log until a checkpoint.
            link.execute("pragma wal_checkpoint(truncate)")


def _opened(database: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(database, timeout=WAIT_S, isolation_level=None))


def _size(database: Path) -> int:
    """Bytes of the file and its write-ahead log."""
    total = 0
    for path in (database, database.with_name(f"{database.name}-wal")):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
