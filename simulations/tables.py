"""Terminal tables of trials: attacks in turn, and backdoors over seeds."""

import statistics
from typing import Any

from rich.table import Table

from fgvc_core.words import counted
from fieldmark.simulations.trials import UNGUARDED

Entry = dict[str, Any]
Group = tuple[str, str | None, float | None]


def backdoor_tables(metrics: dict[str, Any]) -> list[Table]:
    """One row per strategy and attack: top-1, attack success and control.

    Args:
        metrics: Of the first run, with ``backdoors``.
    """
    entries: list[Entry] = metrics["backdoors"]
    return [_table(sites, entries) for sites in dict.fromkeys(e["sites"] for e in entries)]


def _table(sites: int, entries: list[Entry]) -> Table:
    here = [e for e in entries if e["sites"] == sites]
    seeds = len({e["seed"] for e in here})
    table = Table(title=f"Backdoors, {counted(sites, 'site')}, {counted(seeds, 'seed')}")
    for name in ("strategy", "trigger", "poisoned"):
        table.add_column(name)
    for name in ("top-1", "under attack", "success", "control", "refused"):
        table.add_column(name, justify="right")
    groups = dict.fromkeys(_group(e) for e in here if e["trigger"] is not None)
    for strategy, trigger, poisoned in groups:
        meant = [e for e in here if _group(e) == (strategy, trigger, poisoned)]
        # Runs whose cohorts never included a hostile site are not counted.
        attacked = [e for e in meant if e["struck"] or e["failed"] is not None]
        idle = len(meant) - len(attacked)
        clean = [e for e in here if e["strategy"] == strategy and e["trigger"] is None]
        refused = sum(e["hostile_refused"] for e in attacked)
        honest = sum(e["honest_refused"] for e in attacked)
        table.add_row(
            strategy,
            f"{trigger} (no attack in {idle} of {len(meant)} runs)" if idle else str(trigger),
            f"{100 * (poisoned or 0):.0f} %",
            spread([e["top1"] for e in clean]),
            spread([e["top1"] for e in attacked]),
            spread([e["success"].get(trigger) for e in attacked]),
            spread([e["success"].get(trigger) for e in clean]),
            f"{refused} + {honest}",
        )
    table.caption = (
        "Means and standard deviations over seeds. Top-1 without an attack and under it; success: "
        "share of other classes' test pictures that the trigger turns into the target's; control: "
        "the same on the model that nobody attacked; refused: hostile + honest replies. No attack: "
        "no hostile site was drawn and answered; such runs are left out of what is under attack."
    )
    return table


def spread(shares: list[float | None]) -> str:
    """Mean and standard deviation of successful runs, and the number of failed ones."""
    found = [share for share in shares if share is not None]
    failed = f", {len(shares) - len(found)} failed" if len(found) < len(shares) else ""
    if not found:
        return "failed" if shares else "-"
    deviation = f" ± {100 * statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{100 * statistics.mean(found):.1f}{deviation} %{failed}"


def _group(entry: Entry) -> Group:
    return entry["strategy"], entry["trigger"], entry["poisoned"]


def trial_table(metrics: dict[str, Any]) -> Table:
    """One row per attack: top-1 of each defense, the best one's loss, and FedAvg unguarded.

    The loss is relative to the same strategy without faults.

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
