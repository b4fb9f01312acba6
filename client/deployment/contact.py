"""Diagnosis of the connection to the coordinator: name, proxy, TLS, key and version, in this order.

Problems are described in words that hospital staff can act on, including those of proxies and of
expired or foreign certificates.
"""

import base64
import email.utils
import http.client
import os
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from cryptography import x509

from fgvc_core.errors import PeerError
from fgvc_core.protocol.announcement import Announcement, read_announcement, read_seen
from fgvc_core.protocol.keys import PrivateKey, PublicKey
from fgvc_core.protocol.messages import Reply
from fgvc_core.proxies import environment, without_loopback
from fieldmark.client.deployment.flower_internals import node_headers
from fieldmark.client.deployment.link import CA, Link

TIMEOUT_S = 10.0
VERSION_HEADER = "fieldmark-version"
JUDGED_S = 240.0
"""Largest clock difference at which a refusal is about the key, in seconds. The gateway refuses
signatures of another time from 300 s on; the difference is measured to a few seconds."""


@dataclass(frozen=True)
class Contact:
    """Findings of one connection attempt; fields after a failed step are empty.

    Attributes:
        dns: Problem with the host name, or empty.
        proxy: The proxy in use, as host:port, or empty.
        tls: Problem with connection or certificate, or empty.
        until: Expiry of the certificate.
        skew_s: How far our clock is ahead of the coordinator's, in seconds.
        key: Problem with our key at the coordinator, or empty.
        unjudged: Why nothing is known of our key, although the coordinator answered, or empty.
        version: Version of Fieldmark at the coordinator.
        announcement: The current run, if any.
        seen: This site's own reply with the longest ledger that the coordinator remembers.
    """

    dns: str = ""
    proxy: str = ""
    tls: str = ""
    until: datetime | None = None
    skew_s: float | None = None
    key: str = ""
    unjudged: str = ""
    version: str = ""
    announcement: Announcement | None = None
    seen: Reply | None = None


def proxy_of(link: Link) -> str:
    """host:port of the proxy that HTTPS_PROXY sets for the coordinator, or empty."""
    parts = _proxy_parts(link)
    return "" if parts is None else f"{parts.hostname}:{parts.port or 8080}"


def _proxy_parts(link: Link) -> SplitResult | None:
    """Proxy from the environment, chosen as the SuperNode's HTTP client does.

    The SuperNode is started with loopback in ``NO_PROXY``, so it is left out here, too.
    """
    with environment(without_loopback(os.environ)):
        return _proxy_from_environment(link)


def _proxy_from_environment(link: Link) -> SplitResult | None:
    found = getproxies()
    named = next(
        (
            each
            for each in (found.get("https"), found.get("all"))
            if each and "socks" not in each[:5]
        ),
        "",
    )
    if not named or proxy_bypass(link.host):
        return None
    return urlsplit(named if "//" in named else f"//{named}")


def look(home: Path, link: Link, key: PrivateKey, coordinator: PublicKey) -> Contact:
    """Connect to the coordinator once; problems are returned, not raised."""
    try:
        proxy = proxy_of(link)
    except ValueError as error:
        return Contact(dns=f"the proxy that the environment names is no address: {error}")
    first = proxy.rpartition(":")[0] if proxy else link.host
    try:
        socket.getaddrinfo(first, None)
    except OSError as error:
        return Contact(dns=f"'{first}' is not known: {error.strerror or error}", proxy=proxy)
    context = ssl.create_default_context(cafile=str(home / CA))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    connection = _connection(link, proxy, context)
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        return Contact(proxy=proxy, tls=_distrusted(link, proxy, error))
    except (OSError, http.client.HTTPException) as error:
        where = f" through the proxy {proxy}" if proxy else ""
        return Contact(proxy=proxy, tls=f"{link.address} does not answer{where}: {error}")
    try:
        until = _until(connection)
        connection.request("GET", "/v1/announcement", headers=node_headers(key))
        answer = connection.getresponse()
        text = answer.read(5_000_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return Contact(proxy=proxy, tls=f"{link.address} broke off: {error}")
    finally:
        connection.close()
    found = Contact(
        proxy=proxy,
        until=until,
        skew_s=_skew(answer.headers.get("date", "")),
        version=answer.headers.get(VERSION_HEADER, ""),
    )
    return _with_answer(found, answer.status, text, coordinator, key)


def _with_answer(
    found: Contact, status: int, text: str, coordinator: PublicKey, own: PrivateKey
) -> Contact:
    values = dict(vars(found))
    if status == 401 and abs(found.skew_s or 0.0) > JUDGED_S:
        # It refuses what was signed at another time, whoever has signed it.
        said = "the clocks differ too much for the coordinator to judge it"
        return Contact(**{**values, "unjudged": said})
    if status == 401:
        return Contact(**{**values, "key": "the coordinator does not know this site's key"})
    if status != 200:
        return Contact(**{**values, "key": f"the coordinator answered {status}"})
    try:
        announced = read_announcement(text, coordinator)
    except PeerError as error:
        return Contact(**{**values, "key": error.what})
    try:
        seen = read_seen(text, own.public_key())
    except PeerError:
        # Signed by a previous key of this site.
        seen = None
    return Contact(**{**values, "announcement": announced, "seen": seen})


def _connection(link: Link, proxy: str, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    if not proxy:
        return http.client.HTTPSConnection(link.host, link.port, timeout=TIMEOUT_S, context=context)
    host, _, port = proxy.rpartition(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=TIMEOUT_S, context=context)
    connection.set_tunnel(link.host, link.port, _proxy_proof(link))
    return connection


def _proxy_proof(link: Link) -> dict[str, str]:
    """Header with the proxy's user name and password, if the URL has them (RFC 7617)."""
    parts = _proxy_parts(link)
    if parts is None or parts.username is None:
        return {}
    told = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(told).decode('ascii')}"}


def _distrusted(link: Link, proxy: str, error: ssl.SSLCertVerificationError) -> str:
    """Why a certificate was refused, with its dates or its issuer."""
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Verification is off only to read the refused certificate; nothing is sent.
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    connection = _connection(link, proxy, bare)
    try:
        connection.connect()
        certificate = _shown(connection)
    except (OSError, http.client.HTTPException):
        certificate = None
    finally:
        connection.close()
    if certificate is None:
        return f"its certificate is refused: {error.verify_message}"
    now = datetime.now(UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > last:
        return f"its certificate expired on {last:%Y-%m-%d %H:%M} UTC"
    if now < first:
        return f"its certificate is valid from {first:%Y-%m-%d %H:%M} UTC only"
    issuer = certificate.issuer.rfc4514_string()
    return f"its certificate is refused: {error.verify_message} (issued by {issuer})"


def _shown(connection: http.client.HTTPSConnection) -> x509.Certificate | None:
    shown = connection.sock.getpeercert(True) if connection.sock else None
    return None if shown is None else x509.load_der_x509_certificate(shown)


def _until(connection: http.client.HTTPSConnection) -> datetime | None:
    certificate = _shown(connection)
    return None if certificate is None else certificate.not_valid_after_utc


def _skew(date: str) -> float | None:
    try:
        there = email.utils.parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return None
    return (datetime.now(UTC) - there).total_seconds()
