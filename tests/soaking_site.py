"""A registered site that does something hostile in every round, drawn with a seed, without end.

The real app of a real home behind a node of ours, as in ``lying_site.py`` and ``hostile_site.py``;
which of their lies it tells, and how it mistreats the gateway meanwhile, is drawn. What it did and
what it got is a line of ``lies.jsonl``.
Run as a process of its own: ``python soaking_site.py HOME ADDRESS COORDINATOR_FOLDER SEED``.
"""

import contextlib
import json
import random
import socket
import ssl
import sys
import threading
import time
import traceback
from pathlib import Path

import httpx
import numpy as np
from flwr.app import Message
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest

from fgvc_core.protocol.keys import new_key, sign
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, pack, unpack
from fieldmark.client.deployment.flower_internals import node_headers

# After these: beside the file lie folders named as the packages.
sys.path.append(str(Path(__file__).parent))
from hostile_site import Hostile
from lying_site import PIECE, VICTIM, message_of
from superlink_lab import MALFORMED, MemoryLink

SLOW_HELD_S = 12.0
"""How long a connection is held whose answer is not read; the gateway cuts it off before."""
PLANT = '<script>alert(1)</script>=cmd|"/c calc"!A1\x1b[31m\r\nERROR forged\u202e](javascript:0)'
GIGANTIC = "9" * 5_000_000
"""Numbers and words beyond every bound, where a message takes one."""


def _scaled(tensors, factor):
    """Every float tensor times a factor: finite, and as long as a site can make it."""
    found = {}
    for name, tensor in tensors.items():
        values = unpack(tensor, TensorSpec(tensor.dtype, tensor.shape), name)
        if values.dtype.kind == "f":
            with np.errstate(over="ignore"):
                values = np.asarray(values * factor, values.dtype)
        found[name] = pack(values)
    return found


