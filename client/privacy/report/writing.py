"""Writing of a site's privacy report: a page, and the same statement as JSON beside it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import write_durably
from fieldmark.client.privacy.chain import Chain, Entry
from fieldmark.client.privacy.ledger import FILE
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.privacy.report.facts import collect
from fieldmark.client.privacy.report.page import draw
from fieldmark.client.privacy.report.signing import sign_statement
from fieldmark.client.privacy.report.stated_site import StatedSite, stated_site
from fieldmark.client.privacy.report.words import words_of
from fieldmark.client.site import Site

FORMAT = "fieldmark privacy report 4"
"""Changed whenever earlier reports could no longer be verified."""


def write_report(home: Path, page: Path) -> dict[str, Any]:
    """Write a site's privacy report: a page, and its JSON beside it.

    Args:
        home: Home of the site.
        page: Path of the page; the JSON has the same name with ``.json``.

    Returns:
        The signed statement, as in the JSON.

    Raises:
        ConfigurationError: if the home is incomplete, or the page cannot be written.
        DataError: if the ledger does not verify.
    """
    site = Site.open(home)
    if page.suffix not in (".html", ".htm"):
        raise ConfigurationError(
            f"The page '{page}' does not end in .html.",
            why="Its JSON goes beside it under the same name.",
            remedy="Name a file that ends in .html (--out).",
        )
    try:
        # The writer's lock also acknowledges, and so charges, a line torn by a crash.
        with Chain(home / FILE).writing() as chain:
            entries = list(chain.entries())
    except OSError as error:
        raise ConfigurationError(
            f"The ledger in '{home}' cannot be opened: {error}.",
            remedy="Make the report as the user that the site runs as.",
        ) from None
    policy = site.settings.policy
    stated = stated_site(site, collect(entries, policy))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    signed = sign_statement(site.key, state(made, stated, policy, entries))
    try:
        write_durably(page.with_suffix(".json"), (signed.text + "\n").encode())
        write_durably(page, draw(signed))
    except OSError as error:
        raise ConfigurationError(
            f"The report '{page}' cannot be written: {error}.",
            remedy="Name a file in a folder that you may write to (--out).",
        ) from None
    return {"signature": signed.signature.hex(), "statement": signed.statement}


def state(made: str, site: StatedSite, policy: Policy, entries: Sequence[Entry]) -> dict[str, Any]:
    """Whole statement: plain values and sentences, to be signed and drawn.

    Args:
        made: Time of the report, UTC, ISO 8601.
        site: Self-description of the site.
        policy: Policy at that time.
        entries: Entries of the ledger, verified.

    Raises:
        DataError: if an entry is malformed.
    """
    facts = collect(entries, policy)
    return {
        "format": FORMAT,
        "made": made,
        "site": site.model_dump(),
        "policy": policy.model_dump(mode="json"),
        "policy_digest": policy.digest,
        "facts": facts,
        "words": words_of(site, policy, facts),
    }
