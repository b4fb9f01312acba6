"""Which modes of a home's files keep a site from coming up."""

from pathlib import Path

from fgvc_core.files import check_secret, check_unchanged_by_others
from fieldmark.client.deployment.link import CA

SECRETS = ("key", "split.key")
"""Whoever reads them is this site, or can tell its validation split."""
TRUSTED = ("site.toml", "coordinator.pub", "coordinator.toml", CA, "ledger.jsonl", "ledger.head")
"""Whoever writes to them decides what this site allows, whom it answers, or what it has spent."""


def check_modes(home: Path) -> None:
    """Refuse a home whose keys others can read, or whose settings others can change.

    Raises:
        ConfigurationError: naming the file, its mode, and the command that mends it.
    """
    for name in SECRETS:
        check_secret(home / name)
    check_unchanged_by_others((home, *(home / name for name in TRUSTED)))
