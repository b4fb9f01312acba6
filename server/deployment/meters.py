"""Rate limits, counts of each site's traffic at the gateway, and the log of refusals."""

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from fieldmark.server.deployment.settings import GatewaySettings

_NUMBER = re.compile(r"-?\d+")
RECORDS_PER_MINUTE = 120
"""Refusals logged per minute; the rest are only counted."""
MAX_RECORD_BYTES = 20_000_000


class Refused(Exception):
    """A request that is not forwarded.

    Args:
        status: HTTP status.
        what: Reason, for our own log.
        address: Of the client.
        site: Whose key it was, if known.
        key: Fingerprint of an unregistered key.
    """

    _PUBLIC: ClassVar = {
        400: "Bad request",
        401: "Not a registered site",
        403: "Not allowed",
        408: "Too slow",
        411: "Length required",
        413: "Too large",
        415: "Unsupported type",
        429: "Too many requests",
        503: "The coordinator is starting.",
    }

    def __init__(
        self, status: int, what: str, address: str = "", site: str = "", key: str = ""
    ) -> None:
        super().__init__(what)
        self.status, self.what = status, what
        self.address, self.site, self.key = address, site, key

    @property
    def public(self) -> str:
        """The reason that the sender gets, which reveals nothing new."""
        return self._PUBLIC.get(self.status, "Refused")


class Meter:
    """Counts and limits, per site.

    Args:
        record: Refusals are written here, one JSON object per line.
        settings: Limits.
    """

    def __init__(self, record: Path, settings: GatewaySettings) -> None:
        self._record = record
        self._settings = settings
        self._open: Counter[str] = Counter()
        self._tokens: dict[str, tuple[float, float]] = {}
        self._minute, self._written = 0, 0
        self.requests: Counter[str] = Counter()
        self.bytes_in: Counter[str] = Counter()
        self.bytes_out: Counter[str] = Counter()
        self.refusals: Counter[tuple[str, int]] = Counter()
        self.last_seen: dict[str, float] = defaultdict(float)

    @contextmanager
    def open(self, site: str) -> Iterator[None]:
        """Count one request of a site while it is open.

        Raises:
            Refused: if the site has too many open requests or too high a rate.
        """
        rate = self._settings.requests_per_s
        now = time.monotonic()
        tokens, before = self._tokens.get(site, (10 * rate, now))
        tokens = min(tokens + (now - before) * rate, 10 * rate)
        if tokens < 1:
            raise Refused(429, "more requests than requests_per_s", site=site)
        if self._open[site] >= self._settings.connections_per_key:
            raise Refused(429, "more requests open than connections_per_key", site=site)
        self._tokens[site] = tokens - 1, now
        self._open[site] += 1
        self.requests[site] += 1
        self.last_seen[site] = time.time()
        try:
            yield
        finally:
            self._open[site] -= 1

    def received(self, site: str, nbytes: int) -> None:
        """Count bytes from a site."""
        self.bytes_in[site] += nbytes

    def sent(self, site: str, nbytes: int) -> None:
        """Count bytes to a site."""
        self.bytes_out[site] += nbytes

    def refused(self, refusal: Refused, path: str) -> None:
        """Count a refusal and log it, unless there are too many."""
        # Numbers are replaced, so a sender cannot create an unbounded number of kinds.
        kind = _NUMBER.sub("N", refusal.what.split(" of ")[0].split(" (")[0])
        self.refusals[kind, refusal.status] += 1
        minute = int(time.time() // 60)
        if minute != self._minute:
            self._minute, self._written = minute, 0
        self._written += 1
        if self._written > RECORDS_PER_MINUTE:
            return
        self._rotate()
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "refused": refusal.what,
            "status": refusal.status,
            "path": path[:200],
            "site": refusal.site or None,
            "address": refusal.address or None,
            "key": refusal.key or None,
        }
        with self._record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _rotate(self) -> None:
        if self._record.exists() and self._record.stat().st_size > MAX_RECORD_BYTES:
            self._record.replace(self._record.with_suffix(".jsonl.1"))
