"""One hostile text in every place where words come from outside, and every output searched."""

import csv
import io
import re
import types

import numpy as np
import pytest
from typer.testing import CliRunner

from fgvc_core.commands.predict import _row, _show
from fgvc_core.console import PlainConsole
from fgvc_core.data.partition_figure import draw_partition
from fgvc_core.protocol.messages import Reply
from fgvc_core.words import csv_cell, markdown_cell, visible
from fieldmark.server.deployment.following import SiteView
from fieldmark.server.deployment.screen import site_table
from fieldmark.server.deployment.status import show_status
from fieldmark.server.live import LiveView
from fieldmark.server.tracking.tracker import note_of

HOSTILE = (
    "=cmd|' /C calc'!A0[/][red]ok\x1b[2J\x1b[1A\r\nsite-9 │ yes\t\x07\u202e"
    "<script>alert(1)</script>"
    "\"'|[x](http://evil)`"
)
MARKUP = [HOSTILE, "[/]", "[bold", "[link=http://evil]x[/link]", "\x1b]0;title\x07", ":smile:"]


def checked_terminal(text: str) -> None:
    """No control character but the end of a line, and no row but ours."""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert not re.search(r"^site-9", text, re.M)


@pytest.mark.parametrize("text", MARKUP)
def test_nothing_that_is_printed_is_taken_for_markup_or_control(text):
    out = io.StringIO()
    PlainConsole(file=out, width=4000).print(visible(text))
    assert out.getvalue() == visible(text) + "\n"
    out = io.StringIO()
    PlainConsole(file=out, width=4000).print(text.replace("\n", ""))
    checked_terminal(out.getvalue())


def status(text):
    site = {
        "fingerprint": "0" * 64, "online": True, "last_seen_s": None, "bytes_in": 0,
        "bytes_out": 0, "in_run": {"state": "refused", "reason": text, "rounds": 1, "refused": 1},
    }  # fmt: skip
    run = {"name": "demo", "state": "failed", "why": text, "round": 1, "rounds": 2, "tries": 1,
           "waiting": None, "privacy": {}}  # fmt: skip
    refusal = {"count": 3, "status": 403, "what": text}
    past = {**run, "name": "spring", "asked": 2, "contributed": 1, "top1": 0.5}
    return {"name": "federation", "address": "a:1", "up": True, "superlink": "up", "page": "",
            "processes": {}, "certificate": {"days": 3, "error": text}, "sites": {"site-1": site},
            "fingerprint": "0" * 64, "run": run, "past_runs": [past],
            "refusals": [refusal]}  # fmt: skip


@pytest.mark.parametrize("text", MARKUP)
def test_the_coordinators_status_shows_it_and_does_nothing(text, capsys):
    found = status(text)
    found["certificate"]["error"] = text.replace("\r\n", "")
    show_status(found)
    told = capsys.readouterr().out
    checked_terminal(told)
    assert visible(text)[:8] in told


@pytest.mark.parametrize("text", MARKUP)
def test_the_live_views_show_it_and_do_nothing(text, tiny):
    site = SiteView(state="refused", reason=text)
    view = types.SimpleNamespace(round=1, rounds=2, sites={"site-1": site})
    out = io.StringIO()
    console = PlainConsole(file=out, width=400)
    console.print(site_table(view))
    live = LiveView(tiny, console)
    live({"event": "roll_call", "accepted": False, "reason": text})
    live({"event": "round_started", "round": 1, "cohort": ["site-1"]})
    live({"event": "reply", "kind": "train", "accepted": False, "round": 1, "site": "site-1",
          "reason": text})  # fmt: skip
    live({"event": "tracker_failed", "tracker": "w", "reason": text})
    live({"event": "site_set_aside", "round": 1, "site": "a", "refused_in_row": 1, "reason": text})
    checked_terminal(out.getvalue())


def prediction(name):
    verdict = types.SimpleNamespace(
        answer=name,
        sure=True,
        level=name,
        reason=name,
        confidence=0.5,
        unknown=False,
        top=[(name, 0.5)],
        levels=[],
    )
    return types.SimpleNamespace(name=name, fault="", verdict=verdict)


@pytest.mark.parametrize("text", [HOSTILE, "=1+2", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_is_a_formula(text):
    out = io.StringIO()
    csv.writer(out).writerow([csv_cell(cell) for cell in _row(prediction(text), 1)])
    for cell in next(csv.reader(io.StringIO(out.getvalue()))):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        checked_terminal(cell)


def test_predictions_are_shown_and_do_nothing(capsys):
    _show([prediction(HOSTILE)], 1)
    checked_terminal(capsys.readouterr().out)


def test_a_tracker_is_told_it_on_one_line():
    for event in (
        {"event": "reply", "accepted": False, "site": HOSTILE, "reason": HOSTILE},
        {"event": "site_set_aside", "site": HOSTILE, "reason": HOSTILE},
    ):
        checked_terminal(note_of(event))


def test_markdown_has_no_cell_tag_or_link_of_it():
    shown = markdown_cell(HOSTILE)
    assert not re.search(r"(?<!\\)[|<>\[\]`]", shown)
    checked_terminal(shown)


def test_a_picture_has_no_element_of_it():
    counts = {HOSTILE: np.ones(2, np.int64), "b": np.ones(2, np.int64)}
    svg = draw_partition(counts, [HOSTILE, HOSTILE + "2"], HOSTILE, [])
    assert "<script" not in svg


def test_every_text_of_a_reply_may_be_hostile_and_is_shown_by_its_code():
    """Texts are bounded, and whoever shows one goes through the functions above."""
    texts = {
        name for name, field in Reply.model_fields.items()
        if field.annotation is str and "pattern" not in repr(field.metadata)
    }  # fmt: skip
    assert {"reason", "version", "code_digest", "site"} <= texts
    for name in texts:
        assert "MaxLen" in repr(Reply.model_fields[name].metadata)


def test_site_check_shows_it_and_does_nothing(monkeypatch, tmp_path):
    import fieldmark.client.deployment.check as checks
    from fieldmark.client.cli import site_app

    findings = (checks.Finding("tls", "failed", f"issued by {HOSTILE}", "", 5),)
    monkeypatch.setattr(checks, "check_site", lambda *_: checks.Checked(findings))
    result = CliRunner().invoke(site_app, ["check", str(tmp_path)])
    checked_terminal(result.output)
    assert len(result.output.splitlines()) == 1
