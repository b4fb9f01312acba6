"""What tests of the coordinator share: an exchange over nodes that answer as a test says."""

import json

import pytest
from nodes_lab import KEYS, Nodes

import fieldmark.server.sites.roll_call
from fgvc_core.protocol.keys import new_key, public_text, write_private
from fgvc_core.recipe import parse_recipe
from fieldmark.server.home import CoordinatorHome, ServerSettings, write_home
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.sites.messages import Exchange


@pytest.fixture
def exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(fieldmark.server.sites.roll_call, "LONGEST_S", 0.05)
    (tmp_path / "coordinator").mkdir()
    write_private(new_key(), tmp_path / "coordinator" / "key")
    sites = {name: public_text(key.public_key()) for name, key in KEYS.items()}
    recipe = parse_recipe("", ["data.path=secret/place"])
    settings = ServerSettings(
        cache=str(tmp_path), poll_s=0.01, wait_for_sites_s=0.01, roll_call_s=0.05
    )
    write_home(tmp_path, recipe, ("a", "b"), sites, settings)
    home = CoordinatorHome.open(tmp_path)

    def make(*answers, grid=Nodes):
        log = EventLog(tmp_path / "events.jsonl")
        return Exchange(grid(*answers), home, "run-1", log), home

    make.events = lambda: [
        json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()
    ]
    return make
