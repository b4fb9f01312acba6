"""Creation and renewal of a coordinator's folder, and the start kits for its sites.

::

    server.toml        names, port, limits
    coordinator.key    signs requests (mode 0600); coordinator.pub goes into kits
    ca.key, ca.pem     the authority that issues the server's certificate only
    server.key/.pem    the gateway's certificate; renewed without new kits
    secret             shared by the SuperLink and our executor
    sites.json         the allow-list: key -> site
    kits/              start kits, one file per site
    weights/           initial weights, each file named by its SHA-256
    runs/              one folder per run
    state/, logs/      of the processes; only superlink.db must not be lost
"""

import ipaddress
import os
import re
from pathlib import Path

from fgvc_core import __version__
from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.files import check_secret, check_unchanged_by_others
from fgvc_core.protocol.keys import (
    PublicKey,
    fingerprint,
    new_key,
    private_text,
    public_text,
    read_private,
    read_public,
    write_private,
)
from fgvc_core.protocol.kit import StartKit, write_kit
from fgvc_core.protocol.rotation import check_rotation, read_rotation
from fieldmark.server.deployment.allow_list import AllowList, ListedSite
from fieldmark.server.deployment.certificates import check_dates, issue, make_authority
from fieldmark.server.deployment.settings import DeploymentSettings, read_settings, write_settings
from fieldmark.server.ledger_memory import forget

SECRETS = ("coordinator.key", "ca.key", "server.key", "secret")
TRUSTED = ("server.toml", "sites.json", "coordinator.pub", "ca.pem", "server.pem")
"""Whoever writes to them decides who is a site."""
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


def coordinator_key(folder: Path) -> PublicKey:
    """The public key of a coordinator's folder.

    Raises:
        ConfigurationError: if it cannot be read.
    """
    try:
        return read_public((folder / "coordinator.pub").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PeerError) as error:
        raise ConfigurationError(
            f"The coordinator's public key in '{folder}' cannot be read: {error}.",
            remedy="Restore coordinator.pub from the backup.",
        ) from None


def init_server(folder: Path, settings: DeploymentSettings) -> None:
    """Create a coordinator's folder, completely or not at all.

    Raises:
        ConfigurationError: if it exists already, or a host is invalid.
    """
    for host in settings.hosts:
        _check_host(host)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        raise ConfigurationError(
            f"'{folder}' exists already.",
            why="A coordinator's folder holds the keys that every site trusts.",
            remedy="Name another folder.",
        ) from None
    for part in ("kits", "runs", "state", "logs"):
        (folder / part).mkdir(mode=0o700)
    write_settings(folder, settings)
    key = new_key()
    write_private(key, folder / "coordinator.key")
    (folder / "coordinator.pub").write_text(public_text(key.public_key()) + "\n", encoding="utf-8")
    make_authority(folder, f"Fieldmark {settings.name}"[:64])
    issue(folder, "server", list(settings.hosts))
    descriptor = os.open(folder / "secret", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(32).hex().encode())


def check_server(folder: Path) -> int:
    """Check that a coordinator's folder is ready for service.

    Returns:
        Days until its certificate expires.

    Raises:
        ConfigurationError: if something is missing, or a secret is readable by others.
        PeerError: if its certificate is not valid today.
    """
    read_settings(folder)
    for secret in SECRETS:
        check_secret(folder / secret)
    check_unchanged_by_others((folder, *(folder / name for name in TRUSTED)))
    read_private(folder / "coordinator.key")
    check_dates(folder / "ca.pem")
    return check_dates(folder / "server.pem")


def renew(folder: Path, hosts: tuple[str, ...] = ()) -> None:
    """Issue a new server certificate; kits and sites stay valid.

    Args:
        folder: The coordinator's.
        hosts: New names and addresses, replacing the old ones.
    """
    settings = read_settings(folder)
    check_dates(folder / "ca.pem")
    if hosts:
        for host in hosts:
            _check_host(host)
        settings = settings.model_copy(update={"hosts": hosts})
        write_settings(folder, settings)
    issue(folder, "server", list(settings.hosts))


