"""A site that works at once and keeps back that it is ready, until a test lets it go.

A sum's set of sites is not fixed meanwhile: whatever happens then happens after the others have
said that they are ready, and before any of them has sent its part. The file ``go-PHASE`` in the
coordinator's folder lets it go, in a round of training the file ``go-NUMBER``.
Run as a process of its own: ``python withholding_site.py HOME ADDRESS COORDINATOR_FOLDER``.
"""

import sys
import time
from pathlib import Path

from flwr.app import Message

from fgvc_core.protocol.messages import Request

# After these: beside the file lie folders named as the packages.
sys.path.append(str(Path(__file__).parent))
from lying_site import Liar


class Withholding(Liar):
    """Answers all as the real app does, the first trip of a sum later."""

    def answer(self, message: Message, run: int) -> None:
        asked = Request.parse(message.content.config_records["envelope"]["body"])
        assert isinstance(asked, Request)
        _, parts = self.honest(message, run)
        while asked.cohort and not (self.folder / f"go-{asked.phase or asked.round}").exists():
            time.sleep(0.1)
        self.push(message, parts)


if __name__ == "__main__":
    Withholding(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])).serve()
