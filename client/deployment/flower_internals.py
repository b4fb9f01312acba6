"""A site's uses of Flower's private modules, written for flwr 1.42.0.

The runner speaks the Runtime API of the site's own SuperNode through a Unix socket, in place of
Flower's executor and ``flwr-clientapp``. The SuperNode is Flower's, with the limits of
:mod:`fieldmark.client.deployment.node`. A test fails by name when one of these modules moves.
"""

import base64
import functools
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, Error, Message
from flwr.common.constant import TIMESTAMP_HEADER, ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, message_from_proto
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TaskType,
)
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import push_message

from fgvc_core.flower.internals import ACQUIRE, NO_HOST, enter_task, over_socket, put_together
from fgvc_core.protocol.bundle import MAX_BUNDLE_BYTES, make_bundle
from fgvc_core.protocol.keys import PrivateKey
from fgvc_core.quiet_server import KEEP_ALIVE_S, be_quiet
from fgvc_core.sockets import make_socket_file, socket_folder, socket_name
from fgvc_core.wake import WakeFile
from fieldmark.client.deployment.node import BeyondBound, BoundedClient, Weighed, cut_bundle

__all__ = [
    "UNTAKEN",
    "Task",
    "acquire_tasks",
    "bound_node",
    "heartbeat_of",
    "is_forgotten",
    "node_headers",
    "pace_node",
    "release_node",
    "serve_supernode",
]

UNTAKEN = (httpx.HTTPError, ObjectPullError, RuntimeError)
"""Exceptions of fetching a task's message from the SuperNode."""
PATIENCE_S = 60.0
"""Maximum time to retry handing an answer to an unreachable SuperNode, in seconds."""
LOCAL_S, LOOK_S = 0.5, 0.05
"""Flower's interval between two looks for the runner's answer, which are in this process's memory,
and ours, in seconds."""
_CONFIGURED, _PULL = "get_fused_config_from_fab", "_pull_and_store_message"


def serve_supernode(socket: Path, options: Sequence[str]) -> None:
    """Run the SuperNode in this process until it is stopped.

    Args:
        socket: Path of its Runtime API's Unix socket, which carries messages, models and replies;
            no port is opened.
        options: Options of ``flower-supernode``.

    Raises:
        OSError: if the socket cannot be created.
    """
    from flwr.supernode.cli.flower_supernode import flower_supernode

    make_socket_file(socket_folder(socket.parent) / socket.name)
    # flower-supernode has no option for a Unix socket, but the uvicorn server inside has.
    bound = functools.partial(
        uvicorn.Config, uds=socket_name(socket), timeout_keep_alive=KEEP_ALIVE_S
    )
    setattr(uvicorn, "Config", bound)  # noqa: B010
    be_quiet()
    # An invalid host: a server that ignored the socket would fail instead of opening a port.
    sys.argv = ["flower-supernode", "--host", NO_HOST, *options]
    flower_supernode()


@dataclass
class Task:
    """One message to answer, pulled from the SuperNode.

    Attributes:
        message: The message.
        context: Its context.
        bundle: Bytes of the run's bundle, never unpacked.
        fault: Why the message could not be assembled, in which case it has no content; else empty.
    """

    socket: Path
    token: str
    message: Message
    context: Context
    bundle: bytes
    fault: str = ""

    @classmethod
    def pull(cls, socket: Path, token: str) -> "Task":
        """Pull a task's message from the SuperNode.

        Takes as long as the SuperNode itself needs to fetch the message.

        Raises:
            one of UNTAKEN: if the SuperNode is gone, or does not have the message.
        """
        # No retries: a restarted SuperNode has forgotten its tasks.
        client = _task_client(socket, token, again=False)
        try:
            message, context, bundle, fault = _pull_input(client)
        finally:
            client.close()
        return cls(socket, token, message, context, bundle, fault)

    def push(self, reply: Message) -> None:
        """Hand the answer to the SuperNode; called in the process that created it."""
        client = _task_client(self.socket, self.token)
        try:
            push_message(client, reply, self.context)
        finally:
            client.close()

    def refuse(self, *, bundle: bool) -> None:
        """Answer with an error code and no text: a refused bundle, or a process that died."""
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
        """Start a thread that reports the task as alive until stopped."""
        return heartbeat_of(self.socket, self.token)


