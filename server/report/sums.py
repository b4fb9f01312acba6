"""What a run's report and results say about masked sums: over how many sites each was."""

from collections import defaultdict
from typing import Any

from fgvc_core.words import counted

SUMS_TOLD = 6
"""Sums that are named one by one; of more, each kind is told in one sentence."""


def secure_in_words(metrics: dict[str, Any]) -> list[str]:
    """Sentences about a run's masked sums; none if it had none."""
    secure = metrics.get("secure")
    if not secure:
        return []
    sums = secure["sums"]
    told = [_sum_in_words(found) for found in sums]
    if len(sums) > SUMS_TOLD:
        told = _by_kind(sums)
    spent = [entry["round"] for entry in metrics.get("history", []) if "spent" in entry]
    if spent:
        told.append(
            f"{counted(len(spent), 'round')} of {len(metrics['history'])} had no sum, because a "
            "site that was ready stayed away or the sum was impossible: the model stayed as it was."
        )
    private = metrics.get("privacy", {})
    told.append(_noisy_in_words(secure, private) if private else _PLAIN)
    told.append("One site can spoil a sum, and nobody can tell which.")
    return told


_PLAIN = (
    "The coordinator saw these sums and no site's part of them. They have no noise: where the "
    "sites of two rounds differ, the difference of their sums says roughly what the others sent, "
    "and a class that one site alone holds is that site's in every sum. Only [privacy] helps there."
)


def _noisy_in_words(secure: dict[str, Any], private: dict[str, dict[str, Any]]) -> str:
    alone = [p["epsilon_alone"] for p in private.values() if "epsilon_alone" in p]
    return (
        "The coordinator saw these sums and no site's part of them. The epsilon of each site holds "
        f"as long as at most {secure['colluding']} of all sites work with the coordinator or run "
        "altered code"
        + (f"; if all others did, up to {max(alone):.3f}." if alone else ".")
        + ("" if len(alone) == len(private) else " At some sites nothing is promised then.")
    )


def _by_kind(sums: list[dict[str, Any]]) -> list[str]:
    kinds = defaultdict(list)
    for found in sums:
        kinds[found["phase"]].append(len(found["sites"]))
    told = []
    for phase, sizes in kinds.items():
        least, most = min(sizes), max(sizes)
        over = f"{least} to {most}" if least < most else f"{most}"
        told.append(f"{phase}: {counted(len(sizes), 'sum')} over {over} sites.")
    return told


def _sum_in_words(found: dict[str, Any]) -> str:
    sites, missing = found["sites"], found["asked"] - len(found["sites"])
    left = f"; {missing} of {found['asked']} were not ready" if missing else ""
    return f"Round {found['round']}, {found['phase']}: the sum over " + (
        f"{counted(len(sites), 'site')}{left}."
    )
