"""Making a site's home."""

import os
from pathlib import Path

from client.privacy.policy import Policy
from client.site import Site, SiteSettings, write_settings
from fgvc_core.errors import ConfigurationError
from fgvc_core.protocol.keys import PrivateKey, new_key, read_public, write_private

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
    policy: Policy | None = None,
    key: PrivateKey | None = None,
) -> Site:
    """Make a site's home.

    Args:
        home: A folder that does not exist yet.
        name: The site's name.
        coordinator: The coordinator's public key, one line of text.
        cache: Folder for decoded pictures and features.
        data_path: Root of the data set on this machine.
        split_key: Secret of the validation split; drawn afresh if not given.
        device: What the site computes with.
        units: The public number of protected units.
        policy: What the site allows.
        key: The site's private key; a fresh one if not given.

    Raises:
        ConfigurationError: if the folder exists already, or a setting is out of range.
        PeerError: if the coordinator's key is none. Nothing was made in either case.
    """
    values = {
        "name": name,
        "data": {"path": data_path, "units": units},
        "resources": {"device": device, "cache": str(cache)},
        "policy": (policy or Policy()).model_dump(),
    }
    settings = SiteSettings.read(values, "site.toml")
    read_public(coordinator)
    try:
        home.mkdir(parents=True)
    except FileExistsError:
        raise ConfigurationError(
            f"'{home}' exists already.",
            why="A site's home holds its key and what it has let out; it is never overwritten.",
            remedy="Name another folder.",
        ) from None
    (home / "coordinator.pub").write_text(coordinator + "\n", encoding="utf-8")
    _write_secret(home / "split.key", split_key or os.urandom(SPLIT_KEY_BYTES))
    write_private(key or new_key(), home / "key")
    write_settings(home, settings)
    return Site.open(home)


def _write_secret(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
