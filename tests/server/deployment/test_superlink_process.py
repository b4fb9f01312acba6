"""How Flower's servers are started: on a socket, and on nothing where they take none."""

import asyncio
import os
import stat
import sys
from importlib import import_module

import pytest
import uvicorn

from fieldmark.client.deployment import flower_internals as at_a_site
from fieldmark.server.deployment import flower_internals as at_the_coordinator


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
    assert seen["loop"] == "fgvc_core.quiet_server"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600


def test_a_node_is_served_on_the_socket_and_named_no_host(seen, tmp_path):
    folder = tmp_path / "sockets"
    at_a_site.serve_supernode(folder / "s", ["--superlink", "x"])
    assert os.path.samefile(seen["config"].keywords["uds"], folder / "s")
    assert seen["argv"][1:] == ["--host", at_a_site.NO_HOST, "--superlink", "x"]
    assert seen["loop"] == "fgvc_core.quiet_server"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("host", [at_a_site.NO_HOST, at_the_coordinator.NO_HOST])
def test_a_server_that_is_given_the_host_alone_opens_no_port(host):
    server = uvicorn.Server(uvicorn.Config(lambda *_: None, host=host, port=0, lifespan="off"))
    with pytest.raises((SystemExit, OSError)):
        asyncio.run(server.serve())
    assert not server.started
