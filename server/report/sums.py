"""What a run's report and results say about masked sums: over how many sites each was."""

from typing import Any

from fgvc_core.words import counted


def secure_in_words(metrics: dict[str, Any]) -> list[str]:
    """Sentences about a run's masked sums; none if it had none."""
    secure = metrics.get("secure")
    if not secure:
        return []
    told = [_sum_in_words(found) for found in secure["sums"]]
    alone = [
        p["epsilon_alone"] for p in metrics.get("privacy", {}).values() if "epsilon_alone" in p
    ]
    told.append(
        "The coordinator saw these sums and no site's part of them. The epsilon of each site holds "
        f"as long as at most {secure['colluding']} of all sites work with the coordinator or run "
        "altered code"
        + (f"; if all others did, up to {max(alone):.3f}." if alone else ".")
        + " One site can spoil a sum, and nobody can tell which."
    )
    return told


def _sum_in_words(found: dict[str, Any]) -> str:
    sites, missing = found["sites"], found["asked"] - len(found["sites"])
    left = f"; {missing} of {found['asked']} were not ready" if missing else ""
    return f"Round {found['round']}, {found['phase']}: the sum over " + (
        f"{counted(len(sites), 'site')}{left}."
    )
