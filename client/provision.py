"""Creation of a site's home."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import FOLDER_MODE, private_folder, write_privately
from fgvc_core.protocol.keys import (
    PrivateKey,
    fingerprint,
    new_key,
    read_public,
    write_private,
)
from fieldmark.client.privacy.data_claims import DataClaim, Register
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site, SiteSettings, write_settings

SPLIT_KEY_BYTES = 32


def make_home(
    home: Path,
    *,
    name: str,
    coordinator: str,
    cache: Path,
    data_path: str | None = None,
    split_key: bytes | None = None,
    device: str = "auto",
    units: int = 0,
    reading: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    key: PrivateKey | None = None,
    simulated: bool = False,
) -> Site:
    """Create a site's home.

    Args:
        home: A folder that does not exist yet.
        name: The site's name.
        coordinator: The coordinator's public key, one line of text.
        cache: Folder for decoded pictures and features.
        data_path: Root of the data set on this machine.
        split_key: Secret key of the validation split; random if not given.
        device: Computing device of the site.
        units: The public number of protected units.
        reading: Further keys of ``[data]``: how the pictures are read.
        policy: What the site allows.
        key: The site's private key; a new one if not given.
        simulated: Whether the site shares its data set with other simulated sites. Otherwise the
            data are its own and are bound to one ledger for good.

    Raises:
        ConfigurationError: if the folder exists already, or a setting is out of range.
        PeerError: if the coordinator's key is invalid.
        PolicyRefusal: if the data have a ledger in another home. Nothing was created in any of
            these cases.
    """
    if data_path is not None and not simulated:
        # Absolute: the site may be started from another folder.
        data_path = str(Path(data_path).expanduser().absolute())
    values = {
        "name": name,
        "data": {**(reading or {}), "path": data_path, "units": units},
        "resources": {"device": device, "cache": str(cache)},
        "policy": (policy or Policy()).model_dump(),
    }
    settings = SiteSettings.read(values, "site.toml")
    read_public(coordinator)
    if home.exists():
        raise _exists(home)
    key = key or new_key()
    if data_path is None or simulated:
        return _make(home, settings, coordinator, split_key, key)
    register = Register()
    claim = register.sampled(DataClaim.of(data_path, home, fingerprint(key.public_key())))
    with register.claiming(claim):
        return _make(home, settings, coordinator, split_key, key)


def _make(
    home: Path,
    settings: SiteSettings,
    coordinator: str,
    split_key: bytes | None,
    key: PrivateKey,
) -> Site:
    try:
        private_folder(home.parent)
        home.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        raise _exists(home) from None
    write_privately(home / "coordinator.pub", coordinator + "\n")
    write_privately(home / "split.key", split_key or os.urandom(SPLIT_KEY_BYTES))
    write_private(key, home / "key")
    write_settings(home, settings)
    return Site.open(home)


def _exists(home: Path) -> ConfigurationError:
    return ConfigurationError(
        f"'{home}' exists already.",
        why="A site's home holds its key and what it has let out; it is never overwritten.",
        remedy="Name another folder.",
    )
