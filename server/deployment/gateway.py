"""The gateway: the coordinator's only open port, which forwards registered sites' Fleet calls.

Flower's SuperLink answers any caller, so it listens on a Unix socket that only this account can
use, and the gateway forwards to it the Fleet calls of keys on the allow-list. The signature over
the time stamp is checked before the body is read. Bodies are small and read whole, except for a
message's pieces, which are streamed; every call must belong to that site's own conversation
(:mod:`.mail`). The gateway also answers registered keys' requests for the announcement of the run.
"""

import asyncio
import base64
import binascii
import datetime
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fgvc_core import __version__
from fgvc_core.protocol.keys import fingerprint
from fieldmark.server.deployment.allow_list import AllowList, ListedSite
from fieldmark.server.deployment.bodies import TooManyObjects, read_piece
from fieldmark.server.deployment.flower_internals import (
    PROTOBUF_MEDIA_TYPE,
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    Pushed,
    read_confirmed,
    read_handed,
    read_pulled,
    read_push,
    read_wanted,
)
from fieldmark.server.deployment.held import Held, sent_file
from fieldmark.server.deployment.mail import Mail
from fieldmark.server.deployment.meters import Meter, Refused
from fieldmark.server.deployment.settings import GatewaySettings
from fieldmark.server.ledger_memory import FOLDER, read_signed_head

