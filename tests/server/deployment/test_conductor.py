"""What a run's death is, what is an end, and whose keys the SuperLink has."""

import json

import pytest

from fgvc_core.errors import PolicyRefusal, RunFailed
from fgvc_core.files import replace_private_json
from fgvc_core.protocol.announcement import read_announcement
from fgvc_core.protocol.keys import fingerprint, new_key, public_text, read_public
from fgvc_core.recipe import parse_recipe
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.conductor import Conductor
from fieldmark.server.deployment.flower_internals import Node
from fieldmark.server.deployment.following import raise_outcome
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.run_request import RunRequest, read_run_request, write_run_request
from fieldmark.server.deployment.settings import DeploymentSettings
from fieldmark.server.home import ServerSettings, read_allow_list, write_home


class Link:
    """Stands for a SuperLink's Control API."""

    def __init__(self):
        self.known, self.started, self.stopped = {}, [], []
        self.status = ("running", "", "")

    def nodes(self):
        return [Node(number, digest, "online") for digest, number in self.known.items()]

    def register(self, public_key, name):
        digest = fingerprint(read_public(public_key))
        self.known[digest] = len(self.known) + 1
        return self.known[digest]

    def unregister(self, node_id):
        self.known = {d: n for d, n in self.known.items() if n != node_id}

    def start_run(self, bundle, run_dir):
        self.started.append(run_dir)
        return 100 + len(self.started)

    def run_status(self, run_id):
        return self.status

    def stop_run(self, run_id):
        self.stopped.append(run_id)


@pytest.fixture
def folder(tmp_path):
    init_server(tmp_path / "fed", DeploymentSettings(hosts=("gate",)))
    AllowList(tmp_path / "fed").add("lyon", public_text(new_key().public_key()))
    run_dir = tmp_path / "fed" / "runs" / "demo"
    (run_dir / "coordinator").mkdir(parents=True)
    (run_dir / "coordinator" / "key").symlink_to(tmp_path / "fed" / "coordinator.key")
    recipe = parse_recipe("", ["data.path=secret/place"])
    write_home(run_dir, recipe, ("a", "b"), {}, ServerSettings(cache=str(tmp_path)))
    write_run_request(run_dir, RunRequest(state="wanted"))
    return tmp_path / "fed"


@pytest.fixture
def rig(folder):
    link = Link()
    return link, Conductor(folder, link, 3, lambda text: None), folder / "runs" / "demo"


def test_a_wanted_run_is_started_and_announced_under_the_coordinators_key(rig, folder):
    link, conductor, run_dir = rig
    conductor.step()
    assert read_run_request(run_dir).state == "running"
    assert read_run_request(run_dir).flower_run == 101
    assert link.started == [str(run_dir.resolve())]
    key = read_public((folder / "coordinator.pub").read_text())
    found = read_announcement((folder / "state" / "announcement.json").read_text(), key)
    assert found.run == "demo"
    assert "secret" not in found.recipe
    assert parse_recipe(found.recipe).digest == found.recipe_digest


def test_a_site_added_later_is_asked_unless_the_recipe_names_others(rig, folder):
    _, conductor, run_dir = rig
    conductor.step()
    assert list(read_allow_list(run_dir)) == ["lyon"]
    AllowList(folder).add("turku", public_text(new_key().public_key()))
    conductor.step()
    assert list(read_allow_list(run_dir)) == ["lyon", "turku"]
    recipe = parse_recipe((run_dir / "recipe.toml").read_text(), ["federation.sites=['turku']"])
    (run_dir / "recipe.toml").write_text(recipe.to_toml())
    AllowList(folder).add("riga", public_text(new_key().public_key()))
    conductor.step()
    assert list(read_allow_list(run_dir)) == ["turku"]


@pytest.mark.parametrize(
    "details",
    ["died: its process was ended by signal 9", "RunInterrupted: stopped", "", "No heartbeat"],
)
def test_what_merely_died_is_tried_again(rig, details):
    link, conductor, run_dir = rig
    conductor.step()
    link.status = ("finished", "failed", details)
    conductor.step()
    link.status = ("running", "", "")
    conductor.step()
    assert read_run_request(run_dir).tries == 2
    assert read_run_request(run_dir).state == "running"


