"""A registered site that holds up the roll call: silent, stalling, dripping, or just late.

Run as a process of its own: ``python silent_site.py HOME ADDRESS COORDINATOR_FOLDER HOW SECONDS``.
"""

import sys
import time
from pathlib import Path

from flwr.app import Message
from flwr.proto.fleet_pb2 import PushMessagesRequest

from fgvc_core.flower.parcels import pack_in
from fgvc_core.protocol.messages import Request

# After these: beside the file lie folders named as the packages.
sys.path.append(str(Path(__file__).parent))
from hostile_site import Hostile
from superlink_lab import Graph

DRIP_S = 1.0


class Silent(Hostile):
    """Answers a roll call as told, and whatever else honestly."""

    def __init__(self, home: Path, address: str, folder: Path, how: str, seconds: float) -> None:
        super().__init__(home, address, folder)
        self.how, self.seconds = how, seconds

    def answer(self, message: Message, run: int) -> None:
        asked = Request.parse(message.content.config_records["envelope"]["body"])
        assert isinstance(asked, Request)
        if asked.kind == "roll_call" and self.how == "silent":
            return
        reply = self.app_reply(message, run)
        pack_in(reply.content)
        if asked.kind == "roll_call" and self.how == "late":
            time.sleep(self.seconds)
        if asked.kind != "roll_call" or self.how == "late":
            self.push_graph(reply, run, lambda graph: graph)
            return
        graph = Graph(reply)
        graph.proto.content.Clear()
        graph.proto.content.SetInParent()
        found = self.client.PushMessages(
            PushMessagesRequest(
                node=self.node, messages_list=[graph.proto], message_object_trees=[graph.tree]
            )
        )
        wanted = [i for i in graph.contents if i in set(found.objects_to_push)]
        print(self.how, len(wanted), flush=True)
        until = time.monotonic() + self.seconds
        while self.how == "drips" and time.monotonic() < until:
            # All but the last, again and again: its session never lapses.
            for piece in wanted[:-1]:
                status = self.push_piece(found, run, graph, piece)
                if status != 200:
                    print("a piece was refused", status, flush=True)
                time.sleep(DRIP_S)


if __name__ == "__main__":
    Silent(
        Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4], float(sys.argv[5])
    ).serve()