CALLS = frozenset(
    {
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
"""Fleet calls that a site needs. Only the coordinator calls register-node and unregister-node."""
SKEW_S = 300.0
"""Largest difference between a site's clock and ours, in seconds; Flower allows the same."""
PIECE_MB, PIECES_BESIDE = 5.0, 64
"""Size in MB of Flower's pieces of an array, and the largest number of other pieces in a
message."""
SMALL_BYTES, PUSH_BYTES, OBJECT_BYTES = 16_000, 64_000, 80
"""Largest body, in bytes, of a call without a piece; of push-messages, whose error may contain
text; and the addition to push-messages for each object. These are read whole and parsed at once:
the largest takes milliseconds."""
KEYS_KEPT = 1000
"""Most parsed public keys in the cache."""
OWNER = "fieldmark.owner"
"""Key in a request's scope: a function that gets the request's site and counts its connections."""
VERSION_HEADER = "fieldmark-version"
NOT_TAKEN = "a reply that was not taken: another's message, or one that is answered"
_PASSED_ON = ("content-type", "accept", PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER)
_VERSION_PREFIX = "flwr-"
T = TypeVar("T")


def most_objects(settings: GatewaySettings) -> int:
    """Most objects of a message."""
    return PIECES_BESIDE + math.ceil(settings.message_mb / PIECE_MB)


class Gateway:
    """The gateway's application.

    Args:
        folder: The coordinator's.
        upstream: A client of the SuperLink.
        settings: Bounds.
    """

    def __init__(self, folder: Path, upstream: httpx.AsyncClient, settings: GatewaySettings):
        self._allowed = AllowList(folder)
        self._announcement = folder / "state" / "announcement.json"
        self._ledgers = folder / FOLDER
        self._upstream = upstream
        self._settings = settings
        self.meter = Meter(folder / "logs" / "gateway.jsonl", settings)
        self.mail = Mail(folder / "state" / "mail", settings.message_mb * 1e6)
        self.held = Held(sent_file(folder), self._announcement.exists)
        self._keys: dict[str, tuple[str, ec.EllipticCurvePublicKey]] = {}
        self._pushing: dict[str, asyncio.Lock] = {}
        self._most_objects = most_objects(settings)

    def app(self) -> Starlette:
        """The ASGI application."""
        app = Starlette(
            routes=[
                Route("/v1/fleet/{call}", self.fleet, methods=["POST"]),
                Route("/v1/announcement", self.announcement, methods=["GET"]),
            ],
            exception_handlers={
                Refused: self._refuse,
                404: self._nothing,
                405: self._nothing,
                Exception: self._failed,
            },
        )
        # A redirect would reveal existing paths to strangers, and use the host of their choice.
        app.router.redirect_slashes = False
        return app

    async def announcement(self, request: Request) -> Response:
        """The signed announcement of the active run, for ``site check``."""
        site = self._authenticate(request)
        with self.meter.open(site.name):
            try:
                told = json.loads(self._announcement.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                told = {"run": None}
            seen = read_signed_head(self._ledgers, site.name)
            if seen is not None:
                # The site's own signed reply with the last known head of its ledger.
                told["seen"] = seen.model_dump()
            text = json.dumps(told)
            return Response(text, 200, {VERSION_HEADER: __version__}, "application/json")

    async def fleet(self, request: Request) -> Response:
        """Forward one Fleet call if it is a registered site's and within bounds."""
        call = request.path_params["call"]
        if call not in CALLS:
            return await self._nothing(request, None)
        site = self._authenticate(request)
        with self.meter.open(site.name):
            declared = self._declared_length(request, site, call)
            stream = self._body(request, site)
            if call == "push-object":
                return await self._piece(request, stream, declared, site)
            if call == "push-messages":
                # One at a time: a node has one answer to send, and a key with many connections
                # would otherwise get many times an honest site's share of the event loop.
                async with self._pushing.setdefault(site.name, asyncio.Lock()):
                    body = b"".join([piece async for piece in stream])
                    return await self._push(request, body, site)
            body = b"".join([piece async for piece in stream])
            if call == "pull-object":
                self.mail.check_pull(site.name, self._read(read_pulled, body, site))
            elif call == "confirm-message-received":
                self.mail.check_confirm(site.name, self._read(read_confirmed, body, site))
            elif call == "pull-messages":
                return await self._pull(request, body, site)
            answer = await self._forward(request, call, body, len(body), site)
            return await self._streamed(answer, site)

    async def _piece(
        self, request: Request, stream: AsyncIterator[bytes], length: int, site: ListedSite
    ) -> Response:
        """Stream a message's piece to the SuperLink."""
        try:
            piece = await read_piece(stream, length)
        except ValueError as error:
            raise Refused(400, str(error), site=site.name) from None
        self.mail.weigh(site.name, piece.object_id, length)

        async def checked() -> AsyncIterator[bytes]:
            try:
                async for data in piece.body:
                    yield data
            except ValueError as error:
                raise Refused(400, str(error), site=site.name) from None

        answer = await self._forward(request, "push-object", checked(), length, site)
        return await self._streamed(answer, site)

    async def _push(self, request: Request, body: bytes, site: ListedSite) -> Response:
        """Announce a message to the SuperLink, and record which pieces it asks for."""
        pushed: Pushed = self._read(lambda whole: read_push(whole, self._most_objects), body, site)
        if pushed.claimed != pushed.node:
            # The SuperLink does not check this, only that the pushing node is the key's; a false
            # reply could displace another site's genuine one.
            raise Refused(403, "a message that claims another node's identity", site=site.name)
        self.mail.announce(site.name, pushed)
        answer = await self._forward(request, "push-messages", body, len(body), site)
        self.mail.announced(site.name, pushed.answers)
        whole = await self._whole(answer, site)
        if answer.status_code == 200:
            wanted = self._understood(read_wanted, whole)
            if wanted == []:
                # Only recorded: the SuperLink's answer already tells the node.
                self.meter.refused(Refused(200, NOT_TAKEN, site=site.name), request.url.path)
            self.mail.opened(site.name, pushed, wanted or [])
        return Response(whole, answer.status_code, _kept(answer))

    async def _pull(self, request: Request, body: bytes, site: ListedSite) -> Response:
        """Return messages from the coordinator, and record that this site received them.

        While there is none the call is held, for at most ``gateway.hold_s``.
        """
        until = time.monotonic() + self._settings.hold_s
        self.held.supersede(site.name)
        while True:
            seen = self.held.count()
            answer = await self._forward(request, "pull-messages", body, len(body), site)
            if answer.status_code != httpx.codes.OK:
                return await self._streamed(answer, site)
            whole = await self._whole(answer, site)
            handed = self._understood(read_handed, whole)
            for message_id, objects in handed or []:
                self.mail.hand(site.name, message_id, objects)
            left = until - time.monotonic()
            if handed != [] or left <= 0:
                break
            if not await self.held.wait(request, site.name, seen, left):
                break
            if self._allowed.by_fingerprint(site.fingerprint) is None:
                raise Refused(401, "a key that is not registered", site=site.name)
        return Response(whole, answer.status_code, _kept(answer))

    def _read(self, read: Callable[[bytes], T], body: bytes, site: ListedSite) -> T:
        try:
            return read(body)
        except TooManyObjects as error:
            raise Refused(413, str(error), site=site.name) from None
        except ValueError as error:
            raise Refused(400, f"a call that cannot be read: {error}", site=site.name) from None

    def _understood(self, read: Callable[[bytes], T], answer: bytes) -> T | None:
        try:
            return read(answer)
        except ValueError:
            # An answer that we cannot parse is passed on unchanged.
            return None

    async def _forward(
        self,
        request: Request,
        call: str,
        body: AsyncIterator[bytes] | bytes,
        length: int,
        site: ListedSite,
    ) -> httpx.Response:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name in _PASSED_ON or name.startswith(_VERSION_PREFIX)
        }
        if not all(f"{name}{value}".isascii() for name, value in headers.items()):
            raise Refused(400, "a header that is not ASCII", site=site.name)
        headers["content-length"] = str(length)
        outgoing = self._upstream.build_request(
            "POST", f"/v1/fleet/{call}", headers=headers, content=body
        )
        try:
            answer = await self._upstream.send(outgoing, stream=True)
        except (httpx.TransportError, httpx.StreamError):
            # Flower's nodes retry after status 503.
            raise Refused(503, "the SuperLink does not answer", site=site.name) from None
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            what = "a call on which the SuperLink failed"
            self.meter.refused(Refused(answer.status_code, what, site=site.name), request.url.path)
        return answer

    async def _streamed(self, answer: httpx.Response, site: ListedSite) -> Response:
        return StreamingResponse(self._answer(answer, site), answer.status_code, _kept(answer))

    async def _whole(self, answer: httpx.Response, site: ListedSite) -> bytes:
        return b"".join([piece async for piece in self._answer(answer, site)])

    async def _answer(self, answer: httpx.Response, site: ListedSite) -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_raw():
                self.meter.sent(site.name, len(piece))
                yield piece
        finally:
            await answer.aclose()

    def _authenticate(self, request: Request) -> ListedSite:
        """The site whose key has signed the time stamp.

        Raises:
            Refused: if there is none; the body is not read.
        """
        address = request.client.host if request.client else ""
        try:
            digest, key = self._key(request.headers[PUBLIC_KEY_HEADER])
            stamp = request.headers[TIMESTAMP_HEADER]
            signed_at = datetime.datetime.fromisoformat(stamp)
            signature = base64.b64decode(request.headers[SIGNATURE_HEADER], validate=True)
            age = (datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()
            key.verify(signature, stamp.encode("ascii"), ec.ECDSA(SHA256()))
        except (
            KeyError,
            ValueError,
            TypeError,
            UnicodeError,
            binascii.Error,
            UnsupportedAlgorithm,
            InvalidSignature,
        ):
            raise Refused(401, "not signed by a key", address=address) from None
        entry = self._allowed.by_fingerprint(digest)
        if entry is None:
            raise Refused(401, "a key that is not registered", address=address, key=digest)
        if not -SKEW_S < age < SKEW_S:
            raise Refused(401, f"a clock that is off (by {age:.0f} s)", address, entry.name)
        belongs: Callable[[str], None] = request.scope.get(OWNER, lambda site: None)
        belongs(entry.name)
        return entry

    def _key(self, header: str) -> tuple[str, ec.EllipticCurvePublicKey]:
        found = self._keys.get(header)
        if found is None:
            if len(header) > 1000:
                raise ValueError("no key is that long")
            key = load_pem_public_key(base64.b64decode(header, validate=True))
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError("no ECDSA key")
            found = fingerprint(key), key
            if self._allowed.by_fingerprint(found[0]) is not None:
                # The cache holds sites' keys only and is bounded: a public key can be encoded in
                # many ways, which must not fill the memory.
                if len(self._keys) >= KEYS_KEPT:
                    self._keys.clear()
                self._keys[header] = found
        return found

    def _declared_length(self, request: Request, site: ListedSite, call: str) -> int:
        text = request.headers.get("content-length", "")
        if not text.isdecimal() or len(text) > 15:
            raise Refused(411, "a request without a length", site=site.name)
        length = int(text)
        most = {
            "push-object": self._settings.body_mb * 1e6,
            "push-messages": PUSH_BYTES + OBJECT_BYTES * self._most_objects,
        }
        if length > most.get(call, SMALL_BYTES):
            raise Refused(413, f"a request of {length} bytes", site=site.name)
        if request.headers.get("content-type", "").partition(";")[0].strip() != PROTOBUF_MEDIA_TYPE:
            raise Refused(415, "a request that is no protobuf", site=site.name)
        return length

    async def _body(self, request: Request, site: ListedSite) -> AsyncIterator[bytes]:
        deadline = time.monotonic() + self._settings.request_s
        try:
            async for piece in request.stream():
                self.meter.received(site.name, len(piece))
                if time.monotonic() > deadline:
                    raise Refused(408, "a request that took too long", site=site.name)
                if piece:
                    yield piece
        except ClientDisconnect:
            raise Refused(400, "a request that broke off", site=site.name) from None

    async def _refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        self.meter.refused(error, request.url.path)
        return JSONResponse({"detail": error.public}, error.status, {"connection": "close"})

    async def _nothing(self, request: Request, error: Exception | None) -> Response:
        address = request.client.host if request.client else ""
        self.meter.refused(Refused(404, "a path that is not served", address), request.url.path)
        return JSONResponse({"detail": "Not Found"}, 404, {"connection": "close"})

    async def _failed(self, request: Request, error: Exception) -> Response:
        """Record an internal error; the caller learns no details."""
        address = request.client.host if request.client else ""
        what = f"a request on which the gateway failed ({type(error).__name__})"
        self.meter.refused(Refused(500, what, address), request.url.path)
        return JSONResponse({"detail": "Failed"}, 500, {"connection": "close"})


def _kept(answer: httpx.Response) -> dict[str, str]:
    """Headers of the SuperLink's answer that are passed on."""
    return {
        name: value
        for name, value in answer.headers.items()
        if name in ("content-type", "content-length") or name.startswith(_VERSION_PREFIX)
    }
