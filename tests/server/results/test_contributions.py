"""Reasons, from a run's events, why a site that was asked did not contribute."""

from fieldmark.server.deployment.following import RunView
from fieldmark.server.report.refusals import in_words, refusals_by_reason
from fieldmark.server.results.contributions import reasons


def roll_call(accepted, reason=None, **of):
    return {"event": "roll_call", "accepted": accepted, "reason": reason, **of}


def reply(site, reason):
    return {"event": "reply", "site": site, "accepted": reason is None, "reason": reason}


def test_each_kind_of_absence_has_its_words():
    policy = "Site 'b' answered 'refused-policy'. The run asks for too much."
    events = [
        roll_call(True, site="ok"),
        roll_call(False, policy, site=None, proven="b"),
        roll_call(False, "Site 'c' runs Fieldmark 9.", site=None, proven="c"),
        roll_call(False, "No answer to the roll call within 60 s.", site=None, registered="d"),
        {"event": "awaiting_approval", "site": "e"},
        roll_call(True, site="f"),
        reply("f", "The update points against the model's last movement."),
        {"event": "site_set_aside", "site": "f", "reason": "points against"},
        roll_call(True, site="g"),
        reply("g", "No reply within deadline_s = 60."),
        roll_call(True, site="h"),
        {"event": "site_left", "site": "h", "why": "away"},
        roll_call(True, site="i"),
        reply("ok", None),
        reply("ok", "refused once"),
    ]
    found = reasons(["ok", *"abcdefghi"], {"ok": 1, "f": 0}, events)
    assert found == {
        "a": "away: it did not answer the roll call",
        "b": "refused at the roll call: by its own policy: The run asks for too much.",
        "c": "refused at the roll call: Site 'c' runs Fieldmark 9.",
        "d": "away: it did not answer the roll call",
        "e": "awaiting approval: nobody there has approved the run",
        "f": "set aside: points against",
        "g": "No reply within deadline_s = 60.",
        "h": "away: its node left",
        "i": "admitted, and no round has asked it for an update",
    }


def test_the_class_of_a_failure_reaches_the_end_of_a_run_and_the_status():
    said = "The site answered 'unavailable'. Cause: memory (memory has ended)."
    called = "Site 'b' answered 'unavailable'. Cause: disk (a disk is full or does not answer)."
    answered = {**reply("a", said), "round": 1, "kind": "train", "bytes_up": 0, "bytes_down": 0}
    events = [roll_call(True, site="a"), roll_call(False, called, site=None, proven="b"), answered]
    assert reasons(["a", "b"], {}, events) == {
        "a": f"refused: {said}",
        "b": "refused at the roll call: Cause: disk (a disk is full or does not answer).",
    }
    view = RunView()
    for event in events:
        view.fold(event)
    assert {name: site.reason for name, site in view.sites.items()} == {"a": said, "b": called}
    assert in_words(refusals_by_reason([answered])[0]).endswith(said)


def test_a_later_yes_and_a_later_return_replace_the_earlier_reason():
    events = [
        {"event": "awaiting_approval", "site": "a"},
        roll_call(True, site="a"),
        reply("a", "Its norm is not finite."),
    ]
    assert reasons(["a"], {}, events) == {"a": "refused: Its norm is not finite."}
