"""The gateway's server process: TLS 1.2 or later, connection limits, timeouts for slow clients.

Run as a separate process: ``python -m fieldmark.server.deployment.serving DIR``.
"""

import asyncio
import json
import signal
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fgvc_core.files import read_json, replace_private_json
from fgvc_core.quiet_server import KEEP_ALIVE_S, be_quiet
from fgvc_core.sockets import path_of, socket_name
from fieldmark.server.deployment.gateway import OWNER, Gateway
from fieldmark.server.deployment.meters import Meter, Refused
from fieldmark.server.deployment.settings import GatewaySettings, read_settings
from fieldmark.server.deployment.sockets import superlink_address

FORWARD_TIMEOUT_S = 60.0
NOTE_EVERY_S = 1.0
MAX_HEAD_BYTES = 64_000
"""Largest request line and headers together, in bytes; those of a node are about 1000."""


def serve(folder: Path) -> None:
    """Serve the gateway of a coordinator's folder until it is told to stop."""
    settings = read_settings(folder).gateway
    ports = read_json(folder / "state" / "ports.json")
    link = path_of(superlink_address(folder))
    assert link is not None
    trust = ssl.create_default_context(cafile=str(folder / "state" / "loopback" / "ca.pem"))
    upstream = httpx.AsyncClient(
        base_url="https://localhost",
        transport=httpx.AsyncHTTPTransport(
            uds=socket_name(link),
            verify=trust,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=200),
        ),
        # Proxies of the environment must not be used for local processes.
        trust_env=False,
        timeout=httpx.Timeout(FORWARD_TIMEOUT_S, connect=5.0),
    )
    gateway = Gateway(folder, upstream, settings)
    config = uvicorn.Config(
        gateway.app(),
        host=settings.listen,
        port=ports["gateway"],
        http=_protocol(settings, gateway.meter),
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.connections,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        ssl_certfile=str(folder / "server.pem"),
        ssl_keyfile=str(folder / "server.key"),
        log_level="warning",
    )
    be_quiet()
    config.load()
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    asyncio.run(_serve(uvicorn.Server(config), gateway, folder, settings.slow_s))


async def _serve(
    server: uvicorn.Server, gateway: Gateway, folder: Path, handshake_s: float
) -> None:
    loop = asyncio.get_running_loop()
    # uvicorn has no option for this, and the default of one minute per stalled handshake is too
    # long.
    bounded = partial(loop.create_server, ssl_handshake_timeout=handshake_s)
    setattr(loop, "create_server", bounded)  # noqa: B010
    # Otherwise the server would wait for the calls that it holds.
    gateway.held.is_closing = lambda: server.should_exit
    noting = asyncio.create_task(_note(gateway, folder / "state" / "gateway.json"))
    try:
        await server.serve()
    finally:
        noting.cancel()


async def _note(gateway: Gateway, path: Path) -> None:
    """Write the counts, when they change, to the file that status and metrics read."""
    meter = gateway.meter
    noted: dict[str, Any] = {}
    while True:
        await asyncio.sleep(NOTE_EVERY_S)
        values = {
            "requests": dict(meter.requests),
            "bytes_in": dict(meter.bytes_in),
            "bytes_out": dict(meter.bytes_out),
            "last_seen": {site: round(at, 1) for site, at in meter.last_seen.items()},
            "refusals": [[what, code, n] for (what, code), n in meter.refusals.items()],
        }
        if values != noted:
            replace_private_json(path, values)
            noted = values


@dataclass
class OpenConnections:
    """Counts of open connections: unauthenticated ones by address, authenticated ones by site.

    Many sites behind one proxy therefore do not use up each other's limit.
    """

    from_address: Counter[str] = field(default_factory=Counter)
    of_site: Counter[str] = field(default_factory=Counter)

    def closed(self, address: str, site: str) -> None:
        """Remove one connection of a site, or of an address if ``site`` is empty."""
        if site:
            self.of_site[site] -= 1
        else:
            self.from_address[address] -= 1


