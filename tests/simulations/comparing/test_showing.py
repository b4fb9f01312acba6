from io import StringIO

from fgvc_core.console import PlainConsole
from fieldmark.simulations.comparing.showing import show_comparison


def row(top1, low, high):
    return {"top1": top1, "macro_f1": top1, "top1_interval": [low, high],
            "macro_f1_interval": [low, high]}  # fmt: skip


def difference(value, low, high, told):
    one = {"value": value, "low": low, "high": high, "told": told}
    return {"top1": one, "macro_f1": one}


RESULT = {
    "federated": row(0.781, 0.76, 0.80), "pooled": row(0.784, 0.763, 0.803),
    "local": {"site-1": row(0.5, 0.47, 0.53)}, "local_mean": row(0.5, 0.47, 0.53), "plain": None,
    "no_plain": "model.train = 'all' trains the backbone.", "seeds": [7], "test_examples": 1389,
    "differences": {
        "pooled": difference(-0.003, -0.011, 0.004, "no difference"),
        "local_mean": difference(0.281, 0.25, 0.31, "federated is better"),
        "local/site-1": difference(0.281, 0.25, 0.31, "federated is better"),
    },
    "refusals": [{"seed": 7, "reason": "its norm is 9 times the others'", "count": 2,
                  "sites": ["site-1", "site-3"], "sites_left": 0, "first": 4, "last": 4,
                  "missing": False}],
    "notes": ["One seed: ..."],
}  # fmt: skip


def shown(result, width=80):
    text = StringIO()
    show_comparison(result, PlainConsole(file=text, width=width))
    return text.getvalue()


def words(result):
    return " ".join(shown(result).replace("│", " ").split())


def test_the_table_says_what_differs_and_what_does_not():
    told = words(RESULT)
    assert "pooled 78.4 (76.3 to 80.3) 78.4 -0.3 (-1.1 to +0.4) no difference" in told
    assert "+28.1 (+25.0 to +31.0) federated is better" in told
    assert "No plain regression: model.train = 'all'" in told
    assert "Refused: 2 replies. 2 replies refused, of site-1, site-3, in round 4: its norm" in told


def test_the_plain_regression_stands_beside():
    plain = {**RESULT, "plain": row(0.79, 0.77, 0.81), "no_plain": None, "refusals": []}
    worse = difference(-0.01, -0.02, -0.001, "federated is worse")
    plain["differences"] = {**RESULT["differences"], "plain": worse}
    told = words(plain)
    assert "plain regression 79.0" in told
    assert "federated is worse" in told
    assert "No plain regression" not in told
    assert "Refused" not in told


def test_eighty_columns_are_enough():
    # Nothing within a cell is wrapped.
    wide = {**RESULT, "plain": row(0.79, 0.77, 0.81), "pooled_open": row(0.8, 0.78, 0.82)}
    told = shown(wide)
    for whole in ("+28.1 (+25.0 to +31.0)", "  site-1 alone", "78.1 (76.0 to 80.0)"):
        assert whole in told
    assert {len(line) for line in told.splitlines() if line.startswith("│")} == {77}
