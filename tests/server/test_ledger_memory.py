"""What a coordinator remembers of its sites' ledgers outlasts its runs, and is theirs to check."""

import json
import os

import pytest
from nodes_lab import ARRAYS, KEYS, Nodes, answering
from typer.testing import CliRunner

from fgvc_core.errors import ConfigurationError, DataError, PeerError
from fgvc_core.files import replace_private_json
from fgvc_core.protocol.keys import new_key, public_text, read_private
from fgvc_core.protocol.ledger_statement import read_statement
from fgvc_core.protocol.messages import Reply, Request, Sealed, seal
from fgvc_core.recipe import parse_recipe
from fieldmark.server.cli import server_app
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.provisioning import add_site, init_server
from fieldmark.server.deployment.settings import DeploymentSettings
from fieldmark.server.ledger_memory import (
    NODES,
    LedgerMemory,
    forget,
    link_memory,
    read_head,
    statement_of,
)

RECIPE = parse_recipe("", ["data.path=secret/place"])
COSTS = {
    "epsilon": 1.0, "how": "", "epsilon_total": 1.0, "how_total": "", "delta": 1e-5,
    "delta_total": 1e-5, "unit": "image", "adjacency": "", "events": [],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "federation"


@pytest.fixture
def memory(tmp_path, folder):
    folder.mkdir()

    def make(run="demo"):
        run_dir = tmp_path / run
        (run_dir / "coordinator").mkdir(parents=True, exist_ok=True)
        link_memory(run_dir, folder)
        return LedgerMemory(run_dir, RECIPE)

    return make


def reply(length, run="run-1", site="site-1", key=None, **changes):
    values = {
        "kind": "train", "run": run, "round": 1, "site": site, "nonce": "0" * 32,
        "recipe_digest": RECIPE.digest, "code": "ok", "ledger_length": length,
        "ledger_head": f"{length:064x}", **changes,
    }  # fmt: skip
    body = Reply(**{**values, "privacy": changes.get("privacy")})
    return body, seal(key or KEYS["site-1"], body)


def test_the_longest_head_outlasts_the_run_and_no_refusal_moves_it(memory):
    """An old copy refuses because it lacks that head: the copy's own must not replace it."""
    first = memory("demo")
    assert first.head("site-1") is None
    first.saw(*reply(5))
    first.saw(*reply(9, code="unavailable"))
    first.saw(*reply(7, run="run-0"))
    again = memory("demo-2").head("site-1")
    assert (again.length, again.head, again.run) == (7, f"{7:064x}", "run-0")
    first.saw(*reply(99, code="refused-policy"))
    assert first.head("site-1").length == 7
    assert memory("demo-2").head("site-2") is None


def test_its_files_are_readable_by_their_owner_alone(memory, folder):
    memory().saw(*reply(5))
    for path in (folder / "ledgers").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_without_a_link_nothing_is_remembered(tmp_path):
    (tmp_path / "coordinator").mkdir()
    memory = LedgerMemory(tmp_path, RECIPE)
    memory.saw(*reply(5))
    memory.asked("site-1", "run-1", "0" * 32)
    assert memory.head("site-1") is None
    (tmp_path / "coordinator" / "ledgers").symlink_to(tmp_path / "gone")
    assert LedgerMemory(tmp_path, RECIPE).head("site-1") is None


def test_of_each_run_the_last_reply_that_states_a_cost_is_kept(memory, folder):
    own = memory()
    own.saw(*reply(3, kind="roll_call", round=0))
    own.saw(*reply(5, privacy=COSTS))
    own.saw(*reply(7))
    own.saw(*reply(9, run="run-2"))
    own.saw(*reply(11, code="refused-policy", run="run-3"))
    statement = read(folder)
    kept = [Reply.parse(run.reply.body) for run in statement.runs]
    assert [(r.run, r.ledger_length) for r in kept] == [("run-1", 5), ("run-2", 9)]
    assert Reply.parse(statement.head.body).ledger_length == 9
    assert parse_recipe(statement.recipes[RECIPE.digest]).digest == RECIPE.digest
    assert "secret/place" not in statement.model_dump_json()


def read(folder, key=None):
    key = key or new_key()
    return read_statement(statement_of(folder, "site-1", key), key.public_key())


def test_requests_without_an_answer_are_counted_across_processes(memory, folder):
    own = memory()
    own.saw(*reply(3, kind="roll_call", round=0))
    for number in range(4):
        own.asked("site-1", "run-1", f"{number:032x}")
    own.saw(*reply(5, privacy=COSTS, nonce=f"{1:032x}"))
    assert [run.unanswered for run in read(folder).runs] == [3]
    # Another process goes on with the run.
    again = memory()
    again.asked("site-1", "run-1", f"{9:032x}")
    again.saw(*reply(7, privacy=COSTS, nonce=f"{0:032x}"))
    assert [run.unanswered for run in read(folder).runs] == [3]
    # What failed may have been reserved before: it counts like no answer.
    again.saw(*reply(8, code="unavailable", nonce=f"{9:032x}"))
    assert [run.unanswered for run in read(folder).runs] == [3]


def test_a_damaged_memory_is_bad_data_and_says_so(memory, folder):
    memory().saw(*reply(5))
    path = folder / "ledgers" / "site-1" / "head.json"
    for text in ("", "[]", '{"body": 1}', '{"body": "{}", "signature": ""}'):
        path.write_text(text)
        with pytest.raises(DataError, match="is damaged"):
            read_head(folder / "ledgers", "site-1")


def test_a_name_that_another_site_gets_begins_without_a_memory(tmp_path):
    folder = tmp_path / "fed"
    init_server(folder, DeploymentSettings(hosts=("gate",)))
    text = public_text(KEYS["site-1"].public_key())
    add_site(folder, "site-1", text)
    run_dir = folder / "runs" / "demo"
    (run_dir / "coordinator").mkdir(parents=True)
    link_memory(run_dir, folder)
    LedgerMemory(run_dir, RECIPE).saw(*reply(5))
    AllowList(folder).remove("site-1")
    add_site(folder, "site-1", public_text(new_key().public_key()))
    assert read_head(folder / "ledgers", "site-1") is None
    # Laid aside, not lost.
    assert len(list((folder / "ledgers").glob("site-1.*/head.json"))) == 1
    forget(folder, "site-2")


def test_the_roll_call_of_a_later_run_names_the_head_to_its_own_site_alone(exchange, tmp_path):
    kept = tmp_path / "fed"
    kept.mkdir()
    link_memory(tmp_path, kept)
    call, home = exchange(answering("site-1", ledger_length=12), answering("site-2"))
    LedgerMemory(tmp_path, home.recipe).saw(*reply(5))
    replace_private_json(tmp_path / NODES, {"2": "site-1", "3": "site-2"})
    call.roll_call()
    told = {
        message.metadata.dst_node_id: Request.parse(
            message.content.config_records["envelope"]["body"]
        ).known_head
        for message in call._grid.sent.values()
    }
    assert told == {2: f"{5:064x}", 3: ""}


def test_a_site_whose_ledger_is_shorter_than_in_an_earlier_run_is_not_admitted(exchange, tmp_path):
    kept = tmp_path / "fed"
    kept.mkdir()
    link_memory(tmp_path, kept)
    call, home = exchange(answering("site-1", ledger_length=3), answering("site-2"))
    LedgerMemory(tmp_path, home.recipe).saw(*reply(5))
    assert call.roll_call() == ["site-2"]
    (refused,) = [event for event in exchange.events() if not event["accepted"]]
    assert "has 3 entries, and had 5" in refused["reason"]
    assert "ledger-statement" in refused["reason"]


def test_the_first_request_of_a_later_run_names_the_head_too(exchange, tmp_path):
    from fieldmark.server.rounds.context import make_context
    from fieldmark.server.run_log.checkpoint import RunState
    from fieldmark.server.run_log.events import EventLog

    kept = tmp_path / "fed"
    kept.mkdir()
    link_memory(tmp_path, kept)
    _, home = exchange(answering("site-1"), answering("site-2"))
    LedgerMemory(tmp_path, home.recipe).saw(*reply(5))
    state = RunState(run="run-2")
    events = EventLog(tmp_path / "events.jsonl")
    import numpy as np

    make_context(Nodes(), home, state, {"w": np.ones(3, np.float32)}, None, events)
    assert state.ledgers == {"site-1": [5, f"{5:064x}"]}


def test_every_request_and_reply_of_a_run_is_remembered(exchange, tmp_path):
    kept = tmp_path / "fed"
    kept.mkdir()
    link_memory(tmp_path, kept)
    head = {"ledger_length": 2, "ledger_head": "a" * 64}
    call, _ = exchange(answering("site-1", **head), answering("site-2"))
    call.roll_call()
    assert call.ledgers.head("site-1").length == 2
    assert call.ledgers.head("site-2") is None
    request, _ = call.compose("train", 1, "site-1", ARRAYS)
    held = json.loads((kept / "ledgers" / "site-1" / "runs" / "run-1.json").read_text())
    assert held["unanswered"] == [request.nonce]


def test_the_command_writes_a_statement_that_the_sites_key_and_the_coordinators_bear_out(tmp_path):
    folder = tmp_path / "fed"
    init_server(folder, DeploymentSettings(hosts=("gate",)))
    add_site(folder, "site-1", public_text(KEYS["site-1"].public_key()))
    run_dir = folder / "runs" / "demo"
    (run_dir / "coordinator").mkdir(parents=True)
    link_memory(run_dir, folder)
    out = tmp_path / "site-1.statement"
    command = ["ledger-statement", str(folder), "site-1", "--out", str(out)]
    done = CliRunner().invoke(server_app, command)
    assert isinstance(done.exception, ConfigurationError)
    assert "Nothing was ever seen" in done.exception.what
    LedgerMemory(run_dir, RECIPE).saw(*reply(5, privacy=COSTS))
    done = CliRunner().invoke(server_app, command)
    assert done.exit_code == 0, done.output
    key = read_private(folder / "coordinator.key").public_key()
    statement = read_statement(out.read_text(), key)
    assert statement.head.check([KEYS["site-1"].public_key()]).ledger_length == 5
    with pytest.raises(PeerError, match="not signed by this site"):
        statement.head.check([KEYS["site-2"].public_key()])
    with pytest.raises(ConfigurationError, match="There is no site"):
        AllowList(folder).known("nobody")


def test_a_reply_is_on_the_disk_before_anything_follows_from_it(memory, folder, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("sync"))
    own = memory()
    own.saw(*reply(5))
    # Reply and folder, for head and run, and the recipe.
    assert order.count("sync") >= 6
    before = len(order)
    own.asked("site-1", "run-1", "0" * 32)
    assert len(order) == before


def test_a_replys_text_is_kept_as_the_site_has_signed_it(memory, folder):
    body, sealed = reply(5)
    memory().saw(body, sealed)
    held = json.loads((folder / "ledgers" / "site-1" / "head.json").read_text())
    assert Sealed(held["body"], bytes.fromhex(held["signature"])) == sealed
