"""The sites that a run asks, by their registered keys, and what their answers to a roll call prove.

What an answer claims about its sender only selects the key that its signature must match.
"""

import re

from flwr.app import Message

from fgvc_core import __version__
from fgvc_core.errors import PeerError, PolicyRefusal
from fgvc_core.flower.records import from_message
from fgvc_core.protocol.causes import refusal_in_words
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import PublicKey, fingerprint, read_public
from fgvc_core.protocol.messages import Reply, Request, unseal
from fgvc_core.words import counted
from fieldmark.server.home import CoordinatorHome, read_allow_list
from fieldmark.server.ledger_memory import LedgerMemory

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApprovalPending(PeerError):
    """A site's people have not decided yet; ``site`` is its name."""

    def __init__(self, site: str) -> None:
        super().__init__(f"Nobody at site '{site}' has approved the run yet.")
        self.site = site


class TurnedAway(PeerError):
    """A registered site whose proven answer was not accepted; ``site`` is its name."""

    def __init__(self, site: str, what: str) -> None:
        super().__init__(what)
        self.site = site


class Membership:
    """The allow-list of a run, and the checks of an answer to its roll call.

    Attributes:
        keys: Site -> its registered key in the current allow-list.
        units: Site -> its declared units, of sites that were admitted.
        refusals: Site -> the reason by its own policy at the roll call.
        reasons: Site -> why it takes no part, of sites whose answer was theirs.
        ledgers: Memory of the sites' ledgers across runs.
    """

    def __init__(self, home: CoordinatorHome) -> None:
        self._home = home
        self.keys: dict[str, PublicKey] = {
            name: read_public(text) for name, text in home.allow_list.items()
        }
        self._names = {fingerprint(key): name for name, key in self.keys.items()}
        self._listed: tuple[int, int] = (0, 0)
        self.units: dict[str, int] = {}
        self.refusals: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.ledgers = LedgerMemory(home.run_dir, home.recipe)

    def _read_allow_list(self) -> None:
        """Reload the coordinator's allow-list into the same dictionary, which others share."""
        written = (self._home.run_dir / "coordinator" / "sites.json").stat()
        stamp = written.st_mtime_ns, written.st_ino
        if stamp == self._listed:
            return
        self._listed = stamp
        found = read_allow_list(self._home.run_dir)
        self.keys.clear()
        self.keys.update({name: read_public(text) for name, text in found.items()})
        self._names = {fingerprint(key): name for name, key in self.keys.items()}

    def _proven(self, request: Request, message: Message) -> tuple[str, Reply]:
        """The site that a roll-call answer is signed by, and the answer.

        Raises:
            PeerError: if no registered site signed it, or the site may not take part.
        """
        sealed, packed = from_message(message)
        if packed:
            raise PeerError("An answer to the roll call carries tensors.")
        claimed = Reply.parse(sealed.text)
        if not isinstance(claimed, Reply):
            raise PeerError("The answer is no reply.")
        # Not trusted yet: it only selects the registered key that the signature must match.
        name = self._names.get(fingerprint(read_public(claimed.public_key)))
        if name is None:
            raise PeerError("The key that answered is not registered.")
        reply = unseal(Reply, sealed, self.keys[name], {})
        if (reply.nonce, reply.run) != (request.nonce, request.run):
            raise PeerError("The answer is to another roll call.")
        if reply.site != name:
            raise PeerError(f"The site calls itself '{reply.site}', its key is '{name}'.")
        try:
            self._check_proven(name, reply)
        except ApprovalPending:
            raise
        except PeerError as error:
            raise TurnedAway(name, error.what) from None
        self.ledgers.saw(reply, sealed)
        return name, reply

    def _check_proven(self, name: str, reply: Reply) -> None:
        """Check what a proven answer says.

        Raises:
            PeerError: if the site does not take part, or may not.
        """
        if reply.code == "awaiting-approval":
            raise ApprovalPending(name)
        if reply.code == "refused-policy":
            self.refusals[name] = reply.reason
        if reply.code != "ok":
            raise PeerError(f"Site '{name}' {refusal_in_words(reply)}")
        self._check_code(reply)
        seen = self.ledgers.head(name)
        if seen is not None and reply.ledger_length < seen.length:
            raise PeerError(shorter(reply.ledger_length, seen.length))

    def _keep_units(self, name: str, units: int) -> None:
        """Note the units that a proven site declares, its weight in every run.

        Raises:
            PeerError: if they are out of range or differ from the earlier declaration.
        """
        most = self._home.recipe.federation.max_weight
        declared = self.units.get(name) or self.ledgers.units(name)
        why = None
        if units > most or (self._home.recipe.privacy is not None and units < 1):
            why = f"declares {units} units; 1 to {most} count (federation.max_weight)."
        elif units and declared and declared != units:
            why = (
                f"declares {units} units, and declared {declared} before. If that is right: "
                "fieldmark server accept-units."
            )
        if why is not None:
            self.reasons[name] = f"Site '{name}' {why}"
            raise PeerError(self.reasons[name])
        if units:
            self.ledgers.keep_units(name, units)
        self.units[name] = units

    def _check_code(self, reply: Reply) -> None:
        """Check that a site runs the coordinator's code; for honest sites, because one can lie.

        Raises:
            PeerError: if it runs other code that ``accept_code`` does not name.
        """
        own = code_digest()
        if reply.code_digest == own or reply.code_digest in self._home.settings.accept_code:
            return
        said = f"Fieldmark {reply.version or 'unknown'} (code {reply.code_digest[:12] or 'none'})"
        # Only what is a digest: a person copies it into a file of settings.
        digest = reply.code_digest if _DIGEST.fullmatch(reply.code_digest) else None
        accept = "" if digest is None else f", or add '{digest}' to accept_code in server.toml"
        raise PeerError(
            f"Site '{reply.site}' runs {said}, and this coordinator {__version__} (code "
            f"{own[:12]}). Install the same there{accept}."
        )


def shorter(length: int, seen: int) -> str:
    """Refusal text for a site whose ledger has fewer entries than seen before."""
    return (
        f"The site's ledger has {length} entries, and had {seen}: an old copy was put back. What "
        "it lacks is charged with: fieldmark server ledger-statement, then at the site: fieldmark "
        "site ledger recover."
    )


def refused_by_all(refusals: dict[str, str]) -> PolicyRefusal:
    """The error that ends a run in which every site refuses; site -> its reason."""
    reasons = sorted(set(refusals.values()))
    return PolicyRefusal(
        f"{counted(len(refusals), 'site refuses by its', 'sites refuse by their')} own policy: "
        f"{' '.join(reasons[:3])}",
        why="A site's policy is not the coordinator's to change; its ledger is as it was.",
        remedy="Ask for what the sites allow; 'fieldmark site budget' at a site says what is left.",
    )
