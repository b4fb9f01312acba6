"""Every use of Flower's private modules by a site, as read in flwr 1.41.0.

The runner speaks the Runtime API of the site's own SuperNode, through a Unix socket, in place of
Flower's executor and ``flwr-clientapp``. A test fails by name when one of these moves.
"""

import base64
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, Error, Message
from flwr.common.constant import TIMESTAMP_HEADER, ErrorCode, SubStatus
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PushTaskOutputRequest
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TaskType,
)
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

from fgvc_core.protocol.keys import PrivateKey
from fgvc_core.sockets import make_socket_file, socket_folder, socket_name

__all__ = [
    "LEFT_BEHIND",
    "UNTAKEN",
    "Task",
    "acquire_tasks",
    "heartbeat_of",
    "is_forgotten",
    "node_headers",
    "release_node",
    "serve_supernode",
]

LEFT_BEHIND = "is not in `RUNNING` status. Ignoring message"
"""What a SuperNode says when a run ended while it fetched a message of it. It keeps the task
that it had made for that message."""
UNTAKEN = (httpx.HTTPError, ObjectPullError, RuntimeError)
"""What taking a task's message from the SuperNode may end in."""
PATIENCE_S = 60.0
"""How long the answer to a message waits for a SuperNode that does not answer."""
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_TIMEOUT_S = 30.0
"""Of each call to the SuperNode, in seconds; Flower's own."""
NO_HOST = "socket.invalid"
"""A name that no resolver knows (RFC 6761, section 6.4)."""


def serve_supernode(socket: Path, options: Sequence[str]) -> None:
    """Be the SuperNode, until told to stop; in a process of its own.

    Args:
        socket: Of its Runtime API, by which messages, models and replies pass; no port is opened.
        options: As ``flower-supernode`` takes them.

    Raises:
        OSError: if the socket cannot be made.
    """
    from flwr.supernode.cli.flower_supernode import flower_supernode

    make_socket_file(socket_folder(socket.parent) / socket.name)
    # It knows of no sockets; the server that it starts does.
    bound = functools.partial(uvicorn.Config, uds=socket_name(socket))
    setattr(uvicorn, "Config", bound)  # noqa: B010
    # If ever it started another server, that one would find no such host, and open no port.
    sys.argv = ["flower-supernode", "--host", NO_HOST, *options]
    flower_supernode()


@dataclass
class Task:
    """One message to answer, as pulled from the SuperNode.

    Attributes:
        message: What to answer.
        context: Its context.
        bundle: Bytes of the run's bundle; nothing of it was unpacked.
    """

    socket: Path
    token: str
    message: Message
    context: Context
    bundle: bytes

    @classmethod
    def pull(cls, socket: Path, token: str) -> "Task":
        """Take a task's message from the SuperNode; messages can be built in this process then.

        It may take as long as the SuperNode itself needs to fetch the message.

        Raises:
            one of UNTAKEN: if the SuperNode is gone, or does not have the message.
        """
        # Not tried again: a SuperNode that has started anew knows nothing of its tasks.
        client = _task_client(socket, token, again=False)
        try:
            message, context, _, fab = pull_task_input(client)
        finally:
            client.close()
        return cls(socket, token, message, context, fab.content)

    def push(self, reply: Message) -> None:
        """Hand the answer to the SuperNode; called in the process that made it."""
        client = _task_client(self.socket, self.token)
        try:
            push_message(client, reply, self.context)
        finally:
            client.close()

    def refuse(self, *, bundle: bool) -> None:
        """Answer with a code and no text: the bundle was refused, or the process died."""
        code = ErrorCode.INVALID_FAB if bundle else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        self.push(Message(Error(code, ""), reply_to=self.message))

    def finish(self, *, well: bool) -> None:
        """Tell the SuperNode that the task is over."""
        client = _task_client(self.socket, self.token)
        status = SubStatus.COMPLETED if well else SubStatus.FAILED
        try:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        finally:
            client.close()

    def heartbeat(self) -> HeartbeatSender:
        """Say regularly that the task is alive, until stopped; starts a thread."""
        return heartbeat_of(self.socket, self.token)


def heartbeat_of(socket: Path, token: str) -> HeartbeatSender:
    """Say regularly that a task is alive, until stopped; starts a thread."""
    sender = HeartbeatSender(make_task_heartbeat_fn_http(_task_client(socket, token)))
    sender.start()
    return sender


def acquire_tasks(socket: Path, secret: bytes) -> Iterator[str]:
    """An endless stream of tasks' tokens; empty while none waits or nobody answers."""
    client = _client(
        socket,
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({_ACQUIRE})),
    )
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while True:
        try:
            yield client.AcquireTask(request).token
        except httpx.HTTPError:
            # The SuperNode is not up (yet, or just now): its supervisor sees to that.
            yield ""


def node_headers(key: PrivateKey) -> dict[str, str]:
    """The headers by which a node proves its key to the gateway."""
    stamp = datetime.now(UTC).isoformat()
    signature = key.sign(stamp.encode("ascii"), ec.ECDSA(SHA256()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode("ascii"),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
    }


def release_node(address: str, ca: str, key: PrivateKey, node_id: int) -> bool:
    """Tell the coordinator that a node of ours has died.

    Without this it counts as online until its heartbeat lapses, for a minute: nobody would
    learn that its message is lost, and it could not come back before.
    """
    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    with FleetHttpClient.from_server_address(address, False, ca, interceptors) as client:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        except (httpx.HTTPError, OSError):
            return False
    return True


def _task_client(socket: Path, token: str, *, again: bool = True) -> RuntimeHttpClient:
    return _client(
        socket,
        RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
        RuntimeTokenHttpInterceptor(token),
        retry_invoker=_patience() if again else None,
    )


def _client(
    socket: Path, *interceptors: Any, retry_invoker: RetryInvoker | None = None
) -> RuntimeHttpClient:
    """A client of the Runtime API behind a socket; Flower's own knows ports alone."""
    client = RuntimeHttpClient.from_server_address(
        server_address="localhost",
        insecure=True,
        root_certificates=None,
        interceptors=interceptors,
        retry_invoker=retry_invoker,
    )
    client.close()
    client._client = httpx.Client(
        transport=httpx.HTTPTransport(uds=socket_name(socket)),
        timeout=_TIMEOUT_S,
        # A proxy is for the way out.
        trust_env=False,
    )
    return client


def _patience() -> RetryInvoker:
    """Waits for a SuperNode that starts anew; what it refuses then is refused for good."""
    return RetryInvoker(
        lambda: exponential(max_delay=5),
        httpx.TransportError,
        max_tries=None,
        max_time=PATIENCE_S,
    )


def is_forgotten(error: Exception) -> bool:
    """Whether the SuperNode knows nothing of a task (any more)."""
    return (
        isinstance(error, httpx.HTTPStatusError)
        and error.response.status_code == httpx.codes.UNAUTHORIZED
    )
