"""Keys of the other sites of masked sums: pinned in ``peers.json``, compared by people.

The coordinator names the sites that are asked together and their keys. If it invented them, it
would know every mask but one. So people compare one fingerprint over all names and keys, the same
at every site, by telephone. It is shown in full: an attacker who makes up the lists of two sites
would find two with equal first halves in 2**64 attempts.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal, nearest
from fgvc_core.files import FILE_MODE, write_durably
from fgvc_core.protocol.keys import FULL_DIGITS, fingerprint
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site

FILE = "peers.json"
_DOMAIN = b"fieldmark peers v1\n"
_GROUP = 4
MOST_PEERS = 1000
"""Most names that are kept: a coordinator could name new ones without end."""


class Pin(BaseModel):
    """What is known of one other site."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    first_seen: str
    compared: str | None = Field(None, description="When a person has compared it.")
    by: str | None = Field(None, description="Who.")
    named: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="Another key that the coordinator has named for this site since.",
    )


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    peers: dict[str, Pin] = Field(default_factory=dict)


@dataclass(frozen=True)
class Peers:
    """The other sites of one home."""

    site: Site

    def pins(self) -> dict[str, Pin]:
        """Name -> what is known, sorted.

        Raises:
            DataError: if the file is damaged.
        """
        path = self._path
        if not path.exists():
            return {}
        try:
            found = _File.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"'{path}' cannot be read: {error}.",
                why="Which keys were compared is not known.",
                remedy="Restore it from a copy, or delete it and compare the keys anew.",
            ) from None
        return dict(sorted(found.peers.items()))

    def check(self, cohort: Mapping[str, str]) -> None:
        """Check the sites that are asked together with this one; new names are recorded.

        Args:
            cohort: Name -> fingerprint; this site is among them.

        Raises:
            PolicyRefusal: if a key is not pinned, or pinned otherwise. Nothing was charged.
        """
        others = {name: key for name, key in cohort.items() if name != self.site.name}
        with self._changing() as pins:
            self._see(pins, others)
            known = {name: pins.get(name) for name in others}
        changed = [n for n, pin in known.items() if pin is not None and pin.named is not None]
        if changed:
            raise PolicyRefusal(
                f"The key of site '{changed[0]}' is another than this site has pinned"
                f"{_more(changed)}.",
                why="Behind a new key there may be somebody else, who would know that site's "
                "masks.",
                remedy=f"Ask that site whether it has a new key, then compare: "
                f"fieldmark site peers {self.site.home}",
            )
        full = [name for name, pin in known.items() if pin is None]
        if full:
            raise PolicyRefusal(
                f"Site '{full[0]}' is new here, and the names of {MOST_PEERS:,} others are kept.",
                why="Who cannot be pinned could be somebody else tomorrow.",
                remedy="Drop names that do not exist: fieldmark site peers DIR --forget NAME",
            )
        if self.site.settings.policy.peers == "first-seen":
            return
        unknown = [n for n, pin in known.items() if pin is None or pin.compared is None]
        if unknown:
            raise PolicyRefusal(
                f"policy.peers = 'pinned', and nobody here has compared the key of site "
                f"'{unknown[0]}'{_more(unknown)}.",
                why="A coordinator that invents the other sites would see this one's own answer.",
                remedy="Compare the fingerprint by telephone, then accept it: "
                f"fieldmark site peers {self.site.home}",
            )

    def accept(self, digits: str, by: str) -> dict[str, Pin]:
        """Record that a person has compared the fingerprint over all sites.

        Args:
            digits: The fingerprint as compared; spaces, colons, hyphens and case are ignored.
            by: Who has compared it.

        Raises:
            ConfigurationError: if it is not the one of now, or there are no other sites.
        """
        wanted = re.sub(r"[\s:-]", "", digits).lower()
        now = _now()
        with self._changing() as pins:
            if not pins:
                raise ConfigurationError(
                    "No other site is known here yet.",
                    remedy="They are once the coordinator has asked for a masked sum, which is "
                    "refused until they are compared.",
                )
            if wanted != self.fingerprint(pins):
                raise ConfigurationError(
                    f"'{digits[:100]}' is not the fingerprint over the sites that are named here "
                    "now.",
                    why=f"All {FULL_DIGITS} digits count: another one stands for other sites or "
                    "keys.",
                    remedy="'fieldmark site peers DIR' shows it; read it to each other.",
                )
            changed = {n: pin.fingerprint for n, pin in pins.items() if pin.named}
            for name, pin in pins.items():
                pins[name] = Pin(
                    fingerprint=pin.named or pin.fingerprint,
                    first_seen=pin.first_seen,
                    compared=now if pin.named or not pin.compared else pin.compared,
                    by=by if pin.named or not pin.compared else pin.by,
                )
            self._note(pins, by, changed)
            return dict(pins)

    def forget(self, name: str) -> dict[str, Pin]:
        """Drop what is known of a site, for instance of one that does not exist.

        Raises:
            ConfigurationError: if there is none of that name.
        """
        with self._changing() as pins:
            if name not in pins:
                raise ConfigurationError(
                    f"No site '{name[:128]}' is known here.", remedy=nearest(name, pins)
                )
            del pins[name]
            return dict(pins)

    def fingerprint(self, pins: Mapping[str, Pin]) -> str:
        """64 hexadecimal digits over all names and keys, this site's among them.

        The same at every site that was told the same. Of a site whose key has changed, the new one.
        """
        keys = {name: pin.named or pin.fingerprint for name, pin in pins.items()}
        keys[self.site.name] = fingerprint(self.site.key.public_key())
        lines = "".join(f"{name} {key}\n" for name, key in sorted(keys.items()))
        return hashlib.sha256(_DOMAIN + lines.encode()).hexdigest()

    def pin_all(self, cohort: Mapping[str, str], by: str) -> None:
        """Pin keys that are known for sure, as a simulation knows them."""
        now = _now()
        with self._changing() as pins:
            for name, key in cohort.items():
                if name != self.site.name:
                    pins[name] = Pin(fingerprint=key, first_seen=now, compared=now, by=by)
            self._note(pins, by)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        pins = self.pins()
        return {
            "fingerprint": self.fingerprint(pins) if pins else None,
            "peers": {name: pin.model_dump() for name, pin in pins.items()},
        }

    def _note(
        self, pins: Mapping[str, Pin], by: str, changed: Mapping[str, str] | None = None
    ) -> None:
        """Record in the ledger who has compared which keys, and which keys have changed.

        The report says so.
        """
        site = self.site
        keys = {name: pin.fingerprint for name, pin in sorted(pins.items()) if pin.compared}
        whole = self.fingerprint(pins)
        values = {"names": list(keys), "fingerprint": whole, "by": by, "keys": keys}
        if changed:
            values["changed"] = dict(changed)
        Ledger(site.home, site.data_binding, site.name).note("peers", values)

    @property
    def _path(self) -> Path:
        return self.site.home / FILE

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Pin]]:
        """The pins, written when the body ends without an error and has changed them."""
        with FileLock(self.site.home / f"{FILE}.lock", mode=FILE_MODE):
            before = self.pins()
            pins = dict(before)
            yield pins
            if pins != before:
                values = {"peers": {n: pin.model_dump() for n, pin in sorted(pins.items())}}
                write_durably(self._path, json.dumps(values, indent=1).encode())

    def _see(self, pins: dict[str, Pin], others: Mapping[str, str]) -> None:
        for name, key in others.items():
            pin = pins.get(name)
            if pin is None:
                if len(pins) < MOST_PEERS:
                    pins[name] = Pin(fingerprint=key, first_seen=_now())
            elif pin.fingerprint != key:
                # Not compared: nobody is misled by the newer one.
                keep = pin.compared is not None or self.site.settings.policy.peers == "first-seen"
                update = {"named": key} if keep else {"fingerprint": key}
                pins[name] = pin.model_copy(update=update)
            elif pin.named is not None:
                pins[name] = pin.model_copy(update={"named": None})


def grouped(digest: str) -> str:
    """A fingerprint in groups of four digits.

    >>> grouped("0123456789abcdef")
    '0123 4567 89ab cdef'
    """
    return " ".join(digest[at : at + _GROUP] for at in range(0, len(digest), _GROUP))


def _more(names: list[str]) -> str:
    return f" (and of {len(names) - 1} more)" if len(names) > 1 else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
