"""The coordinator's memory of its sites' privacy ledgers, kept across runs.

A site can lose its ledger with its disk, and an older copy lacks the charges made since. So the
coordinator records the ledger's length and head from each reply, in a folder beside ``sites.json``
that outlasts every run, and names the last head in each roll call and request::

    ledgers/SITE/head.json        the site's reply with the longest ledger
    ledgers/SITE/runs/RUN.json    its last reply of a run that states a cost, or else its last
    ledgers/SITE/units.json       its declared units
    ledgers/.recipes/DIGEST.toml  the recipes of these runs

Replies are stored with the site's signature, so a statement built from them (:func:`statement_of`)
can be checked against the site's own key. A reply is on disk before it is used. Only the owner can
read the files.

A run's folder links to it: ``coordinator/ledgers``. Without the link (a simulation) nothing is
stored.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError, DataError, PeerError
from fgvc_core.files import private_folder, replacing, sync_folder, write_durably, write_privately
from fgvc_core.protocol.keys import PrivateKey
from fgvc_core.protocol.ledger_statement import (
    LedgerStatement,
    SeenRun,
    SignedReply,
    seal_statement,
)
from fgvc_core.protocol.messages import Reply, Sealed
from fgvc_core.recipe import Recipe

FOLDER = "ledgers"
RECIPES = ".recipes"
"""Cannot be the name of a site."""
LINK = Path("coordinator") / FOLDER
NODES = Path("coordinator") / "nodes.json"


@dataclass(frozen=True)
class SeenHead:
    """The last known state of a site's ledger.

    Attributes:
        length: In entries.
        head: Hash of its last entry.
        run: The run whose reply stated it.
    """

    length: int
    head: str
    run: str


class LedgerMemory:
    """One run's access to the memory of ledgers.

    Args:
        run_dir: The run's folder.
        recipe: The run's.
    """

    def __init__(self, run_dir: Path, recipe: Recipe) -> None:
        self._folder = run_dir / LINK
        self._nodes = run_dir / NODES
        self._recipe = recipe
        self.remembers = self._folder.is_dir()
        """Whether there is a folder to store in; a simulation has none."""
        self._heads: dict[str, SeenHead | None] = {}
        self._unanswered: dict[tuple[str, str], list[str]] = {}

    def head(self, site: str) -> SeenHead | None:
        """The last known head of a site's ledger, from any run."""
        if not self.remembers:
            return None
        if site not in self._heads:
            self._heads[site] = read_head(self._folder, site)
        return self._heads[site]

    def units(self, site: str) -> int:
        """The site's declared units of earlier runs; 0: not known."""
        return read_units(self._folder, site) if self.remembers else 0

    def keep_units(self, site: str, units: int) -> None:
        """Store a site's declared units."""
        if self.remembers and self.units(site) != units:
            write_units(self._folder, site, units)

    def site_at(self, node: int) -> str | None:
        """Name of the site that is registered for a Flower node, or None."""
        return self.nodes().get(node)

    def nodes(self) -> dict[int, str]:
        """Flower node -> name of the site that is registered for it, as far as known."""
        known = _read_json(self._nodes) if self.remembers else {}
        return {int(node): site for node, site in known.items() if isinstance(site, str)}

    def head_at(self, node: int) -> SeenHead | None:
        """The last known ledger head of the site at a Flower node."""
        site = self.site_at(node)
        return None if site is None else self.head(site)

    def asked(self, site: str, run: str, nonce: str) -> None:
        """Record a request before it is sent."""
        if not self.remembers:
            return
        open_ = self._open_requests(site, run)
        open_.append(nonce)
        path = self._run_file(site, run)
        # Before the first reply of this run there is no file to update. Not synced: after a power
        # failure the site's next reply states what it had charged.
        if path.exists():
            _write(path, {**_read_json(path), "unanswered": open_}, sync=False)

    def saw(self, reply: Reply, sealed: Sealed) -> None:
        """Store a reply whose signature is valid; it is on disk when this returns.

        Raises:
            OSError: if it cannot be written.
        """
        if not self.remembers or not reply.ledger_head:
            return
        if reply.code != "ok":
            # A refusal changes nothing: it may come from an old copy of the ledger that lacks the
            # known head. Its charges count like those of an unanswered request.
            return
        open_ = self._open_requests(reply.site, reply.run)
        if reply.nonce in open_:
            open_.remove(reply.nonce)
        signed = {"body": sealed.text, "signature": sealed.signature.hex()}
        known = self.head(reply.site)
        if known is None or reply.ledger_length >= known.length:
            _write(self._folder / reply.site / "head.json", signed)
            self._heads[reply.site] = SeenHead(reply.ledger_length, reply.ledger_head, reply.run)
        path = self._run_file(reply.site, reply.run)
        if self._replaces(path, reply):
            recipe = self._folder / RECIPES / f"{reply.recipe_digest}.toml"
            if not recipe.exists():
                # The recipe as sent to sites, without settings of this machine.
                _write_bytes(recipe, self._recipe.announced.to_toml().encode())
            _write(path, {**signed, "unanswered": open_})

    def _replaces(self, path: Path, reply: Reply) -> bool:
        """Whether a reply tells more about its run's cost than the stored one."""
        known = _signed_of(path)
        if known is None:
            return True
        before = Reply.parse(known.body)
        assert isinstance(before, Reply)
        if (reply.privacy is None) != (before.privacy is None):
            return reply.privacy is not None
        return reply.ledger_length >= before.ledger_length

    def _run_file(self, site: str, run: str) -> Path:
        return self._folder / site / "runs" / f"{run}.json"

    def _open_requests(self, site: str, run: str) -> list[str]:
        if (site, run) not in self._unanswered:
            held = _read_json(self._run_file(site, run)).get("unanswered", [])
            self._unanswered[site, run] = [str(nonce) for nonce in held]
        return self._unanswered[site, run]


