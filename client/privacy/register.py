"""Which data on this machine have a ledger, and in which home: no data get a second one.

A ledger is bound to its data. Somebody who joins again with a new folder would begin an
empty ledger over pictures that have been paid for; this register, one file in the user's
state folder (``$FIELDMARK_STATE``, else ``$XDG_STATE_HOME/fieldmark``, else
``~/.local/state/fieldmark``), remembers the home that has them. It knows data by where they
are: symbolic links are resolved, and a folder inside a registered one, or around it, counts
as the same. It also remembers the head of each ledger at its last roll call, so that an old
copy of a home is noticed though its ``ledger.head`` was put back with it.

What it cannot see: data that were copied or moved elsewhere, another user's homes, another
machine's. Simulated sites are not in it: they share a data set.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from client.privacy.chain import GENESIS
from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal
from fgvc_core.files import FILE_MODE, private_folder, sync_folder, write_durably

FILE = "register.json"
STATE_VARIABLE = "FIELDMARK_STATE"


class Claim(BaseModel):
    """One home's claim to its data.

    Attributes:
        data: Absolute path of the data, symbolic links resolved.
        home: Absolute path of the site's home.
        key: Fingerprint of the site's key.
        head: Hash of the last entry of its ledger at the last roll call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: str
    home: str
    key: str
    head: str

    @classmethod
    def of(cls, data: str, home: Path, key: str, head: str = GENESIS) -> "Claim":
        """A claim with its paths resolved."""
        where = Path(data).expanduser().resolve()
        return cls(data=str(where), home=str(home.resolve()), key=key, head=head)


_CLAIMS = TypeAdapter(list[Claim])


def state_folder() -> Path:
    """Where this user's programs keep what has to last."""
    own = os.environ.get(STATE_VARIABLE)
    if own:
        return Path(own)
    shared = os.environ.get("XDG_STATE_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "state") / "fieldmark"


class Register:
    """The register of one user.

    Args:
        folder: The state folder; by default the user's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or state_folder()) / FILE

    def claims(self) -> list[Claim]:
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

    def claim(self, claim: Claim, holds: Callable[[str], bool] = lambda head: False) -> None:
        """Lay claim to data, or renew the claim.

        Args:
            claim: Of a home that is there.
            holds: Whether the home's ledger has an entry with this hash.

        Raises:
            PolicyRefusal: if other data's home has them, or the home's ledger is older than
                the one that was registered.
            ConfigurationError: if the register cannot be written.
        """
        with self.claiming(claim, holds):
            pass

    def rekey(self, home: Path, key: str) -> None:
        """A home's key is about to be another: its claims go on under it.

        Args:
            home: The site's home.
            key: Fingerprint of the key that it will have.
        """
        with self._alone():
            before = self.claims()
            own = str(home.resolve())
            after = [
                claim.model_copy(update={"key": key}) if claim.home == own else claim
                for claim in before
            ]
            if after != before:
                self._write(after)

    @contextmanager
    def claiming(
        self, claim: Claim, holds: Callable[[str], bool] = lambda head: False
    ) -> Iterator[None]:
        """Lay claim to data for what is made inside; given up again if that fails."""
        with self._alone():
            before = self.claims()
            # A home that was moved has its key, one that got a new key has its place.
            own = [other for other in before if claim.key == other.key or claim.home == other.home]
            others = [other for other in before if other not in own]
            for other in others:
                if _overlap(Path(other.data), Path(claim.data)):
                    raise _taken(claim, other, self.path)
            for other in own:
                _check_own(claim, other, holds, self.path)
            after = [*others, claim]
            if own != [claim]:
                self._write(after)
            try:
                yield
            except BaseException:
                self._write(before)
                raise

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

    def _write(self, claims: list[Claim]) -> None:
        text = json.dumps([claim.model_dump() for claim in claims], indent=1)
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


def _overlap(one: Path, other: Path) -> bool:
    if one.is_relative_to(other) or other.is_relative_to(one):
        return True
    try:
        # One folder may be mounted in two places.
        return one.samefile(other)
    except OSError:
        return False


def _check_own(claim: Claim, other: Claim, holds: Callable[[str], bool], register: Path) -> None:
    if other.home != claim.home and (Path(other.home) / "site.toml").exists():
        raise _taken(claim, other, register)
    if other.data == claim.data and other.head != GENESIS and not holds(other.head):
        raise PolicyRefusal(
            "This site's ledger is older than the one that is registered for its data.",
            why="An old copy of the ledger was put back: what was spent since is forgotten.",
            remedy="Restore the newest copy of the site's home. If there is none, what was spent "
            f"is not known; to begin anew all the same, take its entry out of '{register}'.",
        )


def _taken(claim: Claim, other: Claim, register: Path) -> PolicyRefusal:
    # The first sentence may reach the coordinator: it names no path.
    return PolicyRefusal(
        "These data have a ledger already, in another home.",
        why=f"What was spent on '{other.data}' is written down in '{other.home}'; a second ledger "
        f"for '{claim.data}' would begin at nothing.",
        remedy=f"Use that home, moved where you want it. If it is gone for good, what was spent is "
        f"not known; to begin anew all the same, take its entry out of '{register}'.",
    )