def test_a_run_that_a_new_superlink_does_not_know_is_started_there(rig):
    link, conductor, run_dir = rig
    conductor.step()
    link.status = ("", "", "")
    conductor.step()
    conductor.step()
    assert read_run_request(run_dir).tries == 2


def test_a_run_that_dies_without_a_round_done_is_given_up_after_so_many_tries(rig):
    link, conductor, run_dir = rig
    link.status = ("finished", "failed", "died: again")
    for _ in range(20):
        conductor.step()
    assert read_run_request(run_dir).state == "failed"
    assert read_run_request(run_dir).tries == 3
    with pytest.raises(RunFailed, match="died 3 times"):
        raise_outcome(run_dir)


def test_rounds_in_between_make_the_count_begin_anew(rig):
    link, conductor, run_dir = rig
    (run_dir / "checkpoints").mkdir()
    for number in range(1, 9):
        link.status = ("running", "", "")
        conductor.step()
        replace_private_json(run_dir / "checkpoints" / "last.json", {"round": number})
        link.status = ("finished", "failed", "died: again")
        conductor.step()
    assert read_run_request(run_dir).state == "wanted"


@pytest.mark.parametrize(
    ("details", "kind", "code"),
    [
        ("PolicyRefusal: 3 sites refuse.", PolicyRefusal, 4),
        ("RunFailed: no quorum.", RunFailed, 6),
        ("ValueError: a bug", RunFailed, 6),
    ],
)
def test_what_ended_for_a_reason_is_not_tried_again(rig, folder, details, kind, code):
    link, conductor, run_dir = rig
    conductor.step()
    link.status = ("finished", "failed", details)
    conductor.step()
    conductor.step()
    assert read_run_request(run_dir).state == "failed"
    assert len(link.started) == 1
    assert not (folder / "state" / "announcement.json").exists()
    with pytest.raises(kind) as caught:
        raise_outcome(run_dir)
    assert caught.value.exit_code == code
    assert f"fieldmark server resume {folder} {run_dir.name}" in caught.value.remedy


def test_a_run_that_is_done_is_finished_and_announced_no_more(rig, folder):
    link, conductor, run_dir = rig
    conductor.step()
    link.status = ("finished", "completed", "")
    conductor.step()
    assert read_run_request(run_dir).state == "finished"
    assert not (folder / "state" / "announcement.json").exists()
    raise_outcome(run_dir)


def test_a_run_that_a_person_stops_is_asked_first_and_then_made_to(rig, monkeypatch):
    link, conductor, run_dir = rig
    conductor.step()
    write_run_request(run_dir, read_run_request(run_dir).but(state="stopping"))
    conductor.step()
    assert link.stopped == []
    monkeypatch.setattr("fieldmark.server.deployment.conductor.STOP_WITHIN_S", 0.0)
    conductor.step()
    assert link.stopped == [101]
    assert read_run_request(run_dir).state == "stopped"


def test_the_superlink_knows_just_the_keys_of_the_allow_list(rig, folder):
    link, conductor, run_dir = rig
    conductor.step()
    lyon = AllowList(folder).active()["lyon"]
    assert set(link.known) == {lyon.fingerprint}
    oslo = AllowList(folder).add("oslo", public_text(new_key().public_key()))
    conductor.step()
    assert set(link.known) == {lyon.fingerprint, oslo.fingerprint}
    assert list(read_allow_list(run_dir)) == ["lyon", "oslo"]
    AllowList(folder).remove("lyon")
    conductor.step()
    assert set(link.known) == {oslo.fingerprint}
    assert list(read_allow_list(run_dir)) == ["oslo"]
    link.known.clear()
    conductor.forget()
    conductor.step()
    assert set(link.known) == {oslo.fingerprint}


def test_a_torn_line_of_events_does_not_end_the_watching(rig):
    from fieldmark.server.deployment.following import view_of

    _, _, run_dir = rig
    started = {"time": "", "event": "run_started", "sites": ["lyon"], "rounds": 2}
    done = {"time": "", "event": "round_finished", "round": 1}
    text = json.dumps(started) + '\n{"event": "rou\n' + json.dumps(done) + "\n"
    (run_dir / "events.jsonl").write_text(text)
    assert view_of(run_dir).round == 1
