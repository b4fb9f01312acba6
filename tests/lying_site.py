"""A hostile site: the real app of a real home behind a node of ours, one thing changed a round.

It has a registered key, and it knows more than it could: another site's node and message ids, as
if the coordinator's database had leaked. Each lie and what it got is a line of ``lies.jsonl``.
Run as a process of its own: ``python lying_site.py HOME ADDRESS COORDINATOR_FOLDER``.
"""

import json
import socket
import sqlite3
import ssl
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fgvc_core.flower.parcels import open_in, pack_in
from fgvc_core.flower.records import from_content, to_array_record, to_content
from fgvc_core.protocol.keys import new_key
from fgvc_core.protocol.messages import Reply, Sealed, seal
from fgvc_core.wire.arrays import PackedTensor, pack
from fieldmark.client.app import app
from fieldmark.client.deployment.flower_internals import node_headers
from fieldmark.client.site import Site

PIECE = 5_000_000
PATIENCE_S = 120.0
VICTIM = "site-1"
LIES = {
    1: ["signed by another key"],
    2: ["claims another site"],
    3: ["answers another round"],
    4: ["pushes as another node", "answers another's message", "drips", "2 GB in one tree",
        "2 GB in pieces", "tensors that were not signed"],
    5: ["honest", "the same again", "another answer"],
    6: ["replays round 5"],
    7: ["more than the recipe allows"],
    8: ["honest"],
}  # fmt: skip
"""Round -> what is sent in it, in order. Only the first that is well formed can be the answer."""

Parts = tuple[str, bytes, dict[str, PackedTensor]]
"""Text, signature and tensors of a reply."""


class Patient:
    """Flower's client, which asks again after a 503, as Flower's node does."""

    def __init__(self, client: FleetHttpClient) -> None:
        self._client = client

    def __getattr__(self, name: str):
        call = getattr(self._client, name)

        def patient(request):
            until = time.monotonic() + PATIENCE_S
            while True:
                try:
                    return call(request)
                except httpx.HTTPStatusError as error:
                    busy = error.response.status_code == httpx.codes.SERVICE_UNAVAILABLE
                    if not busy or time.monotonic() > until:
                        raise
                time.sleep(0.5)

        return patient


