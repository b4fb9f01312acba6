"""How many requests a site answers in a day, and what a coordinator's flood leaves on its disk."""

import json
import logging
from datetime import date

import pytest

from fgvc_core.protocol.keys import new_key
from fgvc_core.protocol.messages import seal
from fieldmark.client.job import Incoming, answer
from fieldmark.client.limits import Limits
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.request_rate import FILE, RequestRate
from fieldmark.client.site import Site, write_settings

from .protected_sites import COORDINATOR, make_site, request, steps

TODAY, TOMORROW = date(2026, 11, 29), date(2026, 11, 30)


@pytest.fixture
def rate(tmp_path):
    return RequestRate(
        tmp_path, Limits(requests_per_day=3, roll_calls_per_day=1), logging.getLogger("rate")
    )


def test_each_day_has_its_own_count_also_for_another_process(rate, caplog):
    assert [rate.admits("train", TODAY) for _ in range(5)] == [True] * 3 + [False] * 2
    again = RequestRate(rate.home, rate.limits, rate.log)
    assert not again.admits("score", TODAY)
    assert again.admits("score", TOMORROW)
    # One line a day: a flood must not push others out of the log.
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("limits.requests_per_day = 3 is reached")


def test_a_ledger_that_is_too_large_is_said_once_a_day(tmp_path, caplog):
    (tmp_path / "ledger.jsonl").write_bytes(bytes(1_500_000))
    for day in (TODAY, TOMORROW):
        caplog.clear()
        for kind in ("train", "roll_call", "train"):
            # Of another process, as each request is.
            rate = RequestRate(tmp_path, Limits(ledger_mb=1.0), logging.getLogger("rate"))
            assert not rate.admits(kind, day)
        (line,) = [r.getMessage() for r in caplog.records]
        assert line.startswith("no request is answered: the ledger has 1.5 MB")


def test_roll_calls_have_a_count_of_their_own(rate, caplog):
    kinds = ["roll_call", "roll_call", "train", "train"]
    assert [rate.admits(kind, TODAY) for kind in kinds] == [True, False, True, False]
    assert "limits.roll_calls_per_day = 1 is reached" in caplog.text


@pytest.mark.parametrize("damaged", [b"", b"{}", b"\xff", b'{"day": 1}', b"[" * 5000])
def test_a_damaged_count_begins_anew_and_is_said(rate, caplog, damaged):
    (rate.home / FILE).write_bytes(damaged)
    assert rate.admits("train", TODAY)
    assert "cannot be read" in caplog.text
    assert json.loads((rate.home / FILE).read_text())["requests"] == 1


def limited(site, **limits):
    changed = site.settings.model_copy(update={"limits": Limits(**limits)})
    write_settings(site.home, changed)
    return Site.open(site.home)


def test_a_flood_of_roll_calls_stops_adding_to_the_ledger(tmp_path):
    site = limited(make_site(tmp_path), roll_calls_per_day=2)
    recipe = steps()

    def ask(number):
        body = request(recipe, "roll_call", f"run-{number}", 0, recipe=recipe.to_toml(),
                       class_names=("a", "b"))  # fmt: skip
        return answer(site.home, Incoming(seal(COORDINATOR, body), {}))

    assert ask(1) is not None
    assert ask(2) is not None
    length = Ledger(site.home, site.data_binding, site.name).head()
    assert [ask(number) for number in range(3, 8)] == [None] * 5
    assert Ledger(site.home, site.data_binding, site.name).head() == length
    assert len(list((site.home / "runs").iterdir())) == 2
    log = (site.home / "site.log").read_text()
    assert log.count("limits.roll_calls_per_day = 2 is reached") == 1


def test_a_stranger_uses_up_nothing(tmp_path):
    site = limited(make_site(tmp_path), requests_per_day=1)
    body = request(steps(), "train", "run-1", 1)
    assert answer(site.home, Incoming(seal(new_key(), body), {})) is None
    assert not (site.home / FILE).exists()
    assert answer(site.home, Incoming(seal(COORDINATOR, body), {})) is not None


def test_beyond_the_ledgers_size_nothing_is_answered_and_nothing_is_written(tmp_path):
    site = make_site(tmp_path)
    ledger = site.home / "ledger.jsonl"
    body = request(steps(), "train", "run-1", 1)
    while not ledger.exists() or ledger.stat().st_size <= 1_000_000:
        answer(site.home, Incoming(seal(COORDINATOR, body), {}))
        with ledger.open("rb") as file:
            lines = file.read()
        if len(lines) > 5000:
            # What thousands of requests would leave: no reading of it is tried any more.
            ledger.write_bytes(lines * (1_000_000 // len(lines) + 1))
    site = limited(site, ledger_mb=1.0)
    size = ledger.stat().st_size
    assert answer(site.home, Incoming(seal(COORDINATOR, body), {})) is None
    assert ledger.stat().st_size == size
    assert answer(site.home, Incoming(seal(COORDINATOR, body), {})) is None
    assert (site.home / "site.log").read_text().count("no request is answered") == 1
    assert "limits.ledger_mb = 1" in (site.home / "site.log").read_text()
