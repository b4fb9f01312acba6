"""How Flower's servers are started: on a socket, and on nothing where they take none."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import sys
from importlib import import_module

import httpx
import pytest
import uvicorn
from flwr.supercore import sql_mixin
from flwr.supercore.corestate.sql_corestate import SqlCoreState

from fieldmark.client.deployment import flower_internals as at_a_site
from fieldmark.server.deployment import flower_internals as at_the_coordinator

CLIENTS_KEEP_S = httpx.Limits().keepalive_expiry
"""A server that kept an idle connection no longer would lose calls to its closing."""

SWEEP = "_cleanup_expired_task_tokens"


def as_before(monkeypatch):
    """What is replaced in Flower's database is put back after the test."""
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    monkeypatch.setattr(SqlCoreState, SWEEP, getattr(SqlCoreState, SWEEP))


@pytest.fixture
def seen(monkeypatch):
    """What Flower is started with, in place of Flower."""
    found = {}

    def flower():
        found.update(argv=sys.argv, run=uvicorn.run, config=uvicorn.Config)
        found.update(loop=uvicorn.Server.main_loop.__module__)

    monkeypatch.setattr(sys, "argv", [])
    for name in ("run", "Config"):
        monkeypatch.setattr(uvicorn, name, getattr(uvicorn, name))
    as_before(monkeypatch)
    monkeypatch.setattr(uvicorn.Server, "main_loop", uvicorn.Server.main_loop)
    monkeypatch.setattr(uvicorn.Server, "should_exit", False, raising=False)
    for side, name in (("superlink", "flower_superlink"), ("supernode", "flower_supernode")):
        # By name: the package above it has the function in its module's place.
        monkeypatch.setattr(import_module(f"flwr.{side}.cli.{name}"), name, flower)
    return found


def test_the_superlink_is_served_on_the_socket_and_named_no_host(seen, tmp_path):
    folder = tmp_path / "sockets"
    at_the_coordinator.serve_superlink(folder / "s", folder / "h", ["--database", "x"])
    assert os.path.samefile(seen["run"].keywords["uds"], folder / "s")
    assert seen["argv"][1:] == ["--host", at_the_coordinator.NO_HOST, "--database", "x"]
    assert seen["run"].keywords["timeout_keep_alive"] > CLIENTS_KEEP_S
    assert seen["loop"] == "fgvc_core.quiet_server"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600


def test_a_node_is_served_on_the_socket_and_named_no_host(seen, tmp_path):
    folder = tmp_path / "sockets"
    at_a_site.serve_supernode(folder / "s", ["--superlink", "x"])
    assert os.path.samefile(seen["config"].keywords["uds"], folder / "s")
    assert seen["argv"][1:] == ["--host", at_a_site.NO_HOST, "--superlink", "x"]
    assert seen["config"].keywords["timeout_keep_alive"] > CLIENTS_KEEP_S
    assert seen["loop"] == "fgvc_core.quiet_server"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("host", [at_a_site.NO_HOST, at_the_coordinator.NO_HOST])
def test_a_server_that_is_given_the_host_alone_opens_no_port(host):
    server = uvicorn.Server(uvicorn.Config(lambda *_: None, host=host, port=0, lifespan="off"))
    with pytest.raises((SystemExit, OSError)):
        asyncio.run(server.serve())
    assert not server.started


def test_the_database_is_written_to_less_often_than_flower_would(tmp_path, monkeypatch):
    as_before(monkeypatch)
    now, swept = [1000.0], []
    monkeypatch.setattr(SqlCoreState, SWEEP, lambda state: swept.append(now[0]))
    monkeypatch.setattr(at_the_coordinator.time, "monotonic", lambda: now[0])
    at_the_coordinator.write_less()
    for _ in range(100):
        SqlCoreState._cleanup_expired_task_tokens(None)
        now[0] += 0.05
    # Five seconds: no call but the first of each second looks for expired tasks, and none is late.
    assert len(swept) == 5
    with contextlib.closing(sqlite3.connect(tmp_path / "superlink.db")) as link:
        sql_mixin._set_sqlite_pragmas(link, None)
        found = [link.execute(f"pragma {n}").fetchone()[0] for n in ("journal_mode", "page_size")]
        assert found == ["wal", 4096]
        assert link.execute("pragma wal_autocheckpoint").fetchone()[0] * 4096 == 2**26
