"""Who is let in at the roll call, who comes and goes, and who is called again."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message
from nodes_lab import KEYS, Nodes, answering

import fieldmark.server.sites.roll_call
from fgvc_core.errors import RunFailed
from fgvc_core.flower.records import from_message
from fgvc_core.protocol.keys import new_key
from fgvc_core.protocol.messages import Request, new_nonce, unseal
from fgvc_core.recipe import parse_recipe
from fieldmark.server.ledger_memory import FOLDER, link_memory, write_units

OTHER = "0123456789abcdef" * 4


def test_each_registered_site_is_found_at_its_node(exchange):
    call, _ = exchange(answering("site-2"), answering("site-1"))
    assert call.roll_call() == ["site-1", "site-2"]
    assert call.nodes == {"site-2": 2, "site-1": 3}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (answering("site-2", key=new_key()), "not registered"),
        (answering("site-2", signer=new_key()), "signature"),
        (answering("site-2", key=KEYS["site-1"]), "its key is 'site-1'"),
        (answering("site-1"), "another node"),
        (answering("site-2", nonce=new_nonce()), "another roll call"),
        (answering("site-2", run="run-0"), "another roll call"),
        (answering("site-2", code="unavailable"), "unavailable"),
        (answering("site-2", public_key=""), "cannot be read"),
        (answering("site-2", tensors={"w": np.ones(2, np.float32)}), "carries tensors"),
        (answering("site-2", examples=10**9), "declares 1000000000 units"),
        (answering("site-2", version="9.9.9", code_digest=OTHER), "Site 'site-2' runs Fieldmark 9"),
        (answering("site-2", code_digest=OTHER), f"add '{OTHER}' to accept_code"),
        (answering("site-2", code_digest=""), "(code none)"),
        (lambda request: None, "No answer"),
    ],
    ids=["stranger", "forged", "wrong name", "twice", "replayed", "another run", "refused",
         "no key", "tensors", "units", "another version", "other code", "no code", "silent"],
)  # fmt: skip
def test_a_node_that_proves_nothing_is_left_out_with_its_reason(exchange, wrong, said):
    call, _ = exchange(answering("site-1"), wrong)
    assert call.roll_call() == ["site-1"]
    assert call.nodes == {"site-1": 2}
    told = [event for event in exchange.events() if event["event"] == "roll_call"]
    (refused,) = [event for event in told if not event["accepted"]]
    assert said in refused["reason"]
    assert (refused["site"], refused["node"]) == (None, 3)
    # A name stands there only if the registered key of that site signed the answer.
    signed = said.startswith(("unavailable", "declares", "Site", "add", "(code", "another node"))
    assert bool(refused.get("proven")) == signed


def test_other_code_is_admitted_where_the_coordinator_names_it(exchange):
    call, home = exchange(answering("site-1"), answering("site-2", code_digest=OTHER))
    changed = home.settings.model_copy(update={"accept_code": (OTHER,)})
    call._home = replace(home, settings=changed)
    assert call.roll_call() == ["site-1", "site-2"]


def test_a_site_keeps_to_the_units_that_it_has_declared_until_they_are_accepted(exchange, tmp_path):
    def called(units):
        call, _ = exchange(answering("site-1"), answering("site-2", examples=units))
        return call.roll_call()

    (tmp_path / "federation").mkdir()
    link_memory(tmp_path, tmp_path / "federation")
    assert called(40) == ["site-1", "site-2"]
    assert called(40) == ["site-1", "site-2"]
    assert called(4000) == ["site-1"]
    said = exchange.events()[-1]["reason"]
    assert "declares 4000 units, and declared 40 before" in said
    assert "fieldmark server accept-units" in said
    write_units(tmp_path / "federation" / FOLDER, "site-2", 4000)
    assert called(4000) == ["site-1", "site-2"]


def test_a_run_without_a_single_site_fails(exchange):
    call, _ = exchange(answering("site-1", signer=new_key()))
    with pytest.raises(RunFailed, match="None of 1 nodes") as caught:
        call.roll_call()
    assert caught.value.exit_code == 6


def test_the_announcement_is_signed_and_does_not_say_where_the_pictures_are(exchange):
    call, home = exchange(answering("site-1"), answering("site-2"))
    call.roll_call()
    for message in call._grid.sent.values():
        sealed, packed = from_message(message)
        body = unseal(Request, sealed, home.key.public_key(), {})
        assert packed == {}
        assert parse_recipe(body.recipe).digest == home.recipe.digest == body.recipe_digest
        assert "secret/place" not in sealed.text


class Restarting(Nodes):
    """The node 3 goes away in the midst of its first call, and is back after a while."""

    def __init__(self, *answers, back_after):
        super().__init__(*answers)
        self.calls, self.looks, self.back_after = 0, 0, back_after

    def get_node_ids(self):
        self.looks += 1
        away = self.calls == 1 and self.looks <= self.back_after
        return [node for node in super().get_node_ids() if not (away and node == 3)]

    def push_messages(self, messages):
        self.calls += sum(message.metadata.dst_node_id == 3 for message in messages)
        return super().push_messages(messages)

    def pull_messages(self, ids):
        (message,) = (self.sent[message_id] for message_id in ids)
        if message.metadata.dst_node_id == 3 and self.calls == 1:
            return [Message(Error(5, "node unavailable"), reply_to=message)]
        return super().pull_messages(ids)


def test_a_node_that_starts_anew_in_the_midst_of_its_call_is_called_again_when_it_is_back(exchange):
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call._grid = Restarting(answering("site-1"), answering("site-2"), back_after=5)
    assert call.roll_call() == ["site-1", "site-2"]
    assert call._grid.calls == 2
    said = [(e["accepted"], e["reason"]) for e in exchange.events() if e["node"] == 3]
    assert [accepted for accepted, _ in said] == [False, True]
    assert "error code 5" in said[0][1]


def test_one_that_is_not_back_in_time_is_called_before_a_later_round(exchange, monkeypatch):
    monkeypatch.setattr(fieldmark.server.sites.roll_call, "AGAIN_S", 0.05)
    call, _ = exchange(answering("site-1"), answering("site-2"))
    call._grid = Restarting(answering("site-1"), answering("site-2"), back_after=10**9)
    assert call.roll_call() == ["site-1"]
    assert call.refresh() == ["site-1"]
    call._grid.back_after = 0
    assert call.refresh() == ["site-1", "site-2"]
