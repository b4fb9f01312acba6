import json
from datetime import datetime

import pytest

from fieldmark.server.run_log.events import EventLog


def test_each_event_is_one_line_that_is_on_disk_before_anyone_hears_of_it(tmp_path):
    path, heard = tmp_path / "events.jsonl", []

    def listen(event):
        heard.append((event, len(path.read_text().splitlines())))

    log = EventLog(path, (listen,))
    log.emit("round_started", round=1, cohort=["a\nb"])
    log.emit("reply", site="été", accepted=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e, n) for e, n in heard] == [(lines[0], 1), (lines[1], 2)]
    assert (lines[0]["event"], lines[0]["cohort"], lines[1]["site"]) == (
        *("round_started", ["a\nb"]),
        "été",
    )
    assert datetime.fromisoformat(lines[0]["time"]).utcoffset().total_seconds() == 0


def test_a_resumed_run_appends(tmp_path):
    for event in ("run_started", "resumed"):
        EventLog(tmp_path / "events.jsonl").emit(event)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["run_started", "resumed"]


def test_what_a_listener_raises_reaches_the_run_and_the_event_is_kept(tmp_path):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EventLog(tmp_path / "events.jsonl", (stop,)).emit("round_finished", round=2)
    assert json.loads((tmp_path / "events.jsonl").read_text())["round"] == 2


def test_what_is_cut_is_set_aside_but_for_the_site_that_has_lost_a_sum(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("checkpoint", round=1)
    mark = log.mark()
    log.emit("round_started", round=2)
    log.emit("secure_sum_lost", round=2, site="site-3")
    log.emit("failed", round=2)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "secure_sum_lost", "si')
    assert log.cut(mark) == 3
    log.emit("resumed", round=1)
    # Resumed once more from the same checkpoint, it is still there, and once.
    assert log.cut(mark) == 1
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["checkpoint", "secure_sum_lost"]
    aside = (tmp_path / "events-cut.jsonl").read_text().splitlines()
    assert [line[:60].count("secure_sum_lost") for line in aside] == [0, 0, 1, 0]
    assert log.cut(10_000) == 0
