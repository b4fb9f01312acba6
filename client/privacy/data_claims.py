"""Register of which home holds the ledger of which data, so that no data get a second ledger.

Joining again with a new home would start an empty ledger over pictures that have been charged
already. This register, one file in the user's state folder (``$FIELDMARK_STATE``, else
``$XDG_STATE_HOME/fieldmark``, else ``~/.local/state/fieldmark``), prevents that. It keeps a claim
for each data set that a home ever used, and no later claim replaces it.

Data are identified by place and by content. By place: symbolic links are resolved, and a folder
inside a registered one, or around it, counts as the same. By content: most marks of two samples
agree (:mod:`.sample`). Samples are taken by ``site join``, ``site up`` and ``site check``, never
for a message, whose answer must not depend on a picture. If the path is changed while the site is
up, only the place is compared until the next of these commands.

The register also blocks copies of a home. A claim holds the head of the home's ledger, written
durably after each charge and before each reply that depends on the pictures
(:meth:`Register.guarding`). A home whose ledger lacks that head is an older copy, and a home whose
key is used by another existing home is a second copy; neither releases anything. Unlike a lock,
this also holds after a reboot. If both copies answer at once, the file lock lets one go first, and
the other then lacks its head. The cost is one small durable write per charge and per reply.

Not detected: homes of other users, other machines or another ``$FIELDMARK_STATE``; data that were
both re-encoded and moved. Simulated sites are not registered, because they share a data set.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fgvc_core.errors import ConfigurationError, DataError, PeerError, PolicyRefusal
from fgvc_core.files import FILE_MODE, private_folder, sync_folder, user_home, write_durably
from fgvc_core.protocol.keys import fingerprint, read_private
from fieldmark.client.privacy.chain import GENESIS
from fieldmark.client.privacy.sample import Sample, take_sample

FILE = "register.json"
SAMPLE_KEY = "sample.key"
MOST_SAMPLES = 16
"""Maximum number of samples kept per data set."""

STATE_VARIABLE = "FIELDMARK_STATE"

Holds = Callable[[str], bool]
"""Tells whether a home's ledger has an entry with this hash."""

Head = Callable[[], tuple[int, str, float]]
"""Returns a ledger's length in entries, the hash of its last entry, and its total epsilon."""


class DataClaim(BaseModel):
    """One home's claim to its data.

    Attributes:
        data: Absolute path of the data, symbolic links resolved; empty for a home without its own
            pictures, which is registered only for its ledger's head.
        home: Absolute path of the site's home.
        key: Fingerprint of the site's key.
        head: Hash of the last registered entry of its ledger.
        length: Number of entries of the ledger then.
        spent: Total epsilon of the ledger then, at the policy's delta.
        samples: Samples of the data's content, oldest first; one is added when none of the others
            resembles the data any more, so that slowly changing data stay recognizable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: str
    home: str
    key: str
    head: str
    length: int = Field(0, ge=0)
    spent: float = Field(0.0, ge=0.0)
    samples: tuple[Sample, ...] = ()

    @classmethod
    def of(
        cls,
        data: str,
        home: Path,
        key: str,
        head: str = GENESIS,
        length: int = 0,
        samples: tuple[Sample, ...] = (),
    ) -> "DataClaim":
        """Claim with its paths resolved."""
        where = str(Path(data).expanduser().resolve()) if data else ""
        for path in (where, str(home.resolve())):
            try:
                path.encode()
            except UnicodeEncodeError:
                raise ConfigurationError(
                    f"The path {path!r} has characters that cannot be written down as text.",
                    why="The register could not be read again.",
                    remedy="Rename the folder, or mount it under another name.",
                ) from None
        return cls(
            data=where,
            home=str(home.resolve()),
            key=key,
            head=head,
            length=length,
            samples=samples,
        )


_CLAIMS = TypeAdapter(list[DataClaim])


def state_folder() -> Path:
    """Folder of this user's persistent state."""
    own = os.environ.get(STATE_VARIABLE)
    if own:
        return Path(own)
    shared = os.environ.get("XDG_STATE_HOME")
    return (
        Path(shared) if shared else user_home(STATE_VARIABLE) / ".local" / "state"
    ) / "fieldmark"