def add_site(folder: Path, name: str, their_key: str = "") -> tuple[ListedSite, Path]:
    """Register a site and create its start kit.

    Args:
        folder: The coordinator's.
        name: The site's.
        their_key: The public key that the site has created, one line of text. Without it a key is
            created here, and the kit is a secret.

    Raises:
        ConfigurationError: if name or key are taken, the key is a private one, or the settings
            name no port for the kit. Nothing is registered then.
    """
    settings = read_settings(folder)
    _port_of_kits(settings)  # before a name is taken for a site that gets no kit
    private = ""
    if "PRIVATE KEY" in their_key:
        raise ConfigurationError(
            "That is a private key.",
            why="Whoever has it is the site: it must not leave it. This one is burnt.",
            remedy="The site makes another and sends the file that ends in .pub.",
        )
    if not their_key:
        key = new_key()
        their_key, private = public_text(key.public_key()), private_text(key)
    # The kit first: a key that is registered without one could never be registered again.
    entry = AllowList(folder).add(
        name, their_key, lambda entry: make_kit(folder, settings, entry, private)
    )
    # A removed site of the same name was another site with another ledger.
    forget(folder, name)
    return entry, kit_path(folder, name)


def rotate_key(folder: Path, text: str) -> ListedSite:
    """Register a site's new key if its registered key and the new one have signed the rotation.

    Raises:
        PeerError: if they have not, or the old key is not the registered one.
        ConfigurationError: if there is no such site, or the new key was ever registered.
    """
    read_settings(folder)
    rotation, signed = read_rotation(text)
    allowed = AllowList(folder)
    entry = allowed.by_fingerprint(rotation.old)
    if entry is None or entry.name != rotation.site:
        raise PeerError(
            f"The old key of this rotation is not registered for '{rotation.site}'.",
            why="Only the key that is registered can name its successor.",
            remedy="A site that has lost its key asks for: fieldmark server replace-key.",
        )
    check_rotation(signed, read_public(entry.public_key), read_public(rotation.new))
    return _without_kit(folder, allowed.replace(entry.name, rotation.new, "rotated"))


def replace_key(folder: Path, name: str, their_key: str) -> ListedSite:
    """Register another key for a site that has lost its own; the old one is void.

    Raises:
        ConfigurationError: if there is no such site, or the new key was ever registered.
    """
    read_settings(folder)
    return _without_kit(folder, AllowList(folder).replace(name, their_key, "lost"))


def remove_site(folder: Path, name: str) -> ListedSite:
    """Revoke a site's key, and delete its start kit.

    Raises:
        ConfigurationError: if there is no such site.
    """
    read_settings(folder)
    return _without_kit(folder, AllowList(folder).remove(name))


def _without_kit(folder: Path, entry: ListedSite) -> ListedSite:
    """Delete the kit of a key that is void: it may hold the private half."""
    kit_path(folder, entry.name).unlink(missing_ok=True)
    return entry


def kit_path(folder: Path, name: str) -> Path:
    """Where a site's start kit lies."""
    return folder / "kits" / f"{name}.kit"


def make_kit(
    folder: Path, settings: DeploymentSettings, entry: ListedSite, private: str = ""
) -> Path:
    """Write a site's start kit; returns its path."""
    port = _port_of_kits(settings)
    coordinator = (folder / "coordinator.pub").read_text(encoding="utf-8").strip()
    kit = StartKit(
        site=entry.name,
        address=f"{_bracketed(settings.hosts[0])}:{port}",
        ca=(folder / "ca.pem").read_text(encoding="ascii"),
        coordinator=coordinator,
        fingerprint=fingerprint(read_public(entry.public_key)),
        key=private,
        version=__version__,
    )
    path = kit_path(folder, entry.name)
    write_kit(kit, path, read_private(folder / "coordinator.key"))
    return path


def _port_of_kits(settings: DeploymentSettings) -> int:
    port = settings.public_port or settings.gateway.port
    if not port:
        raise ConfigurationError(
            "gateway.port in server.toml is 0, and a kit has to name one.",
            remedy="Set gateway.port, or public_port where something forwards to it.",
        )
    return port


def _check_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ConfigurationError(
                f"'{host[:80]}' is no host name and no address.",
                remedy="Give a name or an address without a port, for instance fl.example.org.",
            ) from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
