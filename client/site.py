"""Home of a site: its folder of settings, keys, policy, ledger and stored results.

::

    site.toml        name, data, resources, policy, limits, notify
    key              private key of the site (mode 0600)
    split.key        secret key of the train/validation split over subjects
    coordinator.pub  the only key whose requests are answered
    rows.json        simulation only: rows of the data set that this site owns
    pool.json        simulation only: its unlabeled pictures, where the data set has any
    ledger.jsonl     hash-chained charges and replies; ledger.head: hash of the last entry
    outbox/          finished private replies, kept for repeated requests
    personal/        models fine-tuned at this site, one file per run
    runs/            announced recipes, one file per run
    weights/         public weights files that runs may start from, named by SHA-256
    requests.json    number of requests answered today
    page-token       secret for the decisions on the site's page, if it has one
    state/           notes of the site's processes; left-out.json: what its data leave out
    site.log         errors in full; never leaves the site

For a site with its own pictures, a register in the user's state folder links the data to this
home's ledger (:mod:`fieldmark.client.privacy.data_claims`).
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import Field

from fgvc_core.configuration import Settings, read_toml, read_toml_file
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.files import write_privately
from fgvc_core.protocol.keys import (
    PrivateKey,
    PublicKey,
    public_text,
    read_private,
    read_public,
)
from fieldmark.client.limits import Limits
from fieldmark.client.notify_settings import Notify
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.reading import SiteData

FULL_BYTES = 4_000_000
"""With less free space a disk counts as full, in bytes: a reply under privacy is stored whole."""


class Resources(Settings):
    """Computing resources of a site."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(
        1,
        ge=1,
        le=256,
        description="Threads of one process, 1 to 256. More than one on a busy machine is slower.",
    )
    cache: str = Field(description="Folder for decoded pictures and features.")


class PageSettings(Settings):
    """The site's own page: the ``[page]`` section of ``site.toml``."""

    port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port on loopback of the page that 'site up' serves, 0 to 65535; 0: any free "
        "one, kept across restarts. Left out: no page and no port. Every account of this machine "
        "can read it; names and numbers of pictures, and decisions, need the home's token.",
    )


class SiteSettings(Settings):
    """Contents of ``site.toml``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Its name.")
    data: SiteData = SiteData()
    resources: Resources
    policy: Policy = Policy()
    limits: Limits = Limits()
    page: PageSettings = PageSettings()
    notify: Notify = Notify()


@dataclass(frozen=True)
class Site:
    """Opened home of a site."""

    home: Path
    settings: SiteSettings
    key: PrivateKey
    coordinator: PublicKey
    split_key: bytes
    rows: NDArray[np.int64] | None
    pool_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.settings.name

    @property
    def public_key(self) -> str:
        """The site's public key as one line of text."""
        return public_text(self.key.public_key())

    @property
    def cache(self) -> Path:
        """Folder of decoded pictures and features."""
        return Path(self.settings.resources.cache)

    @property
    def data_binding(self) -> str:
        """SHA-256 (hex) of the data's path, and of a simulated site's rows; binds the ledger."""
        path = self.settings.data.path
        where = str(Path(path).expanduser().resolve()) if path else ""
        digest = hashlib.sha256(where.encode())
        if self.rows is not None:
            digest.update(np.sort(self.rows).astype("<i8").tobytes())
        return digest.hexdigest()

    @classmethod
    def open(cls, home: Path) -> "Site":
        """Open a home.

        Raises:
            ConfigurationError: if ``site.toml`` is missing or wrong.
            PeerError: if a key is missing or damaged.
            DataError: if ``rows.json`` is damaged.
        """
        settings = _read_settings(home / "site.toml")
        try:
            coordinator = read_public((home / "coordinator.pub").read_text(encoding="utf-8"))
            split_key = (home / "split.key").read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"The site's home '{home}' is not whole: {error}.",
                remedy="Restore it from the backup; do not make a new one over the same data.",
            ) from None
        return cls(
            home=home,
            settings=settings,
            key=read_private(home / "key"),
            coordinator=coordinator,
            split_key=split_key,
            rows=_read_rows(home / "rows.json"),
            pool_rows=_none(_read_rows(home / "pool.json")),
        )


def _read_settings(path: Path) -> SiteSettings:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        # Says what is wrong, and what to do.
        remedy = "Name the folder that holds site.toml."
        read_toml_file(path, "The site's settings", remedy=remedy)
        raise
    return _parsed(text, str(path))


@lru_cache(maxsize=2048)
def _parsed(text: str, where: str) -> SiteSettings:
    """The settings of a file with this text: a home is opened for every message."""
    return SiteSettings.read(read_toml(text, where), where)


def write_settings(home: Path, settings: SiteSettings) -> None:
    """Write ``site.toml``."""
    values = settings.model_dump(mode="json", exclude_none=True)
    write_privately(home / "site.toml", tomli_w.dumps(values))


def _none(rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64) if rows is None else rows


def _read_rows(path: Path) -> NDArray[np.int64] | None:
    if not path.exists():
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list) or any(type(row) is not int or row < 0 for row in rows):
            raise ValueError("it is no list of row numbers from 0 up")
        return np.array(rows, dtype=np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"'{path}' cannot be read: {error}.") from None


def no_room(home: Path) -> str | None:
    """In words, why nothing can be written to a home, so that no request is answered; else None."""
    try:
        if shutil.disk_usage(home).free < FULL_BYTES:
            return f"the disk of '{home}' is full, and nothing leaves that the ledger cannot keep"
    except OSError as error:
        return f"'{home}' cannot be reached: {error.strerror}"
    return None
