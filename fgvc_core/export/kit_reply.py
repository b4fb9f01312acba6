"""Reads an outside site's signed reply to a validation kit."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.errors import ConfigurationError, DataError, PeerError
from fgvc_core.export.kit import read_body
from fgvc_core.protocol.keys import (
    fingerprint,
    has_fingerprint,
    public_text,
    read_public,
    short_form,
)
from fgvc_core.protocol.messages import MAX_BODY_BYTES, Sealed, ValidationReply, unseal
from fgvc_core.words import counted


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    body: str
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


@dataclass(frozen=True)
class KitReply:
    """A reply with a verified signature.

    Attributes:
        reply: The signed body.
        signer: Fingerprint of the signing key.
        expected: True if that is the expected key; None if no key was named.
    """

    reply: ValidationReply
    signer: str
    expected: bool | None


def read_kit_reply(kit: Path, path: Path, expected: str | None = None) -> KitReply:
    """Read an outside site's reply to a kit.

    Args:
        kit: The kit that was sent.
        path: The reply.
        expected: Fingerprint of the site's key, received by another channel; None: unknown.

    Raises:
        DataError: if a file is missing or invalid.
        PeerError: if the signature is invalid, the key is not the expected one, or the reply
            answers another kit.
    """
    body, sealed_kit = read_body(kit)
    file = _read(path)
    sealed = Sealed(file.body, bytes.fromhex(file.signature))
    claimed = ValidationReply.parse(sealed.text)
    assert isinstance(claimed, ValidationReply)
    key = read_public(claimed.public_key)
    # Accept only the key's canonical text, so that the fingerprint below is that of the signing
    # key.
    if public_text(key) != claimed.public_key:
        raise PeerError("The answer's public key is not in its usual form.")
    reply = unseal(ValidationReply, sealed, key, {})
    if (reply.run, reply.kit_digest) != (body.kit, sealed_kit.digest):
        raise PeerError(
            f"The answer is to another kit ({reply.run}).",
            remedy=f"Name the kit that was sent to '{reply.site}'.",
        )
    signer = fingerprint(key)
    if expected is not None and not has_fingerprint(key, expected):
        raise PeerError(
            f"The answer was signed by {short_form(signer)}, not by the expected key.",
            why="Somebody else may have made it.",
            remedy="Ask the site for its key's fingerprint by another way than the file.",
        )
    return KitReply(reply, signer, None if expected is None else True)


def reply_in_words(reply: ValidationReply) -> list[str]:
    """The content of a reply, line by line."""
    lines = [f"site '{reply.site}', kit {reply.run}"]
    figures = reply.figures
    if figures is not None:
        lines += [
            f"{counted(figures.examples, 'picture')} of {counted(figures.subjects, 'subject')}",
            f"top-1 {_percent(figures.top1.value)} "
            f"(95 %: {_percent(figures.top1.low)} to {_percent(figures.top1.high)}), "
            f"top-5 {_percent(figures.top5)}",
            f"macro F1 {_percent(figures.macro_f1.value)} "
            f"(95 %: {_percent(figures.macro_f1.low)} to {_percent(figures.macro_f1.high)}), "
            f"precision {_percent(figures.macro_precision)}, "
            f"recall {_percent(figures.macro_recall)}",
            f"calibration error {figures.ece:.3f}, loss {figures.loss:.3f}",
        ]
        for name, one in (figures.classes or {}).items():
            lines.append(
                f"{name}: {one.examples:,} pictures, precision {_percent(one.precision)}, "
                f"recall {_percent(one.recall)}"
            )
    if reply.noisy_scores is not None:
        noisy = reply.noisy_scores
        lines.append(
            f"with noise: {noisy.correct:.1f} right of {noisy.examples:.1f}"
            + (
                f" (about {_percent(min(max(noisy.correct / noisy.examples, 0.0), 1.0))})"
                if noisy.examples >= 1
                else ""
            )
        )
    if reply.privacy is not None:
        cost = reply.privacy
        lines.append(
            f"cost: epsilon {cost.epsilon:.4g} at delta {cost.delta:g}, unit {cost.unit} "
            f"({cost.adjacency}); the site's total {cost.epsilon_total:.4g}"
        )
    if reply.code != "ok":
        lines.append(f"refused: {reply.code} {reply.reason}".rstrip())
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _read(path: Path) -> _File:
    try:
        if path.stat().st_size > 2 * MAX_BODY_BYTES:
            raise ValueError("it is too long")
        return _File.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no answer at '{path}'.",
            remedy="Name the file that 'fieldmark site validate' has written.",
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"'{path}' is no answer to a validation kit: {reason}.",
            remedy="Ask the site for it again; it is made with: fieldmark site validate",
        ) from None
