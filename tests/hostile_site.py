"""A hostile site below the level of our messages: Flower's objects, sessions and calls.

Run as a process of its own: ``python hostile_site.py HOME ADDRESS COORDINATOR_FOLDER``.
"""

import sys
from pathlib import Path

import httpx
from flwr.app import ArrayRecord, Message
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)

from fgvc_core.flower.parcels import pack_in
from fgvc_core.protocol.messages import Reply

# After these: beside the file lie folders named as the packages.
sys.path.append(str(Path(__file__).parent))
from lying_site import Liar
from superlink_lab import MALFORMED, Graph, MemoryLink

EMPTY = ArrayRecord().object_id
"""The id of a record without arrays: the same wherever there is one."""


class Hostile(Liar):
    """Answers each round with other objects than a message's."""

    def answer(self, message: Message, run: int) -> None:
        handed = message.metadata.message_id
        reply = self.app_reply(message, run)
        body = Reply.parse(reply.content.config_records["envelope"]["body"])
        assert isinstance(body, Reply)
        pack_in(reply.content)
        if body.kind == "roll_call":
            self.note(0, "honest", self.push_graph(reply, run, lambda g: g))
            return
        number = body.round
        if number == 1:
            graph = MALFORMED["a config record"]
            self.note(1, "no message", self.push_graph(reply, run, graph))
        elif number == 2:
            self.note(2, "no piece", self.push_graph(reply, run, self.register, pieces=0))
        elif number == 3:
            again = MemoryLink.chunk_again(150)
            self.note(3, "one piece named 150 times", self.push_graph(reply, run, again))
        others = ObjectTree(object_id=handed)
        self.note(number, "the question's objects", self.push_graph(
            reply, run, lambda g: g.replace_tree(others)
        ))  # fmt: skip
        beside = {"node": self.node, "run_id": run}
        theirs = "ab" * 32
        confirm = ConfirmMessageReceivedRequest(message_object_id=theirs, **beside)
        self.note(
            number, "confirms another's", self.tried(self.client.ConfirmMessageReceived, confirm)
        )
        pull = PullObjectRequest(object_id=theirs, **beside)
        self.note(number, "pulls another's", self.tried(self.client.PullObject, pull))
        piece = PushObjectRequest(object_id=theirs, object_content=b"x", session_id="s", **beside)
        self.note(number, "pushes what nobody wants", self.tried(self.client.PushObject, piece))

    def register(self, graph: Graph) -> Graph:
        """Name the empty record's id, which an honest message may hold, with a false child."""
        tree = ObjectTree(object_id=graph.root)
        tree.children.add(object_id=EMPTY).children.add(object_id="12" * 32)
        return graph.replace_tree(tree)

    def push_graph(self, reply: Message, run: int, spoil, pieces: int = 1000) -> dict:
        graph = spoil(Graph(reply))
        graph.proto.metadata.message_id = graph.root
        graph.proto.content.Clear()
        graph.proto.content.SetInParent()
        request = PushMessagesRequest(
            node=self.node, messages_list=[graph.proto], message_object_trees=[graph.tree]
        )
        try:
            found = self.client.PushMessages(request)
        except httpx.HTTPStatusError as error:
            return {"status": error.response.status_code}
        wanted = [i for i in graph.contents if i in set(found.objects_to_push)]
        got = [self.push_piece(found, run, graph, i) for i in wanted[:pieces]]
        return {"status": 200, "wanted": len(wanted), "pieces": got}

    def push_piece(self, found: PushMessagesResponse, run: int, graph: Graph, piece: str) -> int:
        request = PushObjectRequest(
            node=self.node,
            run_id=run,
            object_id=piece,
            object_content=graph.contents[piece],
            session_id=found.session_id,
        )
        return self.tried(self.client.PushObject, request)["status"]

    def tried(self, call, request) -> dict:
        try:
            call(request)
        except httpx.HTTPStatusError as error:
            return {"status": error.response.status_code}
        return {"status": 200}


if __name__ == "__main__":
    Hostile(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])).serve()
