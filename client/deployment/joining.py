"""Joining a federation: a site's key, its start kit, and the creation of its home.

The recommended way keeps the private key at the site: ``site key FILE`` creates it and prints the
public half, which the coordinator registers; the start kit then contains no secret.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgvc_core.errors import ConfigurationError, DataError, PeerError
from fgvc_core.protocol.keys import (
    PrivateKey,
    fingerprint,
    has_fingerprint,
    new_key,
    parse_private,
    public_text,
    read_private,
    read_public,
    short_fingerprint,
    short_form,
    write_private,
)
from fgvc_core.protocol.kit import StartKit
from fieldmark.client.deployment.link import Link, write_link
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import SPLIT_KEY_BYTES, make_home
from fieldmark.client.site import Site, SiteSettings


@dataclass(frozen=True)
class Answers:
    """Settings that the site has to provide; all others are in the kit.

    Attributes:
        data: Root of the data set on this machine; None for the embedded one.
        units: The public number of protected units.
        policy: What the site allows.
        device: Computing device.
        cache: Folder for decoded pictures; by default inside the home.
        reading: Further keys of ``[data]``: how the pictures are read.
        split_key: Secret key of the validation split, 32 bytes; random by default.
    """

    data: Path | None
    units: int
    policy: Policy
    device: str = "auto"
    cache: Path | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    split_key: bytes | None = None


def make_key(path: Path) -> str:
    """Create a site's key: private half at ``path`` (mode 0600), public half at ``path.pub``.

    Returns:
        The public half, one line of text.

    Raises:
        ConfigurationError: if one of the files exists already.
    """
    public_path = path.with_name(path.name + ".pub")
    for taken in (path, public_path):
        if taken.exists():
            raise ConfigurationError(
                f"'{taken}' exists already.",
                why="A key is never overwritten: whoever registered it would not know the new one.",
                remedy="Name another file.",
            )
    key = new_key()
    write_private(key, path)
    text = public_text(key.public_key())
    public_path.write_text(text + "\n", encoding="utf-8")
    return text


def check_coordinator(kit: StartKit, said: str) -> None:
    """Check that a kit was signed by the coordinator with a given fingerprint.

    The signature covers address, certificate and the site's own key, so this one comparison
    verifies them all.

    Args:
        kit: The start kit.
        said: The fingerprint, in any spacing and case.

    Raises:
        ConfigurationError: if that is not a fingerprint.
        PeerError: if it is another key's.
    """
    if not has_fingerprint(kit.coordinator_key, said):
        raise PeerError(
            "The start kit is not from the coordinator with that fingerprint: its key is "
            f"{short_fingerprint(kit.coordinator_key)}.",
            why="Whoever made it would get this site's replies.",
            remedy="Ask the coordinator, on the telephone, for its fingerprint (fieldmark server "
            "status) and for the kit again.",
        )


def join(kit: StartKit, home: Path, answers: Answers, key_path: Path | None = None) -> Site:
    """Create a site's home from a start kit.

    Raises:
        ConfigurationError: if the home exists, or the kit holds no key and none is named.
        PeerError: if the key is not the registered one.
        DataError: if the data set's folder does not exist; nothing was created then.
    """
    key = _key_of(kit, key_path)
    if answers.data is not None and not answers.data.is_dir():
        raise DataError(
            f"There is no folder '{answers.data}'.",
            remedy="Give the root of the data set with --data.",
        )
    site = make_home(
        home,
        name=kit.site,
        coordinator=kit.coordinator,
        cache=(answers.cache or home / "cache").resolve(),
        data_path=None if answers.data is None else str(answers.data.resolve()),
        device=answers.device,
        units=answers.units,
        reading=answers.reading,
        split_key=answers.split_key,
        policy=answers.policy,
        key=key,
    )
    write_link(home, Link(address=kit.address), kit.ca)
    return site


def preview(kit: StartKit, answers: Answers) -> Site:
    """Site that :func:`join` would create, for previewing its data; nothing is created.

    Raises:
        ConfigurationError: if a setting is out of range.
    """
    values = {
        "name": kit.site,
        "data": {**answers.reading, "path": str(answers.data), "units": answers.units},
        "resources": {"device": answers.device, "cache": str(answers.cache)},
        "policy": answers.policy.model_dump(),
    }
    return Site(
        home=Path(str(answers.cache)),
        settings=SiteSettings.read(values, "site.toml"),
        key=new_key(),
        coordinator=read_public(kit.coordinator),
        split_key=answers.split_key or os.urandom(SPLIT_KEY_BYTES),
        rows=None,
    )


def _key_of(kit: StartKit, key_path: Path | None) -> PrivateKey:
    if key_path is not None:
        key = read_private(key_path)
    elif kit.key:
        key = parse_private(kit.key.encode(), "in the start kit")
    else:
        raise ConfigurationError(
            "The kit holds no key: it was made for a key of yours.",
            why="Only whoever has that key is this site.",
            remedy="Name the file that 'fieldmark site key' made: --key FILE.",
        )
    if fingerprint(key.public_key()) != kit.fingerprint:
        raise PeerError(
            f"This key is not the one that the coordinator has registered for '{kit.site}' "
            f"(fingerprint {short_form(kit.fingerprint)}).",
            why="Nothing signed with it would be believed.",
            remedy="Name the key whose public half you sent, or send this one's.",
        )
    return key