def link_memory(run_dir: Path, folder: Path) -> None:
    """Link a run's folder to the memory in a coordinator's folder.

    Args:
        run_dir: The run's folder.
        folder: The coordinator's.
    """
    kept = folder.resolve() / FOLDER
    kept.mkdir(mode=0o700, exist_ok=True)
    link = run_dir / LINK
    if link.is_symlink() and link.readlink() == kept:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(kept)


def read_head(ledgers: Path, site: str) -> SeenHead | None:
    """Read the last known head of a site's ledger from a coordinator's ``ledgers``.

    Raises:
        DataError: if the file is damaged.
    """
    signed = _signed_of(ledgers / site / "head.json")
    if signed is None:
        return None
    reply = Reply.parse(signed.body)
    assert isinstance(reply, Reply)
    return SeenHead(reply.ledger_length, reply.ledger_head, reply.run)


def read_units(ledgers: Path, site: str) -> int:
    """Read a site's declared units from a coordinator's ``ledgers``.

    Raises:
        DataError: if the file is damaged.
    """
    path = ledgers / site / "units.json"
    units = _read_json(path).get("units", 0)
    if type(units) is not int or units < 0:
        raise _damaged(path, "it names no number of units")
    return units


def write_units(ledgers: Path, site: str, units: int) -> None:
    """Store a site's declared units; the coordinator calls it to accept a changed number."""
    _write(ledgers / site / "units.json", {"units": units})


def read_signed_head(ledgers: Path, site: str) -> SignedReply | None:
    """The signed reply behind the last known head; None if it is missing or damaged."""
    try:
        return _signed_of(ledgers / site / "head.json")
    except DataError:
        return None


def forget(folder: Path, site: str) -> None:
    """Archive the memory of a site name that now belongs to another site."""
    kept = folder / FOLDER / site
    if kept.exists():
        kept.rename(kept.with_name(f"{site}.{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"))


def statement_of(folder: Path, site: str, key: PrivateKey) -> str:
    """The signed statement of a site's ledger, as text of its file.

    Args:
        folder: The coordinator's.
        site: The site's name.
        key: The coordinator's.

    Raises:
        ConfigurationError: if no reply ever stated the site's ledger.
        DataError: if a file is damaged.
    """
    ledgers = folder / FOLDER
    head = _signed_of(ledgers / site / "head.json")
    if head is None:
        raise ConfigurationError(
            f"Nothing was ever seen of the ledger of site '{site}'.",
            why="It has not answered a roll call of a run of this coordinator.",
            remedy="Its newest copy is as good as this coordinator knows.",
        )
    runs = sorted(_runs(ledgers / site / "runs"), key=lambda pair: pair[0].ledger_length)
    digests = {reply.recipe_digest for reply, _ in runs}
    try:
        recipes = {
            digest: (ledgers / RECIPES / f"{digest}.toml").read_text(encoding="utf-8")
            for digest in sorted(digests)
        }
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(ledgers / RECIPES, str(error)) from None
    statement = LedgerStatement(
        site=site,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        head=head,
        runs=tuple(run for _, run in runs),
        recipes=recipes,
    )
    return seal_statement(key, statement)


def _runs(folder: Path) -> Iterator[tuple[Reply, SeenRun]]:
    for path in sorted(folder.glob("*.json")):
        signed = _signed_of(path)
        assert signed is not None
        reply = Reply.parse(signed.body)
        assert isinstance(reply, Reply)
        unanswered = len(_read_json(path).get("unanswered", []))
        yield reply, SeenRun(reply=signed, unanswered=unanswered)


def _signed_of(path: Path) -> SignedReply | None:
    values = _read_json(path)
    if not values:
        return None
    try:
        signed = SignedReply(body=values["body"], signature=values["signature"])
        Reply.parse(signed.body)
    except (KeyError, ValueError, PeerError) as error:
        raise _damaged(path, str(error)) from None
    return signed


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(values, dict):
        raise _damaged(path, "it is no object")
    return values


def _write(path: Path, values: dict[str, Any], *, sync: bool = True) -> None:
    _write_bytes(path, json.dumps(values).encode(), sync=sync)


def _write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file atomically, readable by its owner only."""
    fresh = not path.parent.exists()
    private_folder(path.parent)
    if sync:
        write_durably(path, data)
        if fresh:
            for folder in (path.parent.parent, path.parent.parent.parent):
                sync_folder(folder)
        return
    with replacing(path, private=True) as aside:
        write_privately(aside, data)


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"What is remembered of a site's ledger, '{path}', is damaged: {what}.",
        why="It is how an old copy of a ledger is noticed.",
        remedy="Restore it from a copy. Without one move the file away: from then on an old copy "
        "of that site's ledger is noticed by its later replies alone.",
    )
