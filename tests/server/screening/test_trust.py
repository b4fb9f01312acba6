"""What is remembered of how a site's replies were taken."""

from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.trust import Standing


def test_who_was_refused_last_counts_as_found_out_until_a_sound_reply(tmp_path):
    standing = Standing({}, 2, EventLog(tmp_path / "events.jsonl"))
    assert standing.found() == 0
    standing.sound("a")
    standing.unsound("b", "too long")
    standing.unsound("c", "too long")
    assert standing.found() == 2
    standing.sound("b")
    standing.unsound("c", "too long")
    standing.close(2)
    assert standing.in_use(["a", "b", "c"]) == ["a", "b"]
    assert standing.found() == 1
