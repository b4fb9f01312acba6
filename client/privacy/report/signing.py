"""Signing of a report's statement, and its text form for files and pages."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvc_core.errors import DataError, PeerError
from fgvc_core.protocol.keys import PrivateKey, PublicKey, read_public, sign, verify

DOMAIN = b"fieldmark privacy report v1\n"
"""Prefix of the signed bytes, so that a report's signature is never valid for a reply."""

MARK = '<script type="application/json" id="report">'
"""Start tag of the statement embedded in a page."""

LARGEST = 20_000_000
"""Maximum size of a report file, in bytes."""


@dataclass(frozen=True)
class Signed:
    """Statement of plain values, and the signature over its canonical text."""

    statement: dict[str, Any]
    signature: bytes

    @property
    def text(self) -> str:
        """Statement and signature as one line of JSON, safe inside HTML."""
        return canonical({"signature": self.signature.hex(), "statement": self.statement})

    def signed_by(self, key: PublicKey) -> bool:
        """Whether the signature is this key's."""
        return verify(key, _message(self.statement), self.signature)


def sign_statement(key: PrivateKey, statement: dict[str, Any]) -> Signed:
    """Sign a statement with the site's key."""
    return Signed(statement, sign(key, _message(statement)))


def canonical(values: Any) -> str:
    """Canonical JSON of plain values: sorted keys, no spaces, ASCII, without < > &.

    Raises:
        ValueError: if a number is not finite.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # So that no '</script>' ends the statement early inside a page.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def read_signed(path: Path) -> tuple[Signed, bytes]:
    """Read a report, as a page or as JSON; nothing is verified yet.

    Returns:
        The statement with its signature, and the bytes of the whole file.

    Raises:
        DataError: if the file cannot be read, or is not a report.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise _no_report(path, f"it is larger than {LARGEST / 1e6:g} MB")
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _no_report(path, str(error)) from None
    if not text.startswith("{"):
        _, mark, rest = text.partition(MARK)
        if not mark:
            raise _no_report(path, "it has no embedded statement")
        text, _, _ = rest.partition("</script>")
    try:
        values = json.loads(text)
        signed = Signed(dict(values["statement"]), bytes.fromhex(values["signature"]))
        canonical(signed.statement)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_report(path, f"its statement cannot be read ({error})") from None
    return signed, data


def _message(statement: dict[str, Any]) -> bytes:
    return DOMAIN + canonical(statement).encode()


def _no_report(path: Path, what: str) -> DataError:
    return DataError(
        f"'{path}' is no privacy report: {what}.",
        why="There is nothing in it that could be checked.",
        remedy="Name the page or the JSON that 'fieldmark site report' wrote.",
    )


def read_known_key(path: Path) -> PublicKey:
    """Public key from a file: one line in OpenSSH format.

    Raises:
        PeerError: if the file holds no key.
    """
    try:
        return read_public(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PeerError(f"The key '{path}' cannot be read: {error}.") from None
