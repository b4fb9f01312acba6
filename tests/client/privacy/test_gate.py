import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest

import fieldmark.client
from fgvc_core.errors import ConfigurationError, PeerError, PolicyRefusal
from fgvc_core.protocol.keys import new_key, public_text, read_public
from fgvc_core.protocol.messages import Reply, Request, Scores, fixed_seconds, new_nonce, unseal
from fgvc_core.wire.arrays import pack
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings

from ..protected_sites import request, unprotected

SCORES = Scores(examples=9, correct=3, loss_sum=2.0, macro_f1=0.25)
TENSORS = {"w": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}


@pytest.fixture
def site(tmp_path):
    coordinator = public_text(new_key().public_key())
    return make_home(tmp_path / "home", name="site-1", coordinator=coordinator, cache=tmp_path)


def with_policy(site, **changes):
    settings = site.settings.model_copy(update={"policy": Policy(**changes)})
    write_settings(site.home, settings)
    return Site.open(site.home)


def exchange():
    same = {"kind": "train", "run": "r", "round": 1, "site": "site-1", "nonce": new_nonce(),
            "recipe_digest": "0" * 64}  # fmt: skip
    told = {"examples": 120, "loss": 1.5, "seconds": fixed_seconds(2.0), "scores": SCORES}
    return Request(**same), Reply(**same, code="ok", **told)


def opened(site, departure):
    digests = {name: tensor.digest() for name, tensor in departure.tensors.items()}
    return unseal(Reply, departure.sealed, read_public(site.public_key), digests)


def test_what_leaves_is_signed_with_every_tensor_and_written_down(site):
    departure = Gate(site).release(*exchange(), TENSORS)
    reply = opened(site, departure)
    assert set(reply.tensors) == {"w", "b"}
    founded, line = [json.loads(x) for x in (site.home / "ledger.jsonl").read_text().splitlines()]
    assert (founded["kind"], line["kind"]) == ("founded", "sent")
    assert (line["round"], line["bytes"], line["examples"]) == (1, departure.nbytes, 120)
    assert (reply.ledger_length, reply.ledger_head) == (2, line["hash"])
    assert opened(site, Gate(site).release(*exchange(), {})).ledger_length == 3


def test_nothing_is_handed_out_that_could_not_be_written_down(site, monkeypatch):
    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Gate(site).release(*exchange(), TENSORS)


def test_an_update_above_the_sites_own_cap_is_refused_and_not_counted(site):
    site = with_policy(site, max_update_mb=1e-5)
    with pytest.raises(PolicyRefusal, match="max_update_mb") as caught:
        Gate(site).release(*exchange(), TENSORS)
    assert caught.value.exit_code == 4
    assert not (site.home / "ledger.jsonl").exists()


def test_a_policy_keeps_counts_and_scores_at_the_site(site):
    for policy, kept in (
        ({"share_scores": False}, (120, None)),
        ({"share_counts": False}, (1, None)),
        ({}, (120, SCORES)),
    ):
        site = with_policy(site, **policy)
        reply = opened(site, Gate(site).release(*exchange(), TENSORS))
        assert (reply.examples, reply.scores) == kept
        assert (reply.loss, float(reply.seconds)) == ((None, 0.0) if kept[0] == 1 else (1.5, 2.0))


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
def test_a_strategy_that_tells_the_steps_is_refused_at_the_roll_call_where_counts_stay(
    site, strategy
):
    recipe = unprotected(f"federation.strategy={strategy}", "train.batch_size=1")
    body = request(recipe, "roll_call", round_=0)
    assert Gate(with_policy(site)).announce(body, recipe) is None
    site = with_policy(site, share_counts=False)
    with pytest.raises(PolicyRefusal, match=r"policy\.share_counts = false") as caught:
        Gate(site).announce(body, recipe)
    assert "number of steps" in caught.value.why
    assert "fedavg" in caught.value.remedy
    Gate(site).announce(body, unprotected())


def test_a_line_that_a_crash_has_torn_does_not_swallow_the_next(site):
    book = site.home / "ledger.jsonl"
    Gate(site).release(*exchange(), TENSORS)
    with book.open("ab") as file:
        file.write(b'{"time": "2026')
    for _ in range(2):
        opened(site, Gate(site).release(*exchange(), {}))
    lines = book.read_text().splitlines()
    kinds = [json.loads(lines[i])["kind"] for i in (0, 1, 3, 4, 5)]
    assert kinds == ["founded", "sent", "torn", "sent", "sent"]


def test_a_line_is_on_the_disk_before_anything_is_handed_out(site, monkeypatch):
    synced, sync = [], os.fsync

    def spy(descriptor):
        synced.append((site.home / "ledger.jsonl").read_text())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    request, reply = exchange()
    Gate(site).release(request, reply, TENSORS)
    assert any(request.nonce in text for text in synced)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_a_tensor_changed_on_the_way_no_longer_fits_the_signature(site, name):
    departure = Gate(site).release(*exchange(), TENSORS)
    tensors = {**departure.tensors, name: pack(TENSORS[name] + 1)}
    with pytest.raises(PeerError, match="not the ones that were signed"):
        opened(site, Departure(departure.sealed, tensors))


def test_nothing_in_the_package_signs_but_the_gate():
    root = Path(fieldmark.client.__file__).parent
    signers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", getattr(node, "attr", getattr(node, "name", "")))
            if name in ("seal", "sign"):
                signers.add(path.relative_to(root).as_posix())
    # A report, and the proof of a key to the gateway, have domains of their own: their
    # signatures are never a reply's.
    assert signers == {
        "privacy/gate.py",
        "privacy/report/signing.py",
        "deployment/flower_internals.py",
    }


def test_a_wrong_policy_key_names_the_nearest(site):
    path = site.home / "site.toml"
    path.write_text(path.read_text().replace("share_scores", "share_scorse"))
    with pytest.raises(ConfigurationError, match="'share_scores'"):
        Site.open(site.home)