def _pull_input(client: RuntimeHttpClient) -> tuple[Message, Context, bytes, str]:
    """Flower's ``pull_task_input``, but the unpacked size of the pieces is checked first."""
    found = client.PullTaskInput(PullTaskInputRequest())
    enter_task(found.task_id, found.run.run_id, found.context.node_id)
    context = context_from_proto(found.context)
    listed = client.PullMessages(PullAppMessagesRequest())
    if not listed.messages_list:
        raise RuntimeError("The SuperNode has no message for this task.")
    tree: ObjectTree = listed.message_object_trees[0]
    node = Node(node_id=context.node_id)
    contents = pull_objects(
        list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree))),
        make_pull_object_fn_protobuf(client.PullObject, node, context.run_id),
    )
    confirm = make_confirm_message_received_fn_protobuf(
        client.ConfirmMessageReceived, node, context.run_id
    )
    confirm(tree.object_id)
    fault = ""
    try:
        message = put_together(tree.object_id, contents)
    except ValueError as error:
        # The message without content is enough to address an answer.
        message, fault = message_from_proto(listed.messages_list[0]), str(error)
    return message, context, fab_from_proto(found.fab).content, fault


def heartbeat_of(socket: Path, token: str) -> HeartbeatSender:
    """Start a thread that reports a task as alive until stopped."""
    sender = HeartbeatSender(make_task_heartbeat_fn_http(_task_client(socket, token)))
    sender.start()
    return sender


def acquire_tasks(socket: Path, secret: bytes) -> Iterator[str]:
    """Endless stream of task tokens; empty strings while no task waits or the SuperNode is down."""
    client = _client(
        socket,
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({ACQUIRE})),
    )
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while True:
        try:
            yield client.AcquireTask(request).token
        except httpx.HTTPError:
            # The SuperNode is down; its supervisor restarts it.
            yield ""


def node_headers(key: PrivateKey) -> dict[str, str]:
    """Headers with which a node proves its key to the gateway."""
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

    Otherwise it counts as online until its heartbeat expires after a minute: its message is not
    known to be lost, and it cannot reconnect before.
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
    """Runtime API client over a Unix socket; Flower's own client supports only ports."""
    client = RuntimeHttpClient.from_server_address(
        server_address="localhost",
        insecure=True,
        root_certificates=None,
        interceptors=interceptors,
        retry_invoker=retry_invoker,
    )
    # The socket speaks plain HTTP. Reading the public authorities for it would take 20 ms a client,
    # and a message needs five.
    return over_socket(client, socket, trust=False)


def _patience() -> RetryInvoker:
    """Retries while the SuperNode restarts; HTTP error responses are final."""
    return RetryInvoker(
        lambda: exponential(max_delay=5),
        httpx.TransportError,
        max_tries=None,
        max_time=PATIENCE_S,
    )


def is_forgotten(error: Exception) -> bool:
    """Whether the SuperNode does not know a task (any more)."""
    return (
        isinstance(error, httpx.HTTPStatusError)
        and error.response.status_code == httpx.codes.UNAUTHORIZED
    )


def bound_node(message_bytes: int) -> None:
    """Install the limits of :mod:`.node` in the SuperNode of this process."""
    connect = fleet_http_connection.http_request_response
    configured: Callable[[bytes, Any], Any] = start_client_internal.__dict__[_CONFIGURED]

    @contextmanager
    def bounded(*args: Any, **options: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*args, **options) as (node_id, receive, send, get_run, get_fab, pull, *rest):
            weighed, bundles = Weighed(message_bytes, pull), _Bundles(get_run, get_fab)
            begun = _beginning(weighed, receive)
            yield node_id, begun, send, bundles.get_run, bundles.get_fab, weighed, *rest

    # Monkey-patched, because Flower has no settings for any of these.
    _replace(fleet_http_connection, "FleetHttpClient", _BoundedFleetClient)
    _replace(start_client_internal, "http_request_response", bounded)
    _replace(start_client_internal, _CONFIGURED, lambda _, run: configured(make_bundle(), run))