class Register:
    """Register of one user.

    Args:
        folder: The state folder; by default the user's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or state_folder()) / FILE

    def claims(self) -> list[DataClaim]:
        """All claims.

        Raises:
            DataError: if the file is damaged.
        """
        try:
            return _CLAIMS.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            what = error.strerror if isinstance(error, OSError) else "it is no list of claims"
            raise DataError(
                f"The register of ledgers '{self.path}' cannot be read: {what}.",
                why="It says which data have a ledger already.",
                remedy="Restore it from a copy.",
            ) from None

    def sampled(self, claim: DataClaim) -> DataClaim:
        """Claim with a new sample of its data's content.

        Raises:
            ConfigurationError: if the sample key cannot be read or written.
        """
        if not claim.data:
            return claim
        sample = take_sample(Path(claim.data), self._sample_key())
        return claim.model_copy(update={"samples": (sample,) if sample.marks else ()})

    def claim(
        self, claim: DataClaim, holds: Holds = lambda head: False, head: Head | None = None
    ) -> None:
        """Register a claim, or renew it.

        Args:
            claim: Claim of an existing home.
            holds: Tells whether the home's ledger has an entry with this hash.
            head: Reads the ledger's head while this register is locked; None to use the claim's
                values.

        Raises:
            PolicyRefusal: if another home has the data, or the home's ledger is older than the
                registered one.
            ConfigurationError: if the register cannot be written.
        """
        with self.claiming(claim, holds, head):
            pass

    def rekey(self, home: Path, key: str, old: str | None) -> None:
        """Transfer a home's claims to its next key.

        Args:
            home: Home of the site.
            key: Fingerprint of the next key.
            old: Fingerprint of the current key. Claims under other keys, of earlier homes in this
                place, are not transferred. None: it is lost, and all claims of this place are
                transferred.
        """
        with self._alone():
            before = self.claims()
            own = str(home.resolve())
            after = [
                claim.model_copy(update={"key": key})
                if claim.home == own and old in (None, claim.key)
                else claim
                for claim in before
            ]
            if after != before:
                self._write(after)

    @contextmanager
    def claiming(
        self, claim: DataClaim, holds: Holds = lambda head: False, head: Head | None = None
    ) -> Iterator[None]:
        """Register a claim, then run the body; the claim is withdrawn if the body raises."""
        with self._alone():
            before = self.claims()
            if head is not None:
                claim = _at(claim, head)
            after = self._settled(before, claim, holds)
            if after != before:
                self._write(after)
            try:
                yield
            except BaseException:
                if after != before:
                    self._write(before)
                raise

    @contextmanager
    def guarding(self, claim: DataClaim, holds: Holds, head: Head) -> Iterator[None]:
        """Block all other copies of a home while its ledger is written in the body.

        On exit, the ledger's new head has been written durably to the register.

        Args:
            claim: Claim of the home that writes.
            holds: Tells whether its ledger has an entry with this hash.
            head: Reads its ledger's length and head, after the body.

        Raises:
            PolicyRefusal: if this is a second or an older copy of the home, or its data have
                another ledger; the body did not run.
            ConfigurationError: if the register cannot be written.
        """
        with self._alone():
            before = self.claims()
            after = self._settled(before, claim, holds)
            yield
            after = [
                _at(other, head) if (other.key, other.home) == (claim.key, claim.home) else other
                for other in after
            ]
            if after != before:
                self._write(after)

    def lacking(self, key: str, holds: Holds) -> list[DataClaim]:
        """Claims of a key whose registered head is not in its ledger: the ledger is an older copy.

        Args:
            key: Fingerprint of the site's key.
            holds: Tells whether its ledger has an entry with this hash.
        """
        return [claim for claim in self.claims() if claim.key == key and not _known(claim, holds)]

    def _settled(self, before: list[DataClaim], claim: DataClaim, holds: Holds) -> list[DataClaim]:
        """All claims after adding this one; no earlier claim is dropped.

        Raises:
            PolicyRefusal: if the claim conflicts with another.
        """
        kept: list[DataClaim] = []
        renewed = claim
        for other in before:
            # A moved home is recognized by its key, a home with a new key by its place.
            if claim.key != other.key and claim.home != other.home:
                if _same_data(claim, other):
                    raise _taken(claim, other, self.path)
                kept.append(other)
                continue
            if other.home != claim.home and _is_home_of(Path(other.home), other.key):
                if not _same_data(claim, other):
                    raise _key_in_use(other)
                raise _taken(claim, other, self.path)
            known = _known(other, holds)
            if not known and (other.key == claim.key or _same_data(claim, other)):
                raise _older(self.path)
            if other.data == claim.data:
                renewed = renewed.model_copy(
                    update={"samples": _gathered(other.samples, claim.samples)}
                )
            elif known:
                kept.append(other.model_copy(update={"key": claim.key, "home": claim.home}))
            else:
                # Of an earlier home in this place, over other data: they stay registered.
                kept.append(other)
        return [*kept, renewed]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            if not self.path.parent.exists():
                private_folder(self.path.parent)
                sync_folder(self.path.parent.parent)
            lock = FileLock(self.path.with_suffix(".lock"), mode=FILE_MODE)
            lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            yield
        finally:
            lock.release()

    def _sample_key(self) -> bytes:
        path = self.path.with_name(SAMPLE_KEY)
        with self._alone():
            try:
                # Samples under an older key could never be compared with those of a new one.
                if not path.exists() and not any(claim.samples for claim in self.claims()):
                    write_durably(path, secrets.token_bytes(32))
                found = path.read_bytes()[:64] if path.exists() else b""
            except OSError as error:
                raise self._unwritable(error) from None
        if not found:
            raise DataError(
                f"The register's key '{path}' is gone or empty.",
                why="Data that are known by their content could not be recognized any more.",
                remedy="Restore it from a copy of that folder.",
            )
        return found

    def _write(self, claims: list[DataClaim]) -> None:
        # One claim per line, so that a person can remove one.
        lines = ",\n".join(json.dumps(claim.model_dump()) for claim in claims)
        text = f"[\n{lines}\n]\n"
        try:
            write_durably(self.path, text.encode())
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"The register of ledgers '{self.path}' cannot be written: {error.strerror}.",
            why="It keeps data from getting a second ledger.",
            remedy=f"Name a folder that lasts and that you may write to: {STATE_VARIABLE}=FOLDER.",
        )


def _same_data(one: DataClaim, other: DataClaim) -> bool:
    if not one.data or not other.data:
        return False
    if _overlap(Path(one.data), Path(other.data)):
        return True
    return any(sample.is_like(known) for sample in one.samples for known in other.samples)


def _overlap(one: Path, other: Path) -> bool:
    if one.is_relative_to(other) or other.is_relative_to(one):
        return True
    try:
        # A folder may be mounted in two places.
        return one.samefile(other)
    except OSError:
        return False


def _known(claim: DataClaim, holds: Holds) -> bool:
    return claim.head == GENESIS or holds(claim.head)


def _at(claim: DataClaim, head: Head) -> DataClaim:
    """Claim with the current head of its ledger."""
    length, last, spent = head()
    # Capped, because JSON has no infinity.
    return claim.model_copy(update={"head": last, "length": length, "spent": min(spent, 1e300)})


def _gathered(known: tuple[Sample, ...], fresh: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """Known samples, followed by those fresh ones that resemble none of them.

    If there are too many, the oldest and the latest ones are kept: growing data are recognized by
    what they were and by what they have become.
    """
    found = known + tuple(s for s in fresh if not any(s.resembles(other) for other in known))
    return found if len(found) <= MOST_SAMPLES else (found[0], *found[1 - MOST_SAMPLES :])


def _is_home_of(home: Path, key: str) -> bool:
    """Whether a home has this key; also True if its key cannot be read."""
    if not (home / "site.toml").exists():
        return False
    try:
        return fingerprint(read_private(home / "key").public_key()) == key
    except PeerError:
        return True


def _key_in_use(other: DataClaim) -> PolicyRefusal:
    return PolicyRefusal(
        "This site's key is in use in another home.",
        why=f"That is '{other.home}': one key is one site, and answers from one home.",
        remedy="Use that home, or make a key for this one: fieldmark site key FILE.",
    )


def _older(register: Path) -> PolicyRefusal:
    return PolicyRefusal(
        "This site's ledger is older than the one that is registered for its data.",
        why="An old copy of the ledger was put back: what was spent since is forgotten.",
        remedy="Restore the newest copy of the site's home. If there is none, ask the coordinator "
        "for its statement, and charge what is missing: fieldmark site ledger recover DIR "
        f"STATEMENT. (The register is '{register}'.)",
    )


def _taken(claim: DataClaim, other: DataClaim, register: Path) -> PolicyRefusal:
    # The first sentence may reach the coordinator and must not contain a path.
    if not claim.data:
        return PolicyRefusal(
            "This site's ledger is in use in another home.",
            why=f"'{claim.home}' and '{other.home}' are copies with one key; each would spend the "
            "same budget.",
            remedy="Use one of them, and delete the other.",
        )
    return PolicyRefusal(
        "These data have a ledger already, in another home.",
        why=f"What was spent on '{other.data}' is written down in '{other.home}'; a second ledger "
        f"for '{claim.data}' would begin at nothing.",
        remedy=f"Use that home, moved where you want it. If it is gone for good, what was spent is "
        f"not known; to begin anew all the same, take its entry out of '{register}'.",
    )
