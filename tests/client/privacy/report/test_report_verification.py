"""Checking a report by someone who was not there: what holds, and what must be found out."""

import copy
import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.errors import DataError, PeerError
from fgvc_core.protocol.keys import fingerprint, new_key, public_text, read_public, short_form
from fgvc_core.protocol.messages import Reply, Request, Sealed, check_signature
from fieldmark.client.privacy.report import verify_report, write_report
from fieldmark.client.privacy.report.page import draw
from fieldmark.client.privacy.report.signing import canonical, read_signed, sign_statement
from fieldmark.client.site import Site

from ...report_homes import (
    entries_of,
    home,
    open_round,
    private_run,
    recipe,
    roll_call,
    write_chain,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with a run, a refused one and a reply without protection, and its report."""
    site = home(tmp_path_factory.mktemp("homes"), epsilon_cap=5.0)
    private_run(site, "a1", recipe())
    roll_call(site, "b2", recipe())
    open_round(site, "c3", 1)
    write_report(site.home, site.home / "r.html")
    return site


@pytest.fixture
def files(made, tmp_path):
    """Copies that a test may spoil: page, JSON, ledger."""
    for name in ("r.html", "r.json", "ledger.jsonl"):
        (tmp_path / name).write_bytes((made.home / name).read_bytes())
    return tmp_path / "r.html", tmp_path / "r.json", tmp_path / "ledger.jsonl"


def failing(file, ledger, key=None):
    found = verify_report(file, ledger, key)
    assert found["holds"] == (not [c for c in found["checks"] if not c["holds"]])
    return {check["what"] for check in found["checks"] if not check["holds"]}


def forged(site, change):
    """A report that the site itself signs, with another statement."""
    signed, _ = read_signed(site.home / "r.html")
    statement = copy.deepcopy(signed.statement)
    change(statement)
    return sign_statement(site.key, statement)


def test_two_files_are_enough(made, files, tmp_path):
    page, values, ledger = files
    for file in (page, values):
        found = verify_report(file, ledger)
        assert found["holds"], found["in_words"]
        assert found["in_words"].startswith("The report of site-1 verifies.")
        assert short_form(found["fingerprint"]) in found["in_words"]
        assert found["epsilon"] == pytest.approx(4.322, abs=2e-3)
    (tmp_path / "known.pub").write_text(made.public_key + "\n")
    assert failing(page, ledger, tmp_path / "known.pub") == set()


def test_a_ledger_that_has_gone_on_is_fine_and_said_so(made, files):
    page, _, ledger = files
    lines = ledger.read_bytes()
    shutil.copytree(made.home, ledger.parent / "home")
    going_on = Site.open(ledger.parent / "home")
    private_run(going_on, "d4", recipe("privacy.epsilon=0.1"))
    ledger.write_bytes((going_on.home / "ledger.jsonl").read_bytes())
    found = verify_report(page, ledger)
    assert found["holds"]
    assert "It has gone on by" in found["in_words"]
    ledger.write_bytes(lines + b'{"n": 99, "ki')
    assert "torn" in verify_report(page, ledger)["in_words"]


def test_a_figure_changed_on_the_page_is_found(files):
    page, _, ledger = files
    for before, after in (("3.99", "0.99"), ("NOT PROTECTED", "charged"), ("<h1>", "<h1 hidden>")):
        text = page.read_text()
        assert before in text
        page.write_text(text.replace(before, after, 1))
        assert failing(page, ledger) == {"page"}, before
        page.write_text(text)


def test_a_style_that_hides_a_line_is_found(files):
    page, _, ledger = files
    page.write_text(page.read_text().replace("</style>", ".alarm{display:none}</style>"))
    assert failing(page, ledger) == {"page"}


def test_a_figure_changed_in_the_statement_is_found_in_both_files(files):
    page, values, ledger = files
    for file in (page, values):
        text = file.read_text()
        at = text.index('"total":{')
        file.write_text(text[:at] + text[at:].replace('"epsilon":4.32', '"epsilon":1.32', 1))
        assert failing(file, ledger) == {"signature", "figures"}


def test_a_changed_signature_is_found(files):
    page, _, ledger = files
    signature = read_signed(page)[0].signature.hex()
    other = ("0" if signature[0] != "0" else "1") + signature[1:]
    page.write_text(page.read_text().replace(signature, other))
    assert "signature" in failing(page, ledger)
    page.write_text(page.read_text().replace(other, signature[:-2]))
    assert "signature" in failing(page, ledger)


def test_another_key_in_place_of_the_sites_is_found_by_who_knows_it(made, files, tmp_path):
    page, values, ledger = files
    thief = new_key()
    (tmp_path / "known.pub").write_text(made.public_key + "\n")
    signed, _ = read_signed(page)
    swapped = copy.deepcopy(signed.statement)
    swapped["site"]["public_key"] = public_text(thief.public_key())
    values.write_text(sign_statement(thief, swapped).text + "\n")
    assert "signature" in failing(values, ledger), "the fingerprint is the true site's"
    resigned = sign_statement(thief, signed.statement)
    values.write_text(resigned.text + "\n")
    assert "signature" in failing(values, ledger)
    swapped["site"]["fingerprint"] = fingerprint(thief.public_key())
    whole = sign_statement(thief, swapped)
    page.write_bytes(draw(whole))
    assert failing(page, ledger) == set(), "two files alone cannot tell whose key it is"
    assert "sign a report with a key of their own" in verify_report(page, ledger)["in_words"]
    assert failing(page, ledger, tmp_path / "known.pub") == {"key"}


def test_a_changed_dropped_or_exchanged_line_of_the_ledger_is_bad_data(files):
    page, _, ledger = files
    lines = ledger.read_bytes().splitlines(keepends=True)
    for spoilt in (
        [lines[0], lines[1].replace(b'"count": 4', b'"count": 1'), *lines[2:]],
        [*lines[:3], *lines[4:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
    ):
        ledger.write_bytes(b"".join(spoilt))
        with pytest.raises(DataError, match="chain breaks"):
            verify_report(page, ledger)


def test_a_run_announced_again_to_hide_what_it_was_charged_is_bad_data(made, files):
    page, _, ledger = files
    entries = entries_of(ledger)
    write_chain(ledger, [*entries, entries[1]])
    head = {"head": entries_of(ledger)[-1]["hash"], "entries": len(entries) + 1}
    page.write_bytes(draw(forged(made, lambda s: s["facts"]["ledger"].update(head))))
    with pytest.raises(DataError, match="announced before"):
        verify_report(page, ledger)


def test_a_ledger_cut_short_and_another_sites_ledger_are_not_the_reports(files, tmp_path):
    page, _, ledger = files
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))
    assert failing(page, ledger) == {"ledger", "figures"}
    assert "cut off, or it is an older copy" in verify_report(page, ledger)["in_words"]
    ledger.write_bytes(b"")
    assert failing(page, ledger) == {"ledger", "figures"}
    other = home(tmp_path, "site-2")
    for run in ("a1", "b2"):
        private_run(other, run, recipe("privacy.epsilon=0.5"))
    assert failing(page, other.home / "ledger.jsonl") == {"ledger", "figures"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("facts", "total", "epsilon"), 1.5),
        (("facts", "total", "left"), 3.5),
        (("facts", "runs", 0, "protection", "epsilon"), 1.5),
        (("facts", "runs", 0, "protection", "events"), []),
        (("facts", "departures", "rows"), []),
        (("facts", "departures", "by_charge", "unprotected"), 0),
        (("facts", "refusals", "rows", 0, "reason"), "tired"),
        (("facts", "meaning", "spent", "beliefs", 0, "after"), 0.6),
        (("facts", "units"), ["subject"]),
        (("policy", "epsilon_cap"), 50.0),
        (("policy_digest",), "0" * 64),
        (("words", "headline"), "All is well."),
        (("words", "assumptions"), []),
        (("note",), "approved by the board"),
    ],
)
def test_a_site_that_signs_what_its_ledger_does_not_say_is_found(made, files, place, value):
    _, values, ledger = files

    def change(statement):
        *way, last = place
        for step in way:
            statement = statement[step]
        statement[last] = value

    values.write_text(forged(made, change).text + "\n")
    assert failing(values, ledger) == {"figures"}


def test_a_site_that_shows_another_page_than_it_signs_is_found(made, files):
    page, _, ledger = files
    honest, _ = read_signed(made.home / "r.html")
    lying = forged(made, lambda s: s["words"].update(headline="Nothing has left site-1 yet."))
    page.write_bytes(draw(lying).replace(lying.text.encode(), honest.text.encode()))
    assert failing(page, ledger) == {"page"}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_byte_of_page_or_json_can_be_changed(files, data):
    for file in files[:2]:
        whole = file.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        byte = (whole[at] + data.draw(st.integers(1, 255))) % 256
        file.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        with suppress(DataError):
            assert failing(file, files[2])
        file.write_bytes(whole)


def test_a_reply_that_no_charge_paid_for_and_a_release_beyond_the_plan_break_the_rules(tmp_path):
    for spoil, told in (
        (lambda e: [x for x in e if x["kind"] != "reserved"], "were not charged"),
        (lambda e: [{**x, "events": [{**x["events"][0], "count": 1}]} if x["kind"] == "announced"
                    else x for x in e], "released more than it had announced"),
    ):  # fmt: skip
        site = home(tmp_path, f"site-{told.split()[-1]}")
        private_run(site, "a1", recipe())
        ledger = site.home / "ledger.jsonl"
        write_chain(ledger, spoil(entries_of(ledger)))
        write_report(site.home, site.home / "r.html")
        assert failing(site.home / "r.html", ledger) == {"rules"}
        assert told in verify_report(site.home / "r.html", ledger)["in_words"]
        assert told in (site.home / "r.html").read_text()


JUNK = st.sampled_from([None, -1, 0, 1e308, "x", "\ud800", [], {}, [[]], {"a": 1}, True])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_strangers_ledger_gives_a_verdict_or_bad_data_and_nothing_else(made, files, data):
    _, values, ledger = files
    entries = entries_of(made.home / "ledger.jsonl")
    entry = data.draw(st.sampled_from(entries))
    name = data.draw(st.sampled_from([n for n in entry if n not in ("n", "prev", "hash", "time")]))
    entry[name] = data.draw(JUNK)
    head = entries_of(write_chain(ledger, entries))[-1]["hash"]
    values.write_text(forged(made, lambda s: s["facts"]["ledger"].update(head=head)).text + "\n")
    with suppress(DataError):
        assert verify_report(values, ledger)["in_words"]


def test_a_reports_signature_is_no_replys_and_no_requests(made):
    signed, _ = read_signed(made.home / "r.html")
    sealed = Sealed(canonical(signed.statement), signed.signature)
    for kind in (Reply, Request):
        with pytest.raises(PeerError, match="signature"):
            check_signature(kind, sealed, read_public(made.public_key))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "<html></html>", '{"statement": 3, "signature": "00"}', '{"statement": {"a": NaN}',
     '{"statement": {"a": NaN}, "signature": ""}', '{"statement": {}, "signature": "zz"}',
     '{"statement": {"format": "fieldmark privacy report 9"}, "signature": ""}',
     '{"statement": {"format": "fieldmark privacy report 2"}, "signature": ""}',
     "{" * 100_000],
)  # fmt: skip
def test_what_is_no_report_is_bad_data(files, text):
    page, _, ledger = files
    page.write_text(text)
    with pytest.raises(DataError, match=r"no privacy report|another format"):
        verify_report(page, ledger)


def test_exit_codes_say_what_was_found(made, files, tmp_path):
    page, _, ledger = files

    def run(*words):
        return CliRunner().invoke(fieldmark.cli.app, ["site", "report", *map(str, words)])

    done = run("--verify", page, ledger)
    assert (done.exit_code, "verifies." in done.output) == (0, True)
    assert json.loads(run("--json", "--verify", page, ledger).output)["holds"]
    (tmp_path / "other.pub").write_text(public_text(new_key().public_key()))
    assert run("--key", tmp_path / "other.pub", "--verify", page, ledger).exit_code == 5
    page.write_text(page.read_text().replace("3.99", "0.99", 1))
    done = run("--verify", page, ledger)
    assert (done.exit_code, "does NOT verify" in done.output) == (5, True)
    ledger.write_bytes(ledger.read_bytes().replace(b'"step"', b'"stop"', 1))
    assert run("--verify", page, ledger).exception.exit_code == 3
    assert run("--verify", tmp_path / "missing", ledger).exception.exit_code == 3
    assert run("--key", tmp_path / "missing", "--verify", made.home / "r.html",
               made.home / "ledger.jsonl").exception.exit_code == 5  # fmt: skip
    assert run().exception.exit_code == 2
    made_again = run(made.home, "--out", tmp_path / "again.html")
    assert made_again.exit_code == 0, made_again.exception
    assert run("--verify", tmp_path / "again.html", made.home / "ledger.jsonl").exit_code == 0
