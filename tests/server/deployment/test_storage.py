"""The SuperLink's database gives back what it does not use, also while another process has it."""

import sqlite3
import threading
from contextlib import closing

import pytest
from flwr.supercore.constant import SQLITE_PRAGMAS

from fgvc_core.errors import DataError
from fieldmark.server.deployment.flower_internals import known_revisions
from fieldmark.server.deployment.storage import WORTH_BYTES, check_revision, compact


def opened(path):
    """A connection as Flower's own are."""
    link = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma, value in SQLITE_PRAGMAS:
        link.execute(f"pragma {pragma} = {value}")
    return link


@pytest.fixture
def database(tmp_path):
    """As it is after a run: 20 MB written and deleted, a little kept; held open as it is up."""
    path = tmp_path / "superlink.db"
    with closing(opened(path)) as link:
        link.execute("create table objects (id integer primary key, content blob)")
        link.execute("create table node (name text)")
        link.execute("insert into node values ('lyon')")
        for _ in range(20):
            link.execute("insert into objects (content) values (zeroblob(1000000))")
        link.execute("delete from objects")
        yield path, link


def on_the_disk(path):
    return sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*"))


def test_what_was_deleted_is_given_back_while_the_superlink_has_it_open(database):
    path, link = database
    assert on_the_disk(path) > 20_000_000
    assert compact(path) > 20_000_000 - WORTH_BYTES
    assert on_the_disk(path) < 1_000_000
    assert link.execute("select name from node").fetchall() == [("lyon",)]
    link.execute("insert into node values ('turku')")
    assert link.execute("select count(*) from node").fetchone() == (2,)


def test_a_write_at_the_same_moment_is_neither_lost_nor_waited_for_in_vain(database):
    path, link = database
    link.execute("begin immediate")
    link.execute("insert into node values ('turku')")
    ended = threading.Timer(0.5, lambda: link.execute("commit"))
    ended.start()
    compact(path)
    ended.join()
    assert link.execute("select count(*) from node").fetchone() == (2,)
    compact(path)
    assert on_the_disk(path) < 1_000_000


def test_while_a_transaction_goes_on_nothing_is_done(database, monkeypatch):
    monkeypatch.setattr("fieldmark.server.deployment.storage.WAIT_S", 0.1)
    path, link = database
    link.execute("begin immediate")
    assert compact(path) == 0
    link.execute("rollback")
    assert compact(path) > 0


def test_little_is_left_as_it_is_and_none_is_none(tmp_path):
    assert compact(tmp_path / "none.db") == 0
    assert not (tmp_path / "none.db").exists()
    with closing(opened(tmp_path / "small.db")) as link:
        link.execute("create table node (name text)")
        assert compact(tmp_path / "small.db") == 0


def test_a_damaged_database_is_said_to_be_with_the_way_back(tmp_path):
    path = tmp_path / "superlink.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="is damaged") as caught:
        compact(path)
    assert "delete" in caught.value.remedy
    assert path.read_bytes() == b"no database" * 1000


def at_revision(path, revision):
    with closing(sqlite3.connect(path)) as link:
        link.execute("create table alembic_version (version_num text)")
        link.execute("insert into alembic_version values (?)", (revision,))
        link.commit()


def test_flowers_revisions_are_found_where_they_are_and_41s_is_among_them():
    known = known_revisions()
    assert len(known) > 10
    assert "d90a2f91f23c" in known


def test_a_database_of_a_later_flower_is_refused_with_the_way_back(tmp_path):
    path = tmp_path / "superlink.db"
    check_revision(path)
    at_revision(path, "f0f0f0f0f0f0")
    with pytest.raises(DataError, match="of a later version") as caught:
        check_revision(path)
    assert f"delete {path} and its -wal and -shm files" in caught.value.remedy


def test_a_database_of_this_flower_of_an_earlier_one_or_damaged_is_not_judged(tmp_path):
    at_revision(tmp_path / "before.db", "d90a2f91f23c")
    check_revision(tmp_path / "before.db")
    (tmp_path / "damaged.db").write_bytes(b"no database" * 1000)
    check_revision(tmp_path / "damaged.db")
