from fieldmark.server.report.sums import secure_in_words

RULES = {"least": 3, "most": 5, "colluding": 1}


def one(round_, phase, count, asked=5):
    return {"round": round_, "phase": phase, "asked": asked,
            "sites": [f"site-{n}" for n in range(count)]}  # fmt: skip


def test_a_run_without_masked_sums_says_nothing_of_them():
    assert secure_in_words({"history": []}) == []


def test_few_sums_are_told_one_by_one():
    sums = [one(1, "centre", 5), one(1, "class-sums", 4)]
    private = {"site-1": {"epsilon_alone": 6.5}, "site-2": {"epsilon_alone": 6.25}}
    told = secure_in_words({"secure": {**RULES, "sums": sums}, "privacy": private})
    assert told[:2] == [
        "Round 1, centre: the sum over 5 sites.",
        "Round 1, class-sums: the sum over 4 sites; 1 of 5 were not ready.",
    ]
    assert "at most 1 of all sites" in told[2]
    assert told[2].endswith("if all others did, up to 6.500.")


def test_where_a_site_has_no_promise_alone_it_is_said():
    private = {"site-1": {"epsilon_alone": 6.5}, "site-2": {}}
    told = secure_in_words({"secure": {**RULES, "sums": []}, "privacy": private})
    assert told[0].endswith("up to 6.500. At some sites nothing is promised then.")


def test_many_sums_are_told_by_kind_and_rounds_without_one_are_counted():
    sums = [*(one(n, "train", 5 - n % 2) for n in range(1, 10)), one(10, "score", 5)]
    history = [{"round": n, **({"spent": "lost"} if n == 10 else {})} for n in range(1, 11)]
    told = secure_in_words({"secure": {**RULES, "sums": sums}, "history": history})
    assert told[:2] == ["train: 9 sums over 4 to 5 sites.", "score: 1 sum over 5 sites."]
    assert told[2].startswith("1 round of 10 had no sum")
    assert "They have no noise" in told[3]