class Guarded(HttpToolsProtocol):
    """Drops connections that open too often, stay silent, send too slowly, or do not read.

    Attributes:
        limits: The gateway's settings; like the other two, set by :func:`_protocol`.
        meter: Counts refused requests.
        open: The open connections.
    """

    limits: GatewaySettings
    meter: Meter
    open: OpenConnections

    def connection_made(self, transport: Any) -> None:
        self._address = (transport.get_extra_info("peername") or ("",))[0]
        self._timer: asyncio.TimerHandle | None = None
        self._head: int | None = None
        self._site = ""
        self._unread: asyncio.TimerHandle | None = None
        self._read_by = 0.0
        self.open.from_address[self._address] += 1
        super().connection_made(transport)
        if self.open.from_address[self._address] > self.limits.connections_per_address:
            self._turn_away(429, "more connections than connections_per_address")
            return
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.closed(self._address, self._site)
        self._unwatch()
        self._is_read()
        super().connection_lost(exc)

    def belongs(self, site: str) -> None:
        """Count this connection as a site's after one of its requests was authenticated.

        Raises:
            Refused: if that site has too many.
        """
        if self._site == site:
            return
        self.open.closed(self._address, self._site)
        self._site = site
        self.open.of_site[site] += 1
        if self.open.of_site[site] > self.limits.connections_per_key:
            what = "more connections than connections_per_key"
            raise Refused(429, what, self._address, site)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_read()
        left = min(self.limits.slow_s, max(self._read_by - self.loop.time(), 0.0))
        self._unread = self.loop.call_later(left, self._not_read)

    def resume_writing(self) -> None:
        self._is_read()
        super().resume_writing()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _not_read(self) -> None:
        what = "an answer that was not read"
        self.meter.refused(Refused(408, what, self._address, self._site), "")
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._begin_head()
        elif self._head is None:
            self._watch(self.transport.abort)
        super().data_received(data)
        if self._head is None:
            return
        self._head += len(data)
        # The parser buffers the header until it is complete, so its size must be bounded.
        if self._head > MAX_HEAD_BYTES:
            self._turn_away(413, "a head that is too long")

    def on_message_begin(self) -> None:
        if self._head is None:
            self._begin_head()
        super().on_message_begin()
        self._read_by = self.loop.time() + 2 * self.limits.request_s
        cast(dict[str, Any], self.scope)[OWNER] = self.belongs

    def on_headers_complete(self) -> None:
        self._head = None
        # If cut off within its body, the application logs the request.
        self._watch(self.transport.abort)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        # The request is complete: the answer has no time limit here.
        self._unwatch()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._unwatch()
        self.meter.refused(Refused(400, "no HTTP request", self._address), "")
        super().send_400_response(msg)

    def _begin_head(self) -> None:
        """Start one timer for the whole header, which a slow client cannot restart."""
        self._head = 0
        self._watch(self._too_slow)

    def _too_slow(self) -> None:
        self._turn_away(408, "a head that took too long" if self._head else "silence")

    def _turn_away(self, status: int, what: str) -> None:
        self._unwatch()
        self.meter.refused(Refused(status, what, self._address), "")
        self.transport.abort()

    def _watch(self, otherwise: Callable[[], None]) -> None:
        self._unwatch()
        self._timer = self.loop.call_later(self.limits.slow_s, otherwise)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _protocol(settings: GatewaySettings, meter: Meter) -> type[Guarded]:
    """A protocol class for one gateway, whose connections are counted together."""
    own = {"limits": settings, "meter": meter, "open": OpenConnections()}
    return type("Guarded", (Guarded,), own)


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(Path(sys.argv[1]))
    except OSError as error:
        sys.exit(json.dumps({"gateway": str(error)}))


if __name__ == "__main__":
    main()
