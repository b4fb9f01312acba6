"""The class of cause that an ``unavailable`` carries, and the sentence in the site's own log."""

import errno
import json
import sqlite3

import pytest
from pydantic import ValidationError

from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.data.passing import passing_fault
from fgvc_core.errors import ConfigurationError, DataError, PeerError, RunFailed
from fgvc_core.experiment import make_learner
from fgvc_core.protocol.causes import refusal_in_words
from fgvc_core.protocol.keys import new_key, public_text, read_public
from fgvc_core.protocol.messages import Reply, Request, new_nonce, seal, unseal
from fgvc_core.recipe import parse_recipe
from fgvc_core.wire.arrays import pack_all
from fieldmark.client.causes import LimitReached, cause_of, failure_in_words
from fieldmark.client.job import Incoming, answer
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.privacy.report.departures import departures
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site
from fieldmark.client.stages import HANDLERS

COORDINATOR = new_key()
PRIVATE = ("privacy.epsilon=4.0", "privacy.method=gradients", "privacy.steps=1",
           "privacy.sampling_rate=0.5", "model.train=head", "model.attention=none")  # fmt: skip


def of(number: int) -> OSError:
    return OSError(number, "said the machine")


def raised_from(error: Exception, cause: Exception, *, hidden: bool = False) -> Exception:
    error.__cause__ = None if hidden else cause
    error.__context__ = cause
    return error


FAULTS = [
    (of(errno.ENOSPC), "disk"),
    (of(errno.EROFS), "disk"),
    (of(errno.EIO), "disk"),
    (of(errno.ENOMEM), "memory"),
    (of(errno.EFBIG), "settings"),
    (of(errno.EMFILE), "settings"),
    (of(errno.ENOENT), ""),
    (MemoryError(), "memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
    (sqlite3.OperationalError("database or disk is full"), "disk"),
    (LimitReached("limits.request_hours = 1: the work took longer"), "settings"),
    (ConfigurationError("no such setting"), "settings"),
    (DataError("a picture is damaged"), "data"),
    (raised_from(passing_fault("x", of(errno.EIO)), of(errno.EIO)), "disk"),
    (raised_from(DataError("no room"), of(errno.ENOSPC), hidden=True), "disk"),
    (raised_from(DataError("no such file"), of(errno.ENOENT)), "data"),
    (RunFailed("no finite loss"), ""),
    (KeyError("x"), ""),
]


@pytest.mark.parametrize(("error", "cause"), FAULTS)
def test_the_class_is_told_by_what_the_machine_or_the_data_said(error, cause):
    assert cause_of(error) == cause
    said = failure_in_words(error)
    assert "\n" not in said
    assert said.startswith(f" (cause: {cause}): ") if cause else said == ""


def test_memory_that_the_site_bounds_is_one_of_its_settings(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda which: (10**9, 10**9))
    assert cause_of(MemoryError()) == "settings"
    assert "limits.memory_gb" in failure_in_words(MemoryError())


def run_at(tmp_path, tiny, error, monkeypatch, *changes, **policy):
    """(reply of a site whose work fails, its home) after a roll call that it answered."""
    recipe = parse_recipe(tiny.to_toml(), changes)
    home = make_home(
        tmp_path / "home", name="site-1", coordinator=public_text(COORDINATOR.public_key()),
        cache=tmp_path / "cache", split_key=b"k" * 32, units=40, policy=Policy(**policy),
    ).home  # fmt: skip
    (home / "rows.json").write_text(json.dumps(list(range(60))))

    def broken(*_, **__):
        raise error

    monkeypatch.setitem(HANDLERS, "train", broken)
    monkeypatch.setattr("fieldmark.client.stages.private.learner_and_examples", broken)
    tensors = pack_all(make_learner(recipe, 12).tensors())
    for kind, round_ in (("roll_call", 0), ("train", 1)):
        called = kind == "roll_call"
        values = {"kind": kind, "run": "run-1", "round": round_, "nonce": new_nonce(),
                  "site": "" if called else "site-1",
                  "recipe_digest": recipe.digest}  # fmt: skip
        if called:
            values |= {"recipe": recipe.announced.to_toml(), "class_names": CLASS_NAMES}
        sent = {} if called else tensors
        values["tensors"] = {name: tensor.digest() for name, tensor in sent.items()}
        departure = answer(home, Incoming(seal(COORDINATOR, Request(**values)), sent))
        reply = unseal(Reply, departure.sealed, read_public(Site.open(home).public_key), {})
    return reply, home, departure.sealed.text


@pytest.mark.parametrize(("error", "cause"), [
    (of(errno.ENOSPC), "disk"), (DataError("x.jpg is damaged", remedy="Restore x.jpg."), "data"),
    (KeyError("x"), ""),
])  # fmt: skip
def test_a_plain_run_is_told_the_class_and_its_site_the_sentence(
    tmp_path, tiny, monkeypatch, error, cause
):
    reply, home, text = run_at(tmp_path, tiny, error, monkeypatch, privacy="optional")
    assert (reply.code, reply.reason, reply.cause) == ("unavailable", "", cause)
    assert ("cause" in json.loads(text)) == bool(cause)
    log = (home / "site.log").read_text()
    assert failure_in_words(error) in log
    # What has left is in the site's own ledger and report.
    site = Site.open(home)
    entries = list(Ledger(home, site.data_binding, site.name).entries())
    assert entries[-1].values.get("cause", "") == cause
    told = f"; the class of its cause ({cause})" if cause else ""
    assert departures(entries)[-1].carried == f"'unavailable', without a text{told}"


@pytest.mark.parametrize("error", [of(errno.ENOSPC), MemoryError(), DataError("x.jpg is damaged")])
def test_no_class_leaves_under_differential_privacy(tmp_path, tiny, monkeypatch, error):
    reply, home, text = run_at(tmp_path, tiny, error, monkeypatch, *PRIVATE, privacy="optional")
    assert (reply.code, reply.reason, reply.cause) == ("unavailable", "", "")
    assert "cause" not in json.loads(text)
    assert "cause" not in (home / "ledger.jsonl").read_text()
    assert failure_in_words(error) in (home / "site.log").read_text()


def test_no_class_leaves_where_the_site_adds_its_own_privacy(tmp_path, tiny, monkeypatch):
    own = {"epsilon": 4.0, "method": "gradients", "steps": 1, "sampling_rate": 0.5}
    head = ("model.train=head", "model.attention=none")
    reply, *_ = run_at(tmp_path, tiny, MemoryError(), monkeypatch, *head, own=own, epsilon_cap=50.0)
    assert (reply.code, reply.cause) == ("unavailable", "")


def body(**changes):
    values = {"kind": "train", "run": "r", "round": 1, "site": "s", "nonce": "0" * 32,
              "recipe_digest": "0" * 64, "code": "unavailable"}  # fmt: skip
    return {**values, **changes}


def test_a_coordinator_reads_classes_of_the_list_alone_and_only_of_failures():
    assert refusal_in_words(Reply(**body(cause="disk"))) == (
        "answered 'unavailable'. Cause: disk (a disk is full or does not answer)."
    )
    for wrong in ({"cause": "Mrs Miller"}, {"cause": "disk", "code": "ok"}):
        with pytest.raises(ValidationError):
            Reply(**body(**wrong))
        with pytest.raises(PeerError):
            Reply.parse(json.dumps(body(**wrong)))
