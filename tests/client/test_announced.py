"""What a site keeps of announcements is bounded, whatever a coordinator announces."""

import os
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import field_validator

from fgvc_core.configuration import Settings
from fgvc_core.errors import ConfigurationError, PeerError, PolicyRefusal
from fgvc_core.protocol.messages import seal
from fgvc_core.registry import OpenSettings, Registry
from fieldmark.client import announced as state
from fieldmark.client.announced import read_announced, read_announcement, recall, remember
from fieldmark.client.job import Incoming
from fieldmark.client.job import answer as respond

from .protected_sites import (
    COORDINATOR,
    announce,
    answer,
    ledger_of,
    make_site,
    opened,
    request,
    steps,
    unprotected,
)


def call(recipe, run):
    return request(recipe, "roll_call", run, 0, recipe=recipe.announced.to_toml())


def hear(site, recipe, run, when):
    remember(site.home, call(recipe, run), ledger_of(site).is_unfinished)
    os.utime(site.home / "runs" / f"{run}.json", (when, when))


def names(site):
    return sorted(path.stem for path in (site.home / "runs").glob("*.json"))


def test_the_oldest_announcements_go_with_what_was_kept_of_their_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MAX_ANNOUNCED", 3)
    site, recipe = make_site(tmp_path), steps()
    for number in range(5):
        hear(site, recipe, f"run-{number}", number)
        (site.home / "runs" / f"run-{number}.kept").mkdir()
    assert names(site) == ["run-2", "run-3", "run-4"]
    assert not (site.home / "runs" / "run-1.kept").exists()
    assert (site.home / "runs" / "run-2.kept").exists()
    with pytest.raises(PeerError, match="never announced"):
        recall(site.home, request(recipe, "train", "run-0"))


def test_announcements_are_bounded_in_bytes(tmp_path, monkeypatch):
    site, recipe = make_site(tmp_path), steps()
    hear(site, recipe, "run-0", 0)
    size = (site.home / "runs" / "run-0.json").stat().st_size
    monkeypatch.setattr(state, "MAX_ANNOUNCED_BYTES", 2 * size)
    for number in range(1, 4):
        hear(site, recipe, f"run-{number}", number)
    assert names(site) == ["run-2", "run-3"]


def test_a_run_that_was_charged_and_is_not_done_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MAX_ANNOUNCED", 2)
    site, recipe = make_site(tmp_path), steps()
    for number in range(2):
        hear(site, recipe, f"run-{number}", number)
    announce(site, recipe, "run-0")
    answer(site, recipe, request(recipe, "train", "run-0"))
    for number in range(2, 5):
        hear(site, recipe, f"run-{number}", number)
    assert names(site) == ["run-0", "run-4"]
    assert read_announced(site.home, "run-0")


def test_where_none_may_go_the_new_run_is_refused_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MAX_ANNOUNCED", 2)
    site, recipe = make_site(tmp_path), steps()
    for number in range(2):
        hear(site, recipe, f"run-{number}", number)
        announce(site, recipe, f"run-{number}")
        answer(site, recipe, request(recipe, "train", f"run-{number}"))
    with pytest.raises(PeerError, match="announcements of 2 runs, and no more fit"):
        hear(site, recipe, "run-2", 2)
    assert names(site) == ["run-0", "run-1"]
    hear(site, recipe, "run-1", 3)


GATES: Registry[Any] = Registry("gate", "fieldmark.gates", {"none": "math", "secret": "math"})
TERMS: Registry[Any] = Registry("term", "fieldmark.terms")


class Section(OpenSettings):
    chosen: ClassVar = {"gate": GATES}
    added: ClassVar = TERMS
    gate: str = "none"

    @field_validator("gate")
    @classmethod
    def _installed(cls, name: str) -> str:
        return GATES.check(name)


class Small(Settings):
    model: Section = Section()


@pytest.mark.parametrize(
    ("text", "what", "group"),
    [
        ('[model]\ngate = "coordinate"', "gate 'coordinate'", "fieldmark.gates"),
        ("[model.focal]\ngamma = 2.0", "term 'focal'", "fieldmark.terms"),
    ],
)
def test_a_component_that_is_not_installed_here_is_refused_by_its_name(
    monkeypatch, text, what, group
):
    monkeypatch.setattr(state, "Recipe", Small)
    with pytest.raises(PolicyRefusal) as refused:
        read_announcement(SimpleNamespace(recipe=text, recipe_digest=""))
    assert what in refused.value.what
    assert group in refused.value.what
    # What else is installed here is nobody's to know.
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["[model]\ngate = 3", "[model]\nfocal = 2.0", "no TOML"])
def test_what_is_wrong_with_a_recipe_otherwise_is_not_taken_for_a_component(monkeypatch, text):
    monkeypatch.setattr(state, "Recipe", Small)
    with pytest.raises(ConfigurationError):
        read_announcement(SimpleNamespace(recipe=text, recipe_digest=""))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (('attention = "spatial"', 'attention = "coordinate"'), "attention 'coordinate'"),
        (("[loss]", "[loss.focal]\ngamma = 2.0\n\n[loss]"), "loss 'focal'"),
        (('strategy = "fedavg"', 'strategy = "fedbest"'), "strategy 'fedbest'"),
    ],
)
def test_the_roll_call_names_the_component_that_is_missing_here(tmp_path, changes, what):
    site, recipe = make_site(tmp_path, privacy="optional"), unprotected("model.attention=spatial")
    text = recipe.announced.to_toml().replace(*changes)
    assert text != recipe.announced.to_toml()
    body = request(recipe, "roll_call", "run-1", 0, recipe=text, class_names=("a", "b"))
    departure = respond(site.home, Incoming(seal(COORDINATOR, body), {}))
    reply = opened(site, departure)
    assert reply.code == "refused-policy"
    assert what in reply.reason
    assert names(site) == []
