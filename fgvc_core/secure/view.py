"""The view: the set of sites that one sum is over, fixed before anything is masked."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fgvc_core.errors import PeerError
from fgvc_core.protocol.messages import CohortMember, SignedText
from fgvc_core.secure.masks import is_canonical
from fgvc_core.secure.ready import Ready, read_ready
from fgvc_core.secure.rules import SumRules

_DOMAIN = b"fieldmark view v1"


@dataclass(frozen=True)
class View:
    """A set of sites that are ready, and its digest.

    Attributes:
        digest: 32 bytes, over the texts in order. Salt of every mask.
        members: Sorted by name.
    """

    digest: bytes
    members: tuple[Ready, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites, sorted."""
        return tuple(ready.site for ready in self.members)

    def keys(self, without: str) -> dict[str, str]:
        """Site -> its fresh key, without one site."""
        return {ready.site: ready.key for ready in self.members if ready.site != without}


def view_digest(texts: Sequence[str]) -> bytes:
    """SHA-256 over the texts of all ready sites in order, each with its length."""
    digest = hashlib.sha256(_DOMAIN)
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def check_cohort(
    cohort: Sequence[CohortMember], rules: SumRules, own: str, fingerprint: str
) -> dict[str, str]:
    """Check the sites that a sum may be over, before any work.

    Args:
        cohort: As sent.
        rules: The run's.
        own: Name of this site.
        fingerprint: Of this site's key.

    Returns:
        Name -> fingerprint.

    Raises:
        PeerError: if it is too small or too large, is not sorted, has a name or a key twice, or is
            without this site.
    """
    names = [member.name for member in cohort]
    if not rules.least <= len(names) <= rules.most:
        raise _wrong(
            f"The sites asked together are {len(names)}; secure.least = {rules.least} to "
            f"secure.most = {rules.most} are possible."
        )
    if any(one >= other for one, other in pairwise(names)):
        raise _wrong("The sites asked together are not sorted by name, or one is named twice.")
    if len({member.fingerprint for member in cohort}) < len(cohort):
        raise _wrong("Two of the sites asked together have the same key.")
    found = {member.name: member.fingerprint for member in cohort}
    if found.get(own) != fingerprint:
        raise _wrong("This site is not among the sites asked together, or with another key.")
    return found


def read_view(
    signed: Sequence[SignedText], own_text: str, cohort: Mapping[str, str], rules: SumRules
) -> View:
    """Check the set of sites that a sum is to be over, and return it.

    Args:
        signed: The texts as forwarded.
        own_text: What this site has said, as stored.
        cohort: Name -> fingerprint, as this site was told in the first trip.
        rules: The run's.

    Raises:
        PeerError: for the first thing that is wrong; nothing may be sent then.
    """
    if not rules.least <= len(signed) <= rules.most:
        raise _wrong(
            f"The sum is over {len(signed)} sites; secure.least = {rules.least} to secure.most = "
            f"{rules.most} are possible."
        )
    own = Ready.parse(own_text)
    assert isinstance(own, Ready)
    members: list[Ready] = []
    for text in signed:
        ready, fingerprint = read_ready(text)
        if cohort.get(ready.site) != fingerprint:
            raise _wrong(f"Site '{ready.site}' is not among the sites asked, or has another key.")
        if ready.place != own.place:
            raise _wrong(f"Site '{ready.site}' is ready for {ready.place}, not for {own.place}.")
        if ready.ctx != own.ctx:
            raise _wrong(
                f"Site '{ready.site}' was asked something else: another model, recipe, set of "
                "sites or setting."
            )
        if members and members[-1].site >= ready.site:
            raise _wrong("The sites of the sum are not sorted by name, or one is named twice.")
        if not is_canonical(ready.key):
            raise _wrong(f"The fresh key of site '{ready.site}' is not in its one encoding.")
        members.append(ready)
    if len({ready.key for ready in members}) < len(members):
        raise _wrong("Two sites of the sum have the same fresh key.")
    if own_text not in {text.text for text in signed}:
        raise _wrong("This site's own ready text is not among those of the sum.")
    return View(view_digest([text.text for text in signed]), tuple(members))


def _wrong(what: str) -> PeerError:
    return PeerError(
        what,
        why="Masks are secret only in a sum over known sites that were all asked the same.",
        remedy="Nothing was sent. The coordinator's report and events.jsonl say what it asked.",
    )