def pace_node(wake: WakeFile, clock: ModuleType = time) -> None:
    """Let the SuperNode of this process notify the runner, and wait no longer than it has to.

    Flower's node sleeps for 3 s after each answer that no message waits, and looks for the runner's
    answer every 0.5 s. The gateway holds a call until a message is there (:mod:`fieldmark.server.
    deployment.held`): the sleep counts from the beginning of the call, and only a coordinator that
    holds nothing is still asked every 3 s.

    Args:
        wake: Notified of each message that the node has received.
        clock: What measures time and sleeps.
    """
    pull: Callable[..., Any] = start_client_internal.__dict__[_PULL]
    pace = _Pace(clock)

    def pulled(*args: Any, **options: Any) -> Any:
        pace.begin()
        run_id = pull(*args, **options)
        if run_id is not None:
            wake.notify()
        return run_id

    _replace(start_client_internal, _PULL, pulled)
    _replace(start_client_internal, "time", pace)


class _Pace:
    """Stands in for the module ``time`` in Flower's loop of a node.

    Its sleeps after a call for messages are shortened by the call's own duration; those between
    two looks for an answer of this machine's runner are ``LOOK_S``.
    """

    def __init__(self, clock: ModuleType) -> None:
        self._clock = clock
        self._began = clock.monotonic()

    def begin(self) -> None:
        """A call for messages begins."""
        self._began = self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for at most the given time, in seconds."""
        if seconds <= LOCAL_S:
            self._clock.sleep(min(seconds, LOOK_S))
        else:
            self._clock.sleep(max(seconds - (self._clock.monotonic() - self._began), 0.0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


def _replace(module: ModuleType, name: str, value: object) -> None:
    if name not in vars(module):
        raise AttributeError(f"{module.__name__}.{name} has moved")
    setattr(module, name, value)


class _BoundedFleetClient(FleetHttpClient):
    """Flower's client of the SuperLink, with a maximum response size by request kind."""

    def __init__(self, *args: Any, verify: Any = True, timeout: float = 30.0, **rest: Any) -> None:
        super().__init__(*args, verify=verify, timeout=timeout, **rest)
        self._client.close()
        self._client = BoundedClient(verify, timeout)


def _beginning(weighed: Weighed, receive: Callable[[], Any]) -> Callable[[], Any]:
    def begun() -> Any:
        weighed.next_message()
        return receive()

    return begun


class _Bundles:
    """Runs and their bundles; a foreign bundle is truncated.

    A node looks bundles up by digest, so a run with a truncated bundle gets the truncated one's
    digest.
    """

    def __init__(self, get_run: Callable[[int], Run], get_fab: Callable[[str, int], Fab]) -> None:
        self._get_run, self._get_fab = get_run, get_fab
        self._next = Fab("", b"", {})

    def get_run(self, run_id: int) -> Run:
        run = self._get_run(run_id)
        try:
            content = cut_bundle(self._get_fab(run.fab_hash, run_id).content)
        except BeyondBound:
            # Far longer than ours: a placeholder, which the runner refuses too.
            content = bytes(MAX_BUNDLE_BYTES + 1)
        run.fab_hash = hashlib.sha256(content).hexdigest()
        self._next = Fab(run.fab_hash, content, {})
        return run

    def get_fab(self, digest: str, run_id: int) -> Fab:
        """Bundle of the run that was requested last; a node requests them one after the other."""
        if digest != self._next.hash_str:
            raise ValueError(f"No bundle '{digest}' was fetched for run {run_id}.")
        return self._next
