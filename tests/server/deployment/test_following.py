"""A run's state is told from its events."""

from fieldmark.server.deployment.following import RunView


def view_of(*events: dict) -> RunView:
    view = RunView()
    for event in events:
        view.fold(event)
    return view


def reply(site: str, accepted: bool = True, kind: str = "train") -> dict:
    said = {"event": "reply", "site": site, "accepted": accepted, "reason": "late", "kind": kind}
    return {**said, "bytes_up": 5, "bytes_down": 7}


FINISHED = {"event": "round_finished", "round": 1}


def test_replies_to_a_void_round_are_no_rounds_of_a_site():
    void = {"event": "round_void", "round": 1}
    view = view_of(reply("a"), void, reply("a"), reply("b"), FINISHED, reply("a", kind="score"))
    assert {name: site.rounds for name, site in view.sites.items()} == {"a": 1, "b": 1}
    # What was sent was sent.
    assert view.sites["a"].bytes_up == 15


def test_a_refused_reply_is_counted_and_kept_with_its_reason():
    view = view_of(reply("a"), reply("b", accepted=False), FINISHED)
    assert (view.sites["b"].refused, view.sites["b"].rounds) == (1, 0)
    assert [event["site"] for event in view.refusals] == ["b"]