class Liar:
    """A node at the gateway of a coordinator."""

    def __init__(self, home: Path, address: str, folder: Path) -> None:
        self.site, self.home, self.address, self.folder = Site.open(home), home, address, folder
        client = FleetHttpClient.from_server_address(
            address,
            False,
            str(folder / "ca.pem"),
            [RuntimeVersionHttpInterceptor(component_name="SuperNode"),
             NodeAuthHttpInterceptor(self.site.key, self.site.key.public_key())],
        )  # fmt: skip
        self.client = Patient(client)
        pem = public_key_to_bytes(self.site.key.public_key())
        found = self.client.ActivateNode(
            ActivateNodeRequest(public_key=pem, heartbeat_interval=600)
        )
        self.node = Node(node_id=found.node_id)
        self.kept: dict[int, Parts] = {}

    def serve(self) -> None:
        while True:
            found = self.client.PullMessages(PullMessagesRequest(node=self.node))
            if found.messages_list:
                run = found.messages_list[0].metadata.run_id
                try:
                    self.answer(self.pull(found.message_object_trees[0], run), run)
                except httpx.HTTPStatusError as error:
                    # As Flower's node does, go on where the run was over before the answer.
                    if error.response.status_code != httpx.codes.FORBIDDEN:
                        raise
            time.sleep(0.2)

    def pull(self, tree: ObjectTree, run: int) -> Message:
        TaskIdentity.task_id, TaskIdentity.run_id = 1, run
        TaskIdentity.node_id = self.node.node_id
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(self.client.PullObject, self.node, run),
            make_confirm_message_received_fn_protobuf(
                self.client.ConfirmMessageReceived, self.node, run
            ),
            return_type=Message,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def app_reply(self, message: Message, run: int) -> Message:
        """What the real app of the real home answers."""
        open_in(message.content)
        config = {"site-home": str(self.home)}
        return app(message, Context(run, self.node.node_id, config, RecordDict(), {}))

    def honest(self, message: Message, run: int) -> tuple[Reply, Parts]:
        """The real app's reply, and the text, signature and tensors that it is made of."""
        sealed, tensors = from_content(self.app_reply(message, run).content)
        body = Reply.parse(sealed.text)
        assert isinstance(body, Reply)
        return body, (sealed.text, sealed.signature, tensors)

    def answer(self, message: Message, run: int) -> None:
        """The real app's answer, then what this round makes of it."""
        body, honest = self.honest(message, run)
        self.kept[body.round] = honest
        # The roll call and the scores at the end are answered as they should be.
        lies = LIES.get(body.round, []) if body.kind == "train" else ["honest"]
        for lie in lies:
            try:
                got = self.tell(lie, message, body, honest)
            except httpx.HTTPStatusError as error:
                got = {"status": error.response.status_code, "text": error.response.text}
            self.note(body.round, lie, got)

    def note(self, number: int, lie: str, got: dict) -> None:
        """Write down what was tried in a round, and what came of it."""
        with (self.home / "lies.jsonl").open("a") as file:
            file.write(json.dumps({"round": number, "lie": lie, **got}) + "\n")

    def tell(self, lie: str, message: Message, body: Reply, honest: Parts) -> dict:
        text, signature, tensors = honest
        if lie in ("honest", "the same again"):
            return self.push(message, honest)
        if lie == "replays round 5":
            return self.push(message, self.kept[5])
        if lie == "signed by another key":
            return self.push(message, self.sealed(body, tensors, new_key()))
        if lie == "claims another site":
            return self.push(message, self.sealed(body, tensors, site=VICTIM))
        if lie == "answers another round":
            return self.push(message, self.sealed(body, tensors, round=body.round + 1))
        if lie == "another answer":
            return self.push(message, self.sealed(body, tensors, examples=10_000))
        if lie == "tensors that were not signed":
            name = max(tensors, key=lambda n: len(tensors[n].data))
            data = tensors[name].data[:-4] + np.float32(1e6).tobytes()
            swapped = PackedTensor(tensors[name].dtype, tensors[name].shape, data)
            return self.push(message, (text, signature, {**tensors, name: swapped}))
        if lie == "more than the recipe allows":
            heavy = {**tensors, "more": pack(np.zeros(2_500_000, np.float32))}
            return self.push(message, self.sealed(body, heavy))
        if lie == "pushes as another node":
            return self.push(message, honest, source=self.leaked()[0])
        if lie == "answers another's message":
            return self.push(message, honest, answers=self.leaked()[1])
        if lie == "2 GB in one tree":
            return self.push(message, honest, pieces=2_000_000_000 // PIECE)
        if lie == "2 GB in pieces":
            return self.flood(message)
        assert lie == "drips"
        return self.drip()

    def sealed(self, body: Reply, tensors: dict, key: object = None, **changes: object) -> Parts:
        digests = {name: tensor.digest() for name, tensor in tensors.items()}
        changed = body.model_copy(update={"tensors": digests, **changes})
        sealed = seal(key or self.site.key, changed)
        return sealed.text, sealed.signature, tensors

    def push(
        self,
        message: Message,
        parts: Parts,
        source: int | None = None,
        answers: str = "",
        pieces: int = 0,
    ) -> dict:
        """Send a reply as Flower's node does, but for what is given; says what was taken."""
        reply = message_of(message, parts)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        proto = message_to_proto(remove_content_from_message(reply))
        if source is not None:
            proto.metadata.src_node_id = source
        if answers:
            proto.metadata.reply_to_message_id = answers
        tree = get_object_tree(reply)
        tree.children.extend(ObjectTree(object_id=f"{n:064x}") for n in range(pieces))
        found = self.client.PushMessages(
            PushMessagesRequest(
                node=self.node,
                messages_list=[proto],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
        )
        wanted = set(found.objects_to_push)
        push_objects(
            get_all_nested_objects(reply),
            make_push_object_fn_protobuf(
                self.client.PushObject, self.node, proto.metadata.run_id, found.session_id
            ),
            object_ids_to_push=wanted,
        )
        return {"status": 200, "taken": len(wanted)}

    def flood(self, message: Message) -> dict:
        """Pieces that nobody has asked for, 2 GB of them or until it is no use."""
        statuses = []
        for number in range(2_000_000_000 // PIECE):
            piece = PushObjectRequest(
                node=self.node,
                run_id=message.metadata.run_id,
                session_id="",
                object_id=f"{number:064x}",
                object_content=bytes(PIECE),
            )
            try:
                answer = self.client.PushObject(piece)
                statuses.append(1 if answer.stored else 200)
            except httpx.HTTPStatusError as error:
                statuses.append(error.response.status_code)
            except httpx.TransportError:
                # Refused by the head while the body was still on its way.
                statuses.append(0)
            if len(statuses) > 20:
                break
        return {"status": statuses[-1], "statuses": statuses}

    def drip(self) -> dict:
        """A request's body at ten bytes a second, on a connection of its own."""
        host, port = self.address.split(":")
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        raw = socket.create_connection((host, int(port)), timeout=30)
        started, answer = time.monotonic(), b""
        lines = ["POST /v1/fleet/push-object HTTP/1.1", "host: gate", f"content-length: {PIECE}",
                 "content-type: application/protobuf",
                 *(f"{n}: {v}" for n, v in node_headers(self.site.key).items())]  # fmt: skip
        with context.wrap_socket(raw, server_hostname=host) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            connection.settimeout(0.1)
            # A piece as it should be, but for its speed.
            body = iter(PushObjectRequest(node=self.node, object_id="0" * 64).SerializeToString())
            while time.monotonic() - started < 60:
                try:
                    connection.sendall(bytes([next(body)]))
                    answer = connection.recv(1000)
                    break
                except TimeoutError:
                    continue
                except OSError:
                    break
        status = int(answer.split(b" ")[1]) if answer else 0
        return {"status": status, "seconds": round(time.monotonic() - started, 1)}

    def leaked(self) -> tuple[int, str]:
        """The victim's node, and the message that it is answering just now."""
        database = f"file:{self.folder / 'state' / 'superlink.db'}?mode=ro"
        with sqlite3.connect(database, uri=True) as link:
            ((node, message),) = link.execute(
                "select dst_node_id, message_id from message_ins where dst_node_id != ? "
                "order by created_at desc limit 1",
                (_signed(self.node.node_id),),
            ).fetchall()
        return node % 2**64, message


def message_of(question: Message, parts: Parts) -> Message:
    """A reply in a parcel, as an honest site sends it."""
    text, signature, tensors = parts
    content = to_content(Sealed(text, signature), to_array_record(tensors))
    pack_in(content)
    return Message(content, reply_to=question)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


if __name__ == "__main__":
    Liar(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])).serve()
