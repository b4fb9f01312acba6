"""Limits on what the coordinator can make a site's SuperNode hold in memory.

Flower's SuperNode trusts its SuperLink: it unpacks each run's bundle before anybody has compared it
with ours (a bundle of 272 kB took 560 MB), accepts responses of any length, compressed ones too,
follows redirects to any address, and has no limit on the size of a message. Here

* bundles are never unpacked: the run's configuration comes from our own bundle, and of a foreign
  bundle only as much is kept as the runner needs to refuse it;
* responses have a maximum size by kind, must not be compressed, and redirects are not followed;
* the pieces of one message total at most ``limits.message_mb``.

:func:`.flower_internals.bound_node` installs these limits.
"""

import sys
import threading
from collections.abc import Callable

import httpx

from fgvc_core.protocol.bundle import MAX_BUNDLE_BYTES, make_bundle
from fieldmark.client.deployment.lines import KEY_REFUSED, TOO_LARGE

PIECE_BYTES = 24_000_000
"""Maximum size of a response with a piece of a message. Flower cuts arrays into pieces of 5 MB; the
largest other piece is a signed body (4 MB)."""

ANSWER_BYTES = 1_000_000
"""Maximum size of any other response: names, numbers, the tree of a message's pieces, a bundle."""


class BeyondBound(Exception):
    """The coordinator's server sent more than this site takes."""


class BoundedClient(httpx.Client):
    """HTTP client that limits the size of responses by kind, and says when the key is refused.

    Args:
        verify: As for ``httpx.Client``.
        timeout: As for ``httpx.Client``, in seconds.
    """

    def __init__(self, verify: object, timeout: object) -> None:
        # A redirect could send requests to any address inside the site's network.
        super().__init__(verify=verify, timeout=timeout, follow_redirects=False)  # type: ignore[arg-type]

    def send(  # type: ignore[override]
        self, request: httpx.Request, *, stream: bool = False, **rest: object
    ) -> httpx.Response:
        """Send a request and read the response.

        Raises:
            BeyondBound: if it is compressed or too large.
        """
        # A compressed response could expand a thousandfold.
        request.headers["accept-encoding"] = "identity"
        answer = super().send(request, stream=True, **rest)  # type: ignore[arg-type]
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            # The supervisor reads this; Flower's node then interrupts itself as if told to end.
            print(KEY_REFUSED, file=sys.stderr, flush=True)
        if stream:
            return answer
        try:
            content = read_bounded(answer)
        finally:
            answer.close()
        unread = ("content-encoding", "content-length", "transfer-encoding")
        kept = [(n, v) for n, v in answer.headers.multi_items() if n.lower() not in unread]
        return httpx.Response(
            answer.status_code, headers=kept, content=content, request=answer.request
        )


def read_bounded(answer: httpx.Response) -> bytes:
    """Body of a response.

    Raises:
        BeyondBound: if it is compressed or too large.
    """
    path = answer.request.url.path
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise BeyondBound(f"A packed answer to {path} {TOO_LARGE}: nobody asked for one.")
    bound = PIECE_BYTES if path.endswith("/pull-object") else ANSWER_BYTES
    content = bytearray()
    for part in answer.iter_raw():
        content += part
        if len(content) > bound:
            raise BeyondBound(f"An answer to {path} {TOO_LARGE} of {bound:,} bytes.")
    return bytes(content)


def cut_bundle(content: bytes) -> bytes:
    """Bundle, truncated unless it equals ours; still long enough to be refused."""
    return content if content == make_bundle() else content[: MAX_BUNDLE_BYTES + 1]


class Weighed:
    """Pulls the pieces of one message, with a limit on their total size.

    Args:
        limit_bytes: Maximum total size of the pieces of one message.
        pull: (run, object id) -> its bytes; called from several threads.
    """

    def __init__(self, limit_bytes: int, pull: Callable[[int, str], bytes]) -> None:
        self._limit, self._pull = limit_bytes, pull
        self._come = 0
        self._lock = threading.Lock()

    def next_message(self) -> None:
        """Reset the count for the next message."""
        with self._lock:
            self._come = 0

    def __call__(self, run_id: int, object_id: str) -> bytes:
        """Pull one piece.

        Raises:
            BeyondBound: if the message exceeds the limit with it.
        """
        self._check()
        content = self._pull(run_id, object_id)
        with self._lock:
            self._come += len(content)
        self._check()
        return content

    def _check(self) -> None:
        if self._come > self._limit:
            raise BeyondBound(
                f"A message of more than {self._limit / 1e6:g} MB {TOO_LARGE} (limits.message_mb)."
            )