class Soaking(Hostile):
    """Lies as drawn."""

    def __init__(self, home: Path, address: str, folder: Path, seed: int) -> None:
        super().__init__(home, address, folder)
        self.draw = random.Random(seed)
        self.earlier: tuple | None = None
        self.lies = {
            "honest": lambda m, b, h: self.push(m, h),
            "silent": lambda m, b, h: {},
            "signed by another key": lambda m, b, h: self.push(m, self.sealed(b, h[2], new_key())),
            "claims another site": lambda m, b, h: self.push(m, self.sealed(b, h[2], site=VICTIM)),
            "answers another round": lambda m, b, h: self.push(
                m, self.sealed(b, h[2], round=b.round + 1)
            ),
            "replays": lambda m, b, h: self.push(m, self.earlier or h),
            "tensors that were not signed": self._swapped,
            "more than the recipe allows": lambda m, b, h: self.push(
                m, self.sealed(b, {**h[2], "more": pack(np.zeros(2_500_000, np.float32))})
            ),
            "no numbers": lambda m, b, h: self.push(m, self.sealed(b, _scaled(h[2], np.nan))),
            "a gigantic update": lambda m, b, h: self.push(m, self.sealed(b, _scaled(h[2], 1e30))),
            "an update turned round": lambda m, b, h: self.push(
                m, self.sealed(b, _scaled(h[2], -3.0))
            ),
            "claims a million": lambda m, b, h: self.push(
                m, self.sealed(b, h[2], examples=1_000_000)
            ),
            "claims a hundredfold": lambda m, b, h: self.push(
                m, self.sealed(b, h[2], examples=max(b.examples, 1) * 99)
            ),
            "claims none": lambda m, b, h: self.push(m, self.sealed(b, h[2], examples=0)),
            "forged words": lambda m, b, h: self.push(
                m, self.sealed(b, h[2], reason=PLANT, version=PLANT[:60], code_digest=PLANT[:60])
            ),
            "a body of gigantic numbers": self._gigantic_body,
            "2 GB in one tree": lambda m, b, h: self.push(m, h, pieces=2_000_000_000 // PIECE),
            "2 GB in pieces": lambda m, b, h: self.flood(m),
            "pushes as another node": lambda m, b, h: self.push(m, h, source=self.leaked()[0]),
            "answers another's message": lambda m, b, h: self.push(m, h, answers=self.leaked()[1]),
            "the same again": lambda m, b, h: [self.push(m, h), self.push(m, h)][1],
            "announced and never sent": self._graph(lambda g: g, pieces=0),
            "announced and sent in part": self._graph(lambda g: g, pieces=2),
            "registers a false child": self._graph(self.register, pieces=0),
            "the question's objects": lambda m, b, h: self._graph(
                lambda g: g.replace_tree(ObjectTree(object_id=m.metadata.message_id))
            )(m, b, h),
            "one piece named 150 times": self._graph(MemoryLink.chunk_again(150)),
            **{f"no message: {kind}": self._graph(spoil) for kind, spoil in MALFORMED.items()},
        }
        self.meanwhile = {
            "nothing": lambda: {},
            "drips": self.drip,
            "reads no answer": self._unread,
            "connections held open": self._held,
            "2 GB by its head": lambda: self._raw(2_000_000_000, bytes(1 << 20)),
            # 60,000 bytes of empty children: as many as the length of a push allows.
            "thirty thousand children": lambda: self._worst(
                b"\x1a\xe0\xd4\x03" + b"\x12\x00" * 30_000
            ),
            "a body without end": lambda: self._worst(b"\x1a" + b"\xff" * 60_000),
            "no HTTP": lambda: self._raw(None, b"\x00\xffGET"),
            "a scan": self._scan,
        }

    def serve(self) -> None:
        while True:
            try:
                found = self.client.PullMessages(PullMessagesRequest(node=self.node))
                if found.messages_list:
                    run = found.messages_list[0].metadata.run_id
                    tree = found.message_object_trees[0]
                    self.objects = [tree.object_id, *(c.object_id for c in tree.children)], run
                    kind = self.draw.choice(sorted(self.meanwhile))
                    with contextlib.suppress(OSError, httpx.HTTPError):
                        self.note(0, kind, self.meanwhile[kind]() or {})
                    self.answer(self.pull(tree, run), run)
            except Exception:
                # What it meets is its own doing; it goes on to the next lie.
                traceback.print_exc()
            time.sleep(0.2)

    def answer(self, message: Message, run: int) -> None:
        question = message.metadata.message_id
        self.run = run
        body, honest = self.honest(message, run)
        message.metadata.__dict__["_message_id"] = question
        # The roll call is answered as it should be: else nothing else could be tried.
        lie = "honest" if body.kind == "roll_call" else self.draw.choice(sorted(self.lies))
        try:
            got = self.lies[lie](message, body, honest) or {}
        except httpx.HTTPStatusError as error:
            got = {"status": error.response.status_code}
        except (httpx.TransportError, OSError) as error:
            got = {"failed": type(error).__name__}
        self.note(body.round, lie, got)
        if body.kind == "train":
            self.earlier = honest

    def _graph(self, spoil, pieces=1000):
        """A lie below the level of our messages."""

        def tell(message, body, honest):
            reply = message_of(message, honest)
            return self.push_graph(reply, self.run, spoil, pieces)

        return tell

    def _swapped(self, message, body, honest):
        text, signature, tensors = honest
        name = max(tensors, key=lambda n: len(tensors[n].data), default=None)
        if name is None:
            return self.push(message, honest)
        data = tensors[name].data[:-4] + np.float32(1e6).tobytes()
        swapped = PackedTensor(tensors[name].dtype, tensors[name].shape, data)
        return self.push(message, (text, signature, {**tensors, name: swapped}))

    def _gigantic_body(self, message, body, honest):
        """A signed body with a number of five million digits in a drawn place."""
        values = json.loads(honest[0])
        name = self.draw.choice(sorted(values))
        lines = [f"{json.dumps(n)}:{GIGANTIC if n == name else json.dumps(v)}"
                 for n, v in values.items()]  # fmt: skip
        text = "{" + ",".join(lines) + "}"
        signature = sign(self.site.key, b"fieldmark reply v1\n" + text.encode())
        return self.push(message, (text, signature, honest[2]))

    def _connect(self, buffer: int = 0):
        host, port = self.address.split(":")
        raw = socket.socket()
        raw.settimeout(10)
        if buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        raw.connect((host, int(port)))
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        return context.wrap_socket(raw, server_hostname=host)

    def _head(self, path: str, length: int | None) -> bytes:
        lines = [f"POST {path} HTTP/1.1", "host: gate", "content-type: application/protobuf",
                 *(f"{n}: {v}" for n, v in node_headers(self.site.key).items())]  # fmt: skip
        if length is not None:
            lines.append(f"content-length: {length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _raw(self, length: int | None, body: bytes) -> dict:
        """A body that is not what its head says, until the gateway has had enough."""
        sent = 0
        with self._connect() as connection, contextlib.suppress(OSError):
            if length is not None:
                connection.sendall(self._head("/v1/fleet/push-object", length))
            while sent < (length or 1):
                connection.sendall(body)
                sent += len(body)
            connection.recv(1000)
        return {"sent": sent}

    def _worst(self, body: bytes) -> dict:
        with self._connect() as connection, contextlib.suppress(OSError):
            connection.sendall(self._head("/v1/fleet/push-messages", len(body)) + body)
            return {"answer": connection.recv(100).split(b"\r\n")[0].decode("latin-1")}
        return {}

    def _unread(self) -> dict:
        """Ask for the message's pieces, ten at once, and read none of them."""
        ids, run = self.objects

        def hold() -> None:
            with contextlib.ExitStack() as held, contextlib.suppress(OSError):
                for _ in range(10):
                    connection = held.enter_context(self._connect(2048))
                    for object_id in ids:
                        request = PullObjectRequest(
                            node=self.node, run_id=run, object_id=object_id
                        ).SerializeToString()
                        head = self._head("/v1/fleet/pull-object", len(request))
                        connection.sendall(head + request)
                time.sleep(SLOW_HELD_S)

        threading.Thread(target=hold, daemon=True).start()
        return {}

    def _held(self) -> dict:
        """More connections than a key may have, each with a body that stops in its midst."""

        def hold() -> None:
            with contextlib.ExitStack() as held, contextlib.suppress(OSError):
                for _ in range(40):
                    connection = held.enter_context(self._connect())
                    connection.sendall(self._head("/v1/fleet/push-object", PIECE) + b"\x0a")
                time.sleep(SLOW_HELD_S)

        threading.Thread(target=hold, daemon=True).start()
        return {}

    def _scan(self) -> dict:
        paths = ("/v1/control/list-nodes", "/v1/runtime/acquire-task", "/v1/fleet/../x", "/" * 900)
        answers = []
        for path in paths:
            with self._connect() as connection, contextlib.suppress(OSError):
                connection.sendall(self._head(path, 0))
                answers.append(connection.recv(12).decode("latin-1"))
        return {"answers": answers}


if __name__ == "__main__":
    Soaking(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])).serve()
