"""A SuperLink in memory behind Flower's own HttpGrid, whose nodes answer and spoil as told."""

import json
from types import SimpleNamespace

import httpx
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid import HttpGrid

from fgvc_core.flower.internals import enter_run
from fgvc_core.protocol.messages import Request
from fieldmark.server.deployment.arrivals import Arrivals
from fieldmark.server.deployment.flower_internals import ReplyLink
from fieldmark.server.deployment.parcel_grid import ParcelGrid


def head(kind, children, body):
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body


class Graph:
    """A reply as its objects: id -> content, its root's id, and the ids that its tree names."""

    def __init__(self, message):
        message.metadata.__dict__["_message_id"] = message.object_id
        self.proto = message_to_proto(message)
        self.contents = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
        self.root = message.metadata.message_id
        self.tree = get_object_tree(message)

    def of(self, kind):
        return next(i for i, c in self.contents.items() if c.startswith(kind.encode() + b" "))

    def replace_root(self, content):
        self.contents[get_object_id(content)] = content
        self.root = get_object_id(content)
        ids = [i for i in self.contents if i != self.root]
        self.tree = ObjectTree(object_id=self.root, children=[ObjectTree(object_id=i) for i in ids])
        return self

    def replace_tree(self, tree):
        """Another tree, and its root's id for the message's."""
        self.tree, self.root = tree, tree.object_id
        return self

    def change(self, kind, content):
        """Another content for an object; its parents name it, so that every id is true."""
        old = self.of(kind)
        new = get_object_id(content)
        del self.contents[old]
        self.contents[new] = content
        parents = [i for i, c in self.contents.items() if old.encode() in c]
        if not parents:
            return self.replace_root(content)
        (parent,) = parents
        whole = self.contents[parent].replace(old.encode(), new.encode())
        return self.change(whole.split(b" ")[0].decode(), whole)


def root_is(kind):
    return lambda graph: graph.replace_root(graph.contents[graph.of(kind)])


def _error_of_no_kind(graph):
    return graph.change("Message", head("Message", [graph.of("RecordDict")], b"\xff\xff\xff"))


MALFORMED = {
    "a config record": root_is("ConfigRecord"),
    "an array record": root_is("ArrayRecord"),
    "a chunk": lambda g: g.replace_root(head("ArrayChunk", [], b"x")),
    "a child that was not sent": lambda g: g.replace_root(head("RecordDict", ["ab" * 32], b"{}")),
    "a message without content": lambda g: g.replace_root(head("Message", [], b"")),
    "no protobuf": _error_of_no_kind,
    "content that is a chunk": lambda g: g.change("RecordDict", head("ArrayChunk", [], b"x")),
    "no JSON": lambda g: g.change("RecordDict", head("RecordDict", [g.of("ConfigRecord")], b"{")),
    "JSON of another kind": lambda g: g.change("RecordDict", head("RecordDict", [], b"[1]")),
    "an unknown kind": lambda g: g.replace_root(head("CustomDataClass", [], b"")),
    "an array of no chunk": lambda g: g.change("ArrayRecord", head("Array", [], b"null")),
}  # fmt: skip
"""Graphs of objects whose ids are true, so that the SuperLink takes them."""


def failure(status):
    request = httpx.Request("POST", "https://superlink")
    return httpx.HTTPStatusError(
        "failed", request=request, response=httpx.Response(status, request=request)
    )


class MemoryLink:
    """Stands for the SuperLink's Runtime API.

    Attributes:
        answers: Node -> (Request -> content of its reply, or None).
        spoil: Node -> (Graph -> Graph), for what it does to its reply.
        withheld: Node -> how many of its reply's last pieces never come.
        pushed: Ids of the objects that the coordinator has pushed.
        poisoned: Ids that somebody has registered with other children.
    """

    def __init__(self, *answers):
        self.answers = dict(enumerate(answers, start=2))
        self.spoil, self.withheld, self.confirmed = {}, {}, []
        self.pushed, self.poisoned = [], set()
        self.asked, self._objects, self._kept = {}, {}, {}
        self._stored, self._open = {}, {}

    def grid(self):
        """Our grid over Flower's own, with this in place of its connection."""
        enter_run(1)
        inner = HttpGrid(token="t")
        inner._client = self
        inner._run = SimpleNamespace(run_id=1)
        return ParcelGrid(inner, Arrivals(ReplyLink(inner, 1)))

    def GetNodes(self, request):
        return SimpleNamespace(nodes=[SimpleNamespace(node_id=node) for node in self.answers])

    def PushMessages(self, request):
        (tree,) = request.message_object_trees
        (proto,) = request.messages_list
        ids = []
        for node in (waiting := [tree]):
            ids.append(node.object_id)
            waiting.extend(node.children)
        if self.poisoned & set(ids):
            raise failure(500)
        self.pushed.extend(ids)
        self.asked[tree.object_id] = proto.metadata.dst_node_id
        self._open[tree.object_id] = proto.metadata.dst_node_id
        return PushAppMessagesResponse(message_ids=[tree.object_id], objects_to_push=ids)

    def PushObject(self, request):
        self._stored[request.object_id] = request.object_content
        return SimpleNamespace(stored=True)

    def PullMessages(self, request):
        found = PullAppMessagesResponse()
        for message_id in request.message_ids:
            node = self._open.get(message_id)
            if node is None:
                continue
            message = inflate_object_from_contents(
                message_id, self._stored, keep_object_contents=True
            )
            message.metadata.__dict__["_message_id"] = message_id
            body = Request.parse(message.content.config_records["envelope"]["body"])
            content = self.answers[node](body)
            if content is None:
                continue
            graph = Graph(Message(content, reply_to=message))
            graph = self.spoil.get(node, lambda g: g)(graph)
            del self._open[message_id]
            ids = list(graph.contents)
            kept = len(ids) - self.withheld.get(node, 0)
            self._objects.update({i: graph.contents[i] for i in ids[: max(kept, 0)]})
            self._kept.update({i: graph.contents[i] for i in ids[max(kept, 0) :]})
            graph.proto.metadata.message_id = graph.root
            found.messages_list.append(graph.proto)
            found.message_object_trees.append(graph.tree)
        return found

    def PullObject(self, request):
        known = request.object_id in {**self._objects, **self._kept}
        content = self._objects.get(request.object_id)
        return SimpleNamespace(
            object_found=known, object_available=content is not None, object_content=content
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)

    def arrive(self):
        """What was withheld comes after all."""
        self._objects.update(self._kept)

    def lapse(self):
        """The sessions of what was withheld are over."""
        self._kept.clear()
        self._objects.clear()

    @staticmethod
    def chunk_again(times):
        """An array that names its chunk so often."""

        def spoil(graph):
            content = graph.contents[graph.of("Array")]
            top, _, body = content.partition(b"\0")
            kind, children, _ = top.decode().split(" ")
            many = json.loads(body)
            many["arraychunk_ids"] = [0] * times
            many = json.dumps(many).encode()
            return graph.change("Array", head(kind, [children], many))

        return spoil
