"""The gateway's own process on a real socket, before an upstream that says what reached it."""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from sockets_lab import SocketHTTPServer, superlink_socket

from fgvc_core.files import replace_private_json
from fgvc_core.protocol.keys import new_key, public_text
from fieldmark.client.deployment.flower_internals import node_headers
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.gateway import OBJECT_BYTES, PUSH_BYTES
from fieldmark.server.deployment.processes import _make_loopback, free_loopback_port
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings

UP_WITHIN_S = 60.0
QUESTION, OBJECT_ID = "ab" * 32, "cd" * 32
"""A message that every site was handed, and the only piece that its answer is made of."""
SITES = ("lyon", "turku", "bergen", "tromso")
"""Sites that have announced an answer; the first is registered from the beginning."""


def piece(nbytes):
    """The body of a push-object call, of so many bytes in all."""
    beside = PushObjectRequest(node=Node(node_id=7), object_id=OBJECT_ID, session_id="s")
    room = nbytes - beside.ByteSize()
    for length in range(room, 0, -1):
        beside.object_content = bytes(length)
        if beside.ByteSize() <= nbytes:
            break
    beside.session_id = "s" * (1 + nbytes - beside.ByteSize())
    assert beside.ByteSize() == nbytes
    return beside.SerializeToString()


def dearest_push(most_objects):
    """A push-messages body that takes the longest to read of those that are within bounds.

    As long as it may be, with as many objects as it may name, and the rest in fields of two bytes
    each, which the parser has to keep one by one.
    """
    ids = [f"{number:064x}" for number in range(1, most_objects + 1)]
    tree = ObjectTree(object_id=ids[0], children=[ObjectTree(object_id=i) for i in ids[1:]])
    metadata = Metadata(message_id=ids[0], src_node_id=7, reply_to_message_id="ef" * 32)
    message = Message(metadata=metadata).SerializeToString()
    named = PushMessagesRequest(
        node=Node(node_id=7), message_object_trees=[tree]
    ).SerializeToString()
    room = PUSH_BYTES + OBJECT_BYTES * most_objects - len(named) - len(message) - 4
    whole = message + b"\x78\x01" * (room // 2)
    body = PushMessagesRequest(messages_list=[Message.FromString(whole)]).SerializeToString()
    return body + named


SCANNED = (
    *(f"/v1/control/{call}" for call in ("start-run", "list-runs", "list-nodes", "stop-run",
                                         "register-node", "unregister-node", "stream-logs",
                                         "get-login-details")),
    *(f"/v1/runtime/{call}" for call in ("acquire-task", "pull-task-input", "push-task-output",
                                         "get-nodes", "pull-messages", "push-messages",
                                         "send-task-heartbeat")),
    "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/", "/v1/fleet",
    "/v1/fleet/pull-messages/", "/v1/fleet/Pull-Messages", "/v1/fleet/x/../../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes", "/v1/fleet/..%2fcontrol%2flist-nodes",
    "/v1/fleet%2fpull-messages%2f..", "//v1/fleet/pull-messages", "/v1/fleet/pull-messages;x",
    "/flwr.proto.Control/ListRuns", "/flwr.proto.Runtime/AcquireTask", "/health", "/metrics",
    "/status.json", "/docs", "/openapi.json", "/.git/config", "/ca.key", "/sites.json", "/",
)  # fmt: skip
"""What a scan would try: the calls that Flower leaves open, ways round the path, common places."""


class Upstream:
    """Stands for the SuperLink: reads every body to its end, keeps its length, and answers."""

    def __init__(self, folder):
        self.reached, self.answer = [], b"inner"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                # A gateway that breaks a request off is one of the things that are tried.
                with contextlib.suppress(OSError):
                    super().handle_one_request()

            def do_POST(self):
                left = length = int(self.headers["content-length"])
                while left and (piece := self.rfile.read(min(left, 1 << 16))):
                    left -= len(piece)
                outer.reached.append((self.path, length - left))
                self.send_response(200)
                self.send_header("content-length", str(len(outer.answer)))
                self.end_headers()
                self.wfile.write(outer.answer)

            def log_message(self, *args):
                pass

        self._server = SocketHTTPServer(superlink_socket(folder), Handler)
        tls = folder / "state" / "loopback"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.pem", tls / "server.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class Running:
    """A gateway that is up.

    Attributes:
        folder: The coordinator's.
        port: The open one.
        site: The key of the only site, 'lyon'.
    """

    def __init__(self, folder, before=lambda folder: None, hosts=("127.0.0.1",), **bounds):
        self.folder, self.site = folder, new_key()
        settings = GatewaySettings(listen="127.0.0.1", **bounds)
        init_server(folder, DeploymentSettings(hosts=hosts, gateway=settings))
        self.allowed = AllowList(folder)
        self.allowed.add("lyon", public_text(self.site.public_key()))
        before(folder)
        _make_loopback(folder)
        for name in SITES:
            mail = folder / "state" / "mail"
            mail.mkdir(parents=True, exist_ok=True)
            replace_private_json(
                mail / f"{name}.json", {"handed": [[QUESTION, [QUESTION], [OBJECT_ID], 1]]}
            )
        self.port = free_loopback_port()
        self.upstream = Upstream(folder)
        replace_private_json(folder / "state" / "ports.json", {"gateway": self.port})
        command = [sys.executable, "-P", "-m", "fieldmark.server.deployment.serving", str(folder)]
        self.process = subprocess.Popen(command)

    def __enter__(self):
        deadline = time.monotonic() + UP_WITHIN_S
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                        return self
                time.sleep(0.05)
        self.__exit__()
        raise AssertionError("the gateway did not come up")

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(20)
        self.upstream.close()

    def context(self, **more):
        return ssl.create_default_context(cafile=self.folder / "ca.pem", **more)

    def connect(self):
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return self.context().wrap_socket(raw, server_hostname="127.0.0.1")

    def say(self, data):
        """All that comes back for these bytes on a connection of their own."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            return received(connection)

    def head(self, path="/v1/fleet/push-object", length=1000, key=None, **more):
        """The head of a site's call."""
        values = {"host": "gate", "content-length": length,
                  "content-type": "application/protobuf", **node_headers(key or self.site),
                  **more}  # fmt: skip
        lines = [
            f"POST {path} HTTP/1.1",
            *(f"{n}: {v}" for n, v in values.items() if v is not None),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def refusals(self, **like):
        """What the gateway has written down, of those that have these values."""
        path = self.folder / "logs" / "gateway.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = map(json.loads, lines)
        return [r for r in found if all(r[name] == value for name, value in like.items())]

    def recorded(self, **like):
        """The same, once there is one."""
        deadline = time.monotonic() + 10
        while not (found := self.refusals(**like)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def memory_mb(self, what="VmHWM"):
        """The most memory that the process has ever held, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(x for x in text.splitlines() if x.startswith(what))
        return int(line.split()[1]) / 1000


def received(connection, most_s=30):
    """All that comes until the other side is done."""
    whole = b""
    connection.settimeout(most_s)
    with contextlib.suppress(OSError):
        while piece := connection.recv(1 << 16):
            whole += piece
    return whole


def status_of(answer):
    """The status of a raw answer; 0 where there was none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0
