"""The coordinator's signed statement of a site's ledger, for recovery after a loss.

A site that has lost its disk, and whose newest copy of the ledger lacks entries, asks for this
statement. The coordinator's signature on the whole asserts that it leaves nothing out. Every cost
in it is a reply that the site itself has signed, so the coordinator can neither invent a charge nor
reduce one.

File format: JSON with ``body`` (the statement's text) and ``signature`` (hexadecimal).
"""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgvc_core.configuration import MAX_CHARACTERS
from fgvc_core.errors import PeerError
from fgvc_core.protocol.keys import PrivateKey, PublicKey, sign, verify
from fgvc_core.protocol.messages import MAX_BODY_BYTES, Reply, Sealed, check_signature

_DOMAIN = b"fieldmark ledger statement v1\n"
MAX_BYTES = 256_000_000
"""Longest accepted statement, in bytes."""


class SignedReply(BaseModel):
    """A site's reply as received: its text, and the site's signature in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    body: str = Field(max_length=MAX_BODY_BYTES)
    signature: str = Field(max_length=256)

    def check(self, keys: list[PublicKey]) -> Reply:
        """Read the reply, if one of these keys has signed it.

        Raises:
            PeerError: if none of them has, or the reply is malformed.
        """
        sealed = Sealed(self.body, _bytes(self.signature))
        for key in keys:
            try:
                check_signature(Reply, sealed, key)
            except PeerError:
                continue
            reply = Reply.parse(self.body)
            assert isinstance(reply, Reply)
            return reply
        raise PeerError("A reply in the statement is not signed by this site's key.")


class SeenRun(BaseModel):
    """One run at a site, as seen by the coordinator.

    Attributes:
        reply: The run's last reply that states its cost; if none does, the last one with code
            ``ok``.
        unanswered: Number of the run's requests to the site that were never answered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reply: SignedReply
    unanswered: int = Field(ge=0, le=1_000_000)


class LedgerStatement(BaseModel):
    """A site's ledger, as seen by the coordinator.

    Attributes:
        site: The site's name.
        made: Time in UTC, ISO 8601.
        head: The reply with the longest ledger that it has seen, whatever its code.
        runs: Every run that the site has taken part in, in the order of their last replies.
        recipes: Digest -> text (TOML) of these runs' recipes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    site: str = Field(max_length=128)
    made: str = Field(max_length=40)
    head: SignedReply
    runs: tuple[SeenRun, ...] = Field(max_length=100_000)
    recipes: dict[
        Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=MAX_CHARACTERS)]
    ] = Field(max_length=100_000)


def seal_statement(key: PrivateKey, statement: LedgerStatement) -> str:
    """The content of a signed statement's file."""
    body = statement.model_dump_json()
    signature = sign(key, _DOMAIN + body.encode()).hex()
    return json.dumps({"body": body, "signature": signature}) + "\n"


def read_statement(text: str, coordinator: PublicKey) -> LedgerStatement:
    """Read a statement's file and verify the coordinator's signature, but not yet the site's.

    Raises:
        PeerError: if it is malformed, or not signed by the coordinator.
    """
    if len(text) > MAX_BYTES:
        raise PeerError(f"A ledger statement of {len(text)} bytes is longer than {MAX_BYTES}.")
    try:
        values = json.loads(text)
        body, signature = str(values["body"]), _bytes(str(values["signature"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PeerError(
            f"This is no ledger statement: {type(error).__name__}: {error}.",
            remedy="Ask the coordinator for the file that 'fieldmark server ledger-statement' "
            "writes.",
        ) from None
    if not verify(coordinator, _DOMAIN + body.encode(), signature):
        raise PeerError(
            "The ledger statement is not signed by the coordinator's key.",
            why="Somebody else has made it, or it was changed.",
            remedy="Ask the coordinator for it again, by another way than this one.",
        )
    try:
        return LedgerStatement.model_validate_json(body)
    except ValidationError as error:
        said = error.errors(include_input=False)[0]["msg"]
        raise PeerError(f"The ledger statement is malformed: {said}.") from None


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
