"""The SuperLink's database gives back what it does not use, also while another process has it."""

import sqlite3
import threading
from contextlib import closing

import pytest
from flwr.supercore.constant import SQLITE_PRAGMAS

from fgvc_core.errors import DataError
from fieldmark.server.deployment.storage import WORTH_BYTES, compact


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
