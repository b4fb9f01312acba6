"""What is remembered of how a site's replies were taken."""

from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.trust import SiteTrust


def test_who_was_refused_last_counts_as_found_out_until_a_sound_reply(tmp_path):
    trust = SiteTrust({}, 2, EventLog(tmp_path / "events.jsonl"))
    assert trust.found() == 0
    trust.sound("a")
    trust.unsound("b", "too long")
    trust.unsound("c", "too long")
    assert trust.found() == 2
    trust.sound("b")
    trust.unsound("c", "too long")
    trust.close(2)
    assert trust.in_use(["a", "b", "c"]) == ["a", "b"]
    assert trust.found() == 1
