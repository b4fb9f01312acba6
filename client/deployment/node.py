"""The site's SuperNode, Flower's own, with bounds on what its coordinator can make it hold.

Flower's SuperNode believes its SuperLink. It unpacks the description in each run's bundle before
anybody has compared the bundle with ours (one of 272 kB made it grow by 560 MB), takes
answers of any length, also packed ones, follows redirects to any address, and holds a message
whatever it weighs. Here

* a bundle is never unpacked: what a run is configured with comes from our own bundle, and of a
  foreign one as much is kept as the runner needs to refuse it;
* an answer has a bound by its kind, must not be packed, and leads nowhere else;
* the pieces of one message weigh no more than ``limits.message_mb`` together.

:func:`.flower_internals.bound_node` puts these where Flower's own parts are.
"""

import threading
from collections.abc import Callable

import httpx

from fgvc_core.protocol.bundle import MAX_BUNDLE_BYTES, make_bundle

PIECE_BYTES = 24_000_000
"""Longest answer that carries a piece of a message. Flower cuts arrays into pieces of 5 MB; the
largest other piece is a signed body (4 MB)."""

ANSWER_BYTES = 1_000_000
"""Longest answer of any other kind: names, numbers, the tree of a message's pieces, a bundle."""

TOO_LARGE = "is beyond this site's bound"
"""In what the node says when it refuses for size; its supervisor looks for it."""


class BeyondBound(Exception):
    """The coordinator's server sent more than this site takes."""


class BoundedClient(httpx.Client):
    """Reads no more of an answer than its kind may have.

    Args:
        verify: As of ``httpx.Client``.
        timeout: Likewise, in seconds.
    """

    def __init__(self, verify: object, timeout: object) -> None:
        # A redirect would have this machine call an address that its coordinator chose.
        super().__init__(verify=verify, timeout=timeout, follow_redirects=False)  # type: ignore[arg-type]

    def send(  # type: ignore[override]
        self, request: httpx.Request, *, stream: bool = False, **rest: object
    ) -> httpx.Response:
        """Send, and read the answer as it comes.

        Raises:
            BeyondBound: if it is packed, or longer than its kind may be.
        """
        # A packed answer could unfold to a thousand times what was read.
        request.headers["accept-encoding"] = "identity"
        answer = super().send(request, stream=True, **rest)  # type: ignore[arg-type]
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
    """The bytes of an answer.

    Raises:
        BeyondBound: if it is packed, or longer than its kind may be.
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
    """As much of a bundle as has to be kept: a whole one is shorter, so a cut one is refused."""
    return content if content == make_bundle() else content[: MAX_BUNDLE_BYTES + 1]


class Weighed:
    """Takes the pieces of one message after the other, each with a bound on their sum.

    Args:
        limit_bytes: Most that the pieces of one message weigh together.
        pull: (run, object id) -> its bytes; called from several threads.
    """

    def __init__(self, limit_bytes: int, pull: Callable[[int, str], bytes]) -> None:
        self._limit, self._pull = limit_bytes, pull
        self._come = 0
        self._lock = threading.Lock()

    def next_message(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._come = 0

    def __call__(self, run_id: int, object_id: str) -> bytes:
        """One piece.

        Raises:
            BeyondBound: if the message weighs too much with it.
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
