"""The table of attacks in turn, for a terminal."""

from typing import Any

from rich.table import Table

from fieldmark.simulations.trials import UNGUARDED


def trial_table(metrics: dict[str, Any]) -> Table:
    """One row an attack: each defence's top-1, the best one's loss, and FedAvg unguarded.

    The loss is against the same strategy without faults.

    Args:
        metrics: Of the run without faults, with ``trials``.
    """
    trials: list[dict[str, Any]] = metrics["trials"]
    clean = {t["strategy"]: t["top1"] for t in trials if t["attack"] == "none"}
    names = list(dict.fromkeys(t["strategy"] for t in trials if t["strategy"] != UNGUARDED))
    table = Table(title="Top-1 under each attack")
    table.add_column("attack")
    for name in [*names, "best: loss", "fedavg unguarded", "refused / accepted"]:
        table.add_column(name, justify="right")
    for attack in dict.fromkeys(t["attack"] for t in trials):
        row = {t["strategy"]: t for t in trials if t["attack"] == attack}
        defended = [row[name] for name in names if row[name]["top1"] is not None]
        best = max(defended, key=lambda t: t["top1"], default=None)
        before = None if best is None else clean.get(best["strategy"])
        loss = "-"
        if best is not None and before is not None and attack != "none":
            loss = f"{100 * (before - best['top1']):+.1f} points"
        replies = "-"
        if best is not None:
            replies = f"{best['hostile_refused']} / {best['hostile_accepted']}"
        shown = [_percent(row[name]["top1"]) for name in names]
        unguarded = row.get(UNGUARDED, {"top1": metrics["top1"]})["top1"]
        name = "none, no faults" if attack == "none" else attack
        table.add_row(name, *shown, loss, _percent(unguarded), replies)
    table.caption = "Refused / accepted: hostile replies under the best defence."
    return table


def _percent(share: float | None) -> str:
    return "failed" if share is None else f"{100 * share:.1f} %"
