"""Rotation of a site's key: created beside the old one, activated once the coordinator has it.

Ledger, outbox and split key do not change: they belong to the data, not to the key.
"""

import os
from pathlib import Path

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.files import write_privately
from fgvc_core.protocol.keys import (
    PrivateKey,
    fingerprint,
    new_key,
    public_text,
    read_private,
    read_public,
    write_private,
)
from fgvc_core.protocol.rotation import sign_rotation
from fgvc_core.supervision import holder
from fieldmark.client.deployment.contact import look
from fieldmark.client.deployment.link import read_link
from fieldmark.client.privacy.data_claims import Register
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site

NEXT = "key.next"


def prepare(home: Path, *, lost: bool = False) -> Path:
    """Create the next key.

    Args:
        home: Home of the site.
        lost: Whether the old key is lost or stolen, and must not sign for the new one.

    Returns:
        The file to send: a rotation signed by the old key, or a bare public key.

    Raises:
        ConfigurationError: if there is a next key already.
    """
    path = home / NEXT
    if path.exists():
        raise ConfigurationError(
            f"'{path}' exists already: a rotation has begun.",
            remedy="Send the file that was made then, and end it with --finish; or delete both.",
        )
    if not (home / "site.toml").is_file():
        raise ConfigurationError(
            f"'{home}' is no site's home.", remedy="Name the folder with site.toml."
        )
    key = new_key()
    if lost:
        write_private(key, path)
        out = home / "new-key.pub"
        write_privately(out, public_text(key.public_key()) + "\n")
        return out
    site = Site.open(home)
    signed = sign_rotation(site.name, fingerprint(site.key.public_key()), site.key, key)
    write_private(key, path)
    out = home / "new-key.json"
    write_privately(out, signed.to_text())
    return out


def finish(home: Path) -> str:
    """Activate the next key, once the coordinator accepts it.

    Returns:
        The new key's fingerprint.

    Raises:
        ConfigurationError: if no rotation has begun, or the site is up.
        PeerError: if the coordinator does not accept the new key yet; the old one stays.
    """
    path = home / NEXT
    if not path.exists():
        raise ConfigurationError(
            "No rotation has begun here.", remedy=f"fieldmark site new-key {home} begins one."
        )
    if holder(home) is not None:
        raise ConfigurationError(
            "This site is up.", remedy=f"fieldmark site stop {home}, then --finish again."
        )
    key = read_private(path)
    _check_known(home, key)
    digest = fingerprint(key.public_key())
    # Register first: after a crash between the two, --finish repeats both.
    has_key = (home / "key").is_file()
    old = fingerprint(read_private(home / "key").public_key()) if has_key else None
    Register().rekey(home, digest, old)
    # An atomic rename: a complete key is in place at any time.
    os.replace(path, home / "key")
    site = Site.open(home)
    Ledger(site.home, site.data_binding, site.name).note("key", {"fingerprint": digest})
    for sent in ("new-key.json", "new-key.pub"):
        (home / sent).unlink(missing_ok=True)
    return digest


def _check_known(home: Path, key: PrivateKey) -> None:
    coordinator = read_public((home / "coordinator.pub").read_text(encoding="utf-8"))
    found = look(home, read_link(home), key, coordinator)
    wrong = found.dns or found.tls or found.key
    if wrong:
        raise PeerError(
            f"The new key cannot be put in place yet: {wrong}.",
            why="With a key that the coordinator does not know, this site would be shut out.",
            remedy="Send it the file, wait for its word, and try again.",
        )
