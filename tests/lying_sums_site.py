"""A site that lies about its noisy sums: the real app of a real home, one centre far out.

Its ledger and its gate work as they should: it pays for what it releases. What leaves is another
centre, signed with its own key.
Run as a process of its own: ``python lying_sums_site.py HOME ADDRESS COORDINATOR_FOLDER``.
"""

import sys
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict

import server  # noqa: F401
import simulations  # noqa: F401
from fgvc_core.flower.parcels import open_in
from fgvc_core.protocol.messages import Reply
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, pack, unpack
from fieldmark.client.app import app

# After these: beside the file lie folders named as the packages.
sys.path.append(str(Path(__file__).parent))
from lying_site import Liar

FAR = np.float32(1e30)


class SumsLiar(Liar):
    """Answers all as the real app does, but for the centre."""

    def answer(self, message: Message, run: int) -> None:
        open_in(message.content)
        config = {"site-home": str(self.home)}
        reply = app(message, Context(run, self.node.node_id, config, RecordDict(), {}))
        envelope = reply.content.config_records["envelope"]
        tensors = {
            n: PackedTensor(a.dtype, tuple(a.shape), a.data)
            for n, a in reply.content.array_records["tensors"].items()
        }
        parts = envelope["body"], envelope["signature"], tensors
        if "centre" in tensors:
            body = Reply.parse(envelope["body"])
            assert isinstance(body, Reply)
            honest = tensors["centre"]
            values = unpack(honest, TensorSpec(honest.dtype, honest.shape), "centre")
            parts = self.sealed(body, {"centre": pack(values + FAR)})
        self.push(message, parts)


if __name__ == "__main__":
    SumsLiar(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])).serve()
