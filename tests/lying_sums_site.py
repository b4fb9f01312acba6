"""A site that lies about its noisy sums: the real app of a real home, one centre far out.

Its ledger and its gate work as they should: it pays for what it releases. What leaves is another
centre, signed with its own key.
Run as a process of its own: ``python lying_sums_site.py HOME ADDRESS COORDINATOR_FOLDER``.
"""

import sys
from pathlib import Path

import numpy as np
from flwr.app import Message

from fgvc_core.wire.arrays import TensorSpec, pack, unpack

# After these: beside the file lie folders named as the packages.
sys.path.append(str(Path(__file__).parent))
from lying_site import Liar

FAR = np.float32(1e30)


class SumsLiar(Liar):
    """Answers all as the real app does, but for the centre."""

    def answer(self, message: Message, run: int) -> None:
        body, parts = self.honest(message, run)
        centre = parts[2].get("centre")
        if centre is not None:
            values = unpack(centre, TensorSpec(centre.dtype, centre.shape), "centre")
            parts = self.sealed(body, {"centre": pack(values + FAR)})
        self.push(message, parts)


if __name__ == "__main__":
    SumsLiar(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])).serve()
