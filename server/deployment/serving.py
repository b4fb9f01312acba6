"""Serving the gateway: TLS 1.2 or later, connections counted, slow heads cut off.

Run as a process of its own: ``python -m server.deployment.serving DIR``.
"""

import asyncio
import json
import signal
import ssl
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fgvc_core.supervision import read_json, write_json
from server.deployment.gateway import Gateway
from server.deployment.settings import read_settings

FORWARD_TIMEOUT_S = 60.0
NOTE_EVERY_S = 1.0


def serve(folder: Path) -> None:
    """Serve the gateway of a coordinator's folder until told to stop."""
    settings = read_settings(folder).gateway
    ports = read_json(folder / "state" / "ports.json")
    trust = ssl.create_default_context(cafile=str(folder / "state" / "loopback" / "ca.pem"))
    upstream = httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{ports['superlink']}",
        verify=trust,
        # A proxy of the environment is for the outside, never for our own loopback.
        trust_env=False,
        timeout=httpx.Timeout(FORWARD_TIMEOUT_S, connect=5.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=200),
    )
    gateway = Gateway(folder, upstream, settings)
    config = uvicorn.Config(
        gateway.app(),
        host=settings.listen,
        port=ports["gateway"],
        http=_protocol(settings.slow_s, settings.connections_per_address),
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.connections,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ssl_certfile=str(folder / "server.pem"),
        ssl_keyfile=str(folder / "server.key"),
        log_level="warning",
    )
    config.load()
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    asyncio.run(_serve(uvicorn.Server(config), gateway, folder))


async def _serve(server: uvicorn.Server, gateway: Gateway, folder: Path) -> None:
    noting = asyncio.create_task(_note(gateway, folder / "state" / "gateway.json"))
    try:
        await server.serve()
    finally:
        noting.cancel()


async def _note(gateway: Gateway, path: Path) -> None:
    """Leave the counts where status and metrics find them."""
    meter = gateway.meter
    while True:
        await asyncio.sleep(NOTE_EVERY_S)
        values = {
            "noted": round(time.time(), 1),
            "requests": dict(meter.requests),
            "bytes_in": dict(meter.bytes_in),
            "bytes_out": dict(meter.bytes_out),
            "last_seen": {site: round(at, 1) for site, at in meter.last_seen.items()},
            "refusals": [[what, code, n] for (what, code), n in meter.refusals.items()],
        }
        write_json(path, values)


def _protocol(slow_s: float, per_address: int) -> type[HttpToolsProtocol]:
    """A protocol that drops who connects too often, says nothing, or goes silent."""
    open_from: Counter[str] = Counter()

    class Guarded(HttpToolsProtocol):
        def connection_made(self, transport: Any) -> None:
            self._address = (transport.get_extra_info("peername") or ("",))[0]
            self._silence: asyncio.TimerHandle | None = None
            open_from[self._address] += 1
            super().connection_made(transport)
            if open_from[self._address] > per_address:
                transport.abort()
                return
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            open_from[self._address] -= 1
            self._unwatch()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._watch()
            super().data_received(data)

        def on_message_complete(self) -> None:
            # The request is whole: what follows may take as long as it takes.
            self._unwatch()
            super().on_message_complete()

        def _watch(self) -> None:
            self._unwatch()
            self._silence = self.loop.call_later(slow_s, self._drop)

        def _unwatch(self) -> None:
            if self._silence is not None:
                self._silence.cancel()
                self._silence = None

        def _drop(self) -> None:
            if not self.transport.is_closing():
                self.transport.abort()

    return Guarded


def main() -> None:
    """Entry of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(Path(sys.argv[1]))
    except OSError as error:
        sys.exit(json.dumps({"gateway": str(error)}))


if __name__ == "__main__":
    main()
