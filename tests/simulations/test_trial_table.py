"""What the table of attacks in turn says."""

from rich.console import Console

from fieldmark.simulations.tables import trial_table
from fieldmark.simulations.trials import UNGUARDED


def trial(attack, strategy, top1, refused=0, accepted=0):
    return {"attack": attack, "strategy": strategy, "top1": top1, "failed": None if top1 else "x",
            "hostile_refused": refused, "hostile_accepted": accepted, "honest_refused": 0,
            "absent": 0, "late": 0}  # fmt: skip


def test_the_loss_is_against_the_same_strategy_without_faults():
    metrics = {"top1": 0.80, "trials": [
        trial("none", "fedmedian", 0.75), trial("none", "krum", 0.79),
        trial("scaled", "fedmedian", 0.74, 9, 1), trial("scaled", "krum", 0.60),
        trial("scaled", UNGUARDED, None),
    ]}  # fmt: skip
    console = Console(width=160)
    with console.capture() as captured:
        console.print(trial_table(metrics))
    (row,) = [line for line in captured.get().splitlines() if "scaled" in line]
    assert "74.0 %" in row
    assert "60.0 %" in row
    assert "+1.0 points" in row
    assert "failed" in row
    assert "9 / 1" in row
    (clean,) = [line for line in captured.get().splitlines() if "no faults" in line]
    assert "80.0 %" in clean
