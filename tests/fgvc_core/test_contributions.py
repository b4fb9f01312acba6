"""Counting of contributing sites, and the words for those that did not contribute."""

from fgvc_core.contributions import (
    absent,
    absent_in_words,
    alone_in_words,
    contribution_lines,
    contributors,
    who_learnt,
)


def run_of(*, counted=(), idle=(), missing=None):
    sites = {site: {"rounds": 3} for site in counted}
    sites |= {site: {"rounds": 0} for site in idle}
    return {"sites": sites, "not_contributed": missing or {}}


def test_a_site_whose_every_reply_was_refused_does_not_count():
    metrics = run_of(counted=["lyon", "oslo"], idle=["riga"])
    assert contributors(metrics) == ["lyon", "oslo"]
    assert absent(metrics) == {"riga": "no update of it was accepted"}
    assert who_learnt(metrics) == "two of three sites"


def test_the_reason_of_the_run_goes_before_the_general_one():
    metrics = run_of(counted=["lyon", "oslo"], idle=["riga"], missing={"riga": "set aside: far"})
    assert absent_in_words(metrics) == "Did not contribute: riga (set aside: far)."


def test_one_contributing_site_is_no_federation():
    lines = contribution_lines(run_of(counted=["lyon"], missing={"oslo": "away", "riga": "away"}))
    assert lines == [
        "Contributed: one site of three. This is the model of a single site, not of a federation.",
        "Did not contribute: oslo (away); riga (away).",
    ]


def test_nothing_is_said_where_all_of_several_contributed():
    assert contribution_lines(run_of(counted=["lyon", "oslo"])) == []
    assert absent_in_words(run_of(counted=["lyon", "oslo"])) == ""


def test_older_metrics_count_a_sites_rounds():
    metrics = {"sites": {"lyon": {"rounds": 7}, "oslo": {"rounds": 0}}}
    assert contributors(metrics) == ["lyon"]


def test_many_are_counted_and_words_of_a_site_move_no_cursor():
    missing = {f"s{n}": "refused: \x1b[2Jx" for n in range(12)}
    told = absent_in_words(run_of(counted=["lyon"], missing=missing))
    assert told.endswith("; and 4 more.")
    assert "\x1b" not in told
    assert who_learnt(run_of(counted=["lyon"], missing=missing)) == "one site of 13"


def test_rounds_of_one_site_alone_are_counted_where_several_contributed():
    metrics = run_of(counted=["lyon", "oslo"])
    assert alone_in_words(metrics | {"history": [{"accepted": 2}]}) == ""
    history = [{"accepted": 2}] * 15 + [{"accepted": 1}] * 15
    told = "In 15 of 30 rounds one site alone contributed."
    assert contribution_lines(metrics | {"history": history}) == ["Contributed: two sites.", told]
    # Said once: the whole model is that of a single site.
    assert alone_in_words(run_of(counted=["lyon"]) | {"history": history}) == ""
