from fieldmark.server.report.refusals import counted, in_words, refusal_lines, refusals_by_reason


def reply(site, round_, reason):
    return {"event": "reply", "site": site, "round": round_, "accepted": False, "reason": reason}


EVENTS = [
    reply("site-2", 4, "Its norm is 3.1 times the median."),
    reply("site-5", 4, "Its norm is 2.9 times the median."),
    reply("site-1", 6, "No reply within deadline_s = 60."),
    {"event": "start_refused", "site": "site-3", "reason": "The counts are no counts."},
    {"event": "reply", "site": "site-1", "round": 1, "accepted": True, "reason": None},
    {"event": "roll_call", "site": None, "node": 9, "accepted": False, "reason": "Unknown key."},
]


def test_refused_and_missing_replies_are_counted_apart():
    groups = refusals_by_reason(EVENTS)
    assert counted(groups) == (4, 1)
    assert [group["count"] for group in groups] == [2, 1, 1, 1]
    told = [in_words(group) for group in groups]
    assert told == [
        "2 replies refused, of site-2, site-5, in round 4: Its norm is 3.1 times the median.",
        "1 reply never came from site-1, in round 6: No reply within deadline_s = 60.",
        "1 reply refused, of site-3, at the start: The counts are no counts.",
        "1 reply refused, of a node, at the roll call: Unknown key.",
    ]


def test_the_lines_of_a_run_say_how_many_and_who_was_set_aside():
    sites = {"site-2": {"set_aside": "three in a row"}, "site-1": {"set_aside": None}}
    lines = refusal_lines(refusals_by_reason(EVENTS), sites)
    assert lines[0] == "Refused: 4 replies."
    assert lines[1] == "Missing: 1 reply."
    assert lines[-1] == "Set aside at the end: site-2: three in a row"
    assert refusal_lines(refusals_by_reason(EVENTS[4:5])) == []
    many = [reply("site-1", 1, f"reason {'abcdefgh'[n]}") for n in range(7)]
    assert refusal_lines(refusals_by_reason(many))[-1].strip() == (
        "... and 2 rarer reasons, in the report."
    )
