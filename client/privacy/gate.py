"""The gate: the only way out of a site.

Nothing else in this package signs or returns a reply. The gate checks a reply
against the site's policy, takes out what the policy keeps, writes one line about it
to ``departures.jsonl`` and syncs it to the disk, and only then hands it out. A line
that is there for a reply that never arrived overstates what has left; the opposite
cannot happen.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from fgvc_core.errors import PolicyRefusal
from fgvc_core.protocol.envelope import Sealed, seal
from fgvc_core.protocol.messages import Reply, Request
from fgvc_core.wire.arrays import PackedTensor, pack_all


@dataclass(frozen=True)
class Departure:
    """A reply that may leave: signed body and packed tensors."""

    sealed: Sealed
    tensors: dict[str, PackedTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of body, signature and tensors."""
        body = len(self.sealed.text.encode()) + len(self.sealed.signature)
        return body + sum(len(t.data) for t in self.tensors.values())


class Gate:
    """The gate of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._book = site.home / "departures.jsonl"

    def release(
        self, request: Request, reply: Reply, tensors: Mapping[str, NDArray[np.float32]]
    ) -> Departure:
        """Let a reply out.

        Args:
            request: What was asked.
            reply: What is answered; its tensors' digests are filled in here.
            tensors: What goes along.

        Raises:
            PolicyRefusal: if the reply is larger than the policy allows. Nothing has
                left then, and nothing was counted.
        """
        policy = self._site.settings.policy
        packed = pack_all(tensors)
        size_mb = sum(len(t.data) for t in packed.values()) / 1e6
        if size_mb > policy.max_update_mb:
            raise PolicyRefusal(
                f"The update weighs {size_mb:.1f} MB; this site's policy allows "
                f"max_update_mb = {policy.max_update_mb:g}.",
                why="Nothing has left the site.",
                remedy="Train less of the model ([model] train), or raise the site's policy.",
            )
        allowed = reply.model_copy(
            update={
                "examples": reply.examples if policy.share_counts else min(reply.examples, 1),
                # Scores say how many pictures they are of: they would tell the count.
                "scores": reply.scores if policy.share_scores and policy.share_counts else None,
                "departure": self._count() + 1,
                "tensors": {name: tensor.digest() for name, tensor in packed.items()},
            }
        )
        departure = Departure(seal(self._site.key, allowed), packed)
        self._write(request, allowed, departure)
        return departure

    def _count(self) -> int:
        try:
            with self._book.open("rb") as file:
                return sum(1 for _ in file)
        except FileNotFoundError:
            return 0

    def _write(self, request: Request, reply: Reply, departure: Departure) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": request.run,
            "round": request.round,
            "kind": request.kind,
            "nonce": request.nonce,
            "code": reply.code,
            "tensors": len(departure.tensors),
            "bytes": departure.nbytes,
            "examples": reply.examples,
            "scores": reply.scores is not None,
        }
        with self._book.open("ab+") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            # A line that a crash has torn stays a line of its own.
            before = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(before + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
