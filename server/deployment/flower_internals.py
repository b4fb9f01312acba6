"""All uses of Flower's private modules by the coordinator, for flwr 1.42.0.

The SuperLink listens on a Unix socket, because Flower's port would be open to every account of the
machine. The conductor uses the Control API through it; our executor uses the Runtime API, in place
of Flower's, which would unpack each run's bundle and put it on ``sys.path``. A test fails by name
when one of these private modules changes.

What only some processes need is imported where it is used: the grid and its interceptors bring a
database and a web framework along, which gateway, pages and supervisor do not use.
"""

import functools
import hashlib
import re
import ssl
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import TIMESTAMP_HEADER, SubStatus
from flwr.common.serde import (
    context_from_proto,
    fab_from_proto,
    fab_to_proto,
    run_from_proto,
    user_config_to_proto,
)
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fleet_pb2 import (
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
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
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime import RuntimeHttpClient
from google.protobuf.message import DecodeError

from fgvc_core.flower.internals import ACQUIRE, NO_HOST, enter_task, over_socket, put_together
from fgvc_core.protocol.bundle import RUN_KEY
from fgvc_core.protocol.keys import PublicKey, fingerprint, read_public
from fgvc_core.quiet_server import KEEP_ALIVE_S, be_quiet
from fgvc_core.sockets import make_socket_file, path_of, socket_folder, socket_name
from fgvc_core.wake import WakeFile
from fieldmark.server.deployment.bodies import check_push

if TYPE_CHECKING:
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.superlink.grid import HttpGrid

__all__ = [
    "LINK_FAILURES",
    "PROTOBUF_MEDIA_TYPE",
    "PUBLIC_KEY_HEADER",
    "REFUSED_OBJECTS",
    "SIGNATURE_HEADER",
    "TIMESTAMP_HEADER",
    "Announced",
    "ControlApi",
    "Node",
    "ReplyLink",
    "Work",
    "acquire_work",
    "error_reply",
    "give_up",
    "known_revisions",
    "open_work",
    "read_confirmed",
    "read_handed",
    "read_pulled",
    "read_push",
    "read_reply",
    "read_wanted",
    "refused_objects",
    "serve_superlink",
]

PUBLIC_KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER
SIGNATURE_HEADER = FLEET_HTTP_SIGNATURE_HEADER
LINK_FAILURES = (httpx.HTTPError, ObjectPushError)
"""Exceptions in a run's process when the SuperLink dies during a call. A piece that was stored,
but whose receipt was lost with the SuperLink, is refused when it is sent again."""
REFUSED_OBJECTS = httpx.HTTPStatusError
"""Raised by a push if the SuperLink knows its objects as others'; see :func:`refused_objects`."""
_NAMED = "localhost"
"""Host name that the SuperLink's certificate is checked against over a Unix socket, which has no
host name."""
FEDERATION = ""
LOG_PAGES = 16_384
"""Length of SQLite's write-ahead log, in pages of 4096 bytes, at which it is copied into the
database: 64 MB."""
SWEEP_S = 1.0
"""Minimum interval between two looks for expired tasks, in seconds."""
_VERSIONS = Path("supercore") / "state" / "alembic" / "versions"
_REVISION = re.compile(r'^revision: str = "(\w+)"', re.M)
_OBJECT_ID = re.compile(r"[0-9a-f]{64}")


C = TypeVar("C", bound=ProtobufClient)


def serve_superlink(socket: Path, health: Path, options: Sequence[str]) -> None:
    """Run the SuperLink in this process until it is told to stop.

    Args:
        socket: Path of the Unix socket for its three APIs; no port is opened.
        health: Path of the socket of gRPC's health protocol.
        options: Options of ``flower-superlink``.

    Raises:
        OSError: if a socket cannot be created.
    """
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    import uvicorn
    from flwr.supercore.grpc_health import SimpleHealthServicer
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

    for path in (socket, health):
        make_socket_file(socket_folder(path.parent) / path.name)
    # Flower's own health service supports host:port only.
    serving = grpc.server(ThreadPoolExecutor(1))
    add_HealthServicer_to_server(SimpleHealthServicer(), serving)
    serving.add_insecure_port(f"unix:{socket_name(health)}")
    serving.start()
    # Flower has no option for a Unix socket, but the uvicorn server that it starts has.
    bound = functools.partial(uvicorn.run, uds=socket_name(socket), timeout_keep_alive=KEEP_ALIVE_S)
    setattr(uvicorn, "run", bound)  # noqa: B010
    be_quiet()
    write_less()
    # If Flower ever starts another server, this host name does not resolve and no port opens.
    sys.argv = ["flower-superlink", "--host", NO_HOST, *options]
    flower_superlink()


def write_less() -> None:
    """Let the SuperLink's database of this process write to the disk less often.

    SQLite copies its log into the database after every 4 MB, so each piece of a message was written
    twice and waited for at once; and Flower looks for expired tasks at each call, which waits for
    whatever is being written. A task that has not been heard of for a minute now expires up to
    ``SWEEP_S`` later.

    Raises:
        AttributeError, KeyError: if Flower has renamed what is replaced.
    """
    from flwr.supercore import sql_mixin
    from flwr.supercore.corestate.sql_corestate import SqlCoreState

    sweep, due = SqlCoreState._cleanup_expired_task_tokens, 0.0

    def sweep_seldom(state: Any) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + SWEEP_S
            sweep(state)

    pragmas: Any = vars(sql_mixin)["SQLITE_PRAGMAS"]
    pragmas = (*pragmas, ("wal_autocheckpoint", str(LOG_PAGES)))
    setattr(sql_mixin, "SQLITE_PRAGMAS", pragmas)  # noqa: B010
    setattr(SqlCoreState, "_cleanup_expired_task_tokens", sweep_seldom)  # noqa: B010


def through(client: C, address: str, ca: bytes) -> C:
    """Make one of Flower's clients connect through a Unix socket if the address names one.

    Args:
        client: Not used yet.
        address: ``unix:PATH``; any other address is left to the client.
        ca: PEM certificate of the other side's authority.
    """
    path = path_of(address)
    if path is None:
        return client
    return over_socket(client, path, ssl.create_default_context(cadata=ca.decode("ascii")))


def _host_of(address: str) -> str:
    return _NAMED if path_of(address) is not None else address


@functools.cache
def _local_grid() -> "type[HttpGrid]":
    """Class of Flower's grid, through a Unix socket."""
    from flwr.superlink.grid import HttpGrid

    class LocalGrid(HttpGrid):
        def _connect(self) -> None:
            address, self._addr = self._addr, _host_of(self._addr)
            super()._connect()
            self._addr = address
            assert self._client is not None
            assert self._cert is not None
            through(self._client, address, self._cert)

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            pushed = super().push_messages(messages)
            # The gateway holds sites' calls for these messages.
            if (socket := path_of(self._addr)) is not None:
                WakeFile(socket.with_name("messages")).notify()
            return pushed

    return LocalGrid


@dataclass(frozen=True)
class Node:
    """A SuperNode that is registered at the SuperLink."""

    node_id: int
    fingerprint: str
    status: str


class ControlApi:
    """The SuperLink's Control API, at ``unix:PATH`` or ``host:port``."""

    def __init__(self, address: str, ca: bytes) -> None:
        from flwr.supercore.control.control_http_client import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        client = ControlHttpClient.from_server_address(
            _host_of(address),
            insecure=False,
            root_certificates=ca,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        self._client = through(client, address, ca)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def nodes(self) -> list[Node]:
        """All registered nodes."""
        response = self._client.ListNodes(ListNodesRequest())
        return [
            Node(
                node_id=info.node_id,
                fingerprint=fingerprint(_from_pem(info.public_key)),
                status=info.status,
            )
            for info in response.nodes_info
            if info.status != "unregistered"
        ]

    def register(self, public_key: str, name: str) -> int:
        """Register a site's key; returns its node id.

        Raises:
            httpx.HTTPStatusError: if the key is or was registered already.
        """
        pem = read_public(public_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        response = self._client.RegisterNode(RegisterNodeRequest(public_key=pem, name=name))
        return int(response.node_id)

    def unregister(self, node_id: int) -> None:
        """Remove a node permanently; its key can never be registered again."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, bundle: bytes, run_dir: str) -> int:
        """Start a Flower run; returns its id.

        Raises:
            RuntimeError: if the SuperLink refuses.
        """
        response = self._client.StartRun(
            StartRunRequest(
                fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
                override_config=user_config_to_proto({RUN_KEY: run_dir}),
                federation=FEDERATION,
            )
        )
        if not response.HasField("run_id"):
            raise RuntimeError("the SuperLink started no run")
        return int(response.run_id)

    def run_status(self, run_id: int) -> tuple[str, str, str]:
        """(status, sub-status, details) of a Flower run; empty if it is unknown."""
        try:
            response = self._client.ListRuns(ListRunsRequest(run_id=run_id))
        except httpx.HTTPStatusError:
            return "", "", ""
        for run in response.run_dict.values():
            return run.status.status, run.status.sub_status, run.status.details
        return "", "", ""

    def stop_run(self, run_id: int) -> None:
        """End a Flower run."""
        self._client.StopRun(StopRunRequest(run_id=run_id))


def known_revisions() -> frozenset[str]:
    """Revisions of the SuperLink's database that the installed Flower knows; it is not started."""
    found = find_spec("flwr")
    places = (found.submodule_search_locations or ()) if found else ()
    scripts = (script for place in places for script in (Path(place) / _VERSIONS).glob("*.py"))
    texts = (script.read_text(encoding="utf-8") for script in scripts)
    return frozenset(name for text in texts for name in _REVISION.findall(text))


@dataclass(frozen=True)
class Pushed:
    """A node's announcement of a message, before it sends the message's pieces.

    Attributes:
        node: The node that pushes; the SuperLink checks that the key is this node's.
        claimed: The node that the message claims as its sender.
        answers: Id of the message that it answers.
        objects: Ids of the message's objects.
    """

    node: int
    claimed: int
    answers: str
    objects: frozenset[str]


def read_push(body: bytes, most_objects: int) -> Pushed:
    """Parse the body of a push-messages call.

    Args:
        body: Untrusted; a few kilobytes.
        most_objects: Most objects of a message.

    Raises:
        ValueError: if it is malformed, or does not announce exactly one message whose tree has that
            message at its root, is within bounds and names each object once.
    """
    check_push(body, most_objects)
    request = _parsed(PushMessagesRequest(), body)
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise ValueError("not one message")
    (message,), (tree,) = request.messages_list, request.message_object_trees
    if message.HasField("content") and message.content.ByteSize():
        raise ValueError("a message with its content beside it")
    ids, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        ids.append(node.object_id)
        waiting.extend(node.children)
    if tree.object_id != message.metadata.message_id or not all(map(_OBJECT_ID.fullmatch, ids)):
        raise ValueError("a tree that is not the message's")
    if len(ids) != len(set(ids)):
        raise ValueError("a message that names an object more than once")
    meta = message.metadata
    return Pushed(request.node.node_id, meta.src_node_id, meta.reply_to_message_id, frozenset(ids))


def read_wanted(answer: bytes) -> list[str]:
    """Ids of the objects that the answer to a push-messages call asks for.

    The SuperLink asks for those that it lacks, the message's own among them, unless it has not
    stored the message because it answers one that was sent to another node or already has an
    answer.
    """
    return list(_parsed(PushMessagesResponse(), answer).objects_to_push)


def read_handed(answer: bytes) -> list[tuple[str, list[str]]]:
    """(message id, ids of its objects) of each message in the answer to a pull-messages call."""
    found = _parsed(PullMessagesResponse(), answer)
    return [
        (message.metadata.message_id, list(_pieces_of(tree)))
        for message, tree in zip(found.messages_list, found.message_object_trees, strict=True)
    ]


def read_pulled(body: bytes) -> str:
    """The id of the object that a pull-object call asks for."""
    return str(_parsed(PullObjectRequest(), body).object_id)


def read_confirmed(body: bytes) -> str:
    """The id of the message in a confirm-message-received call."""
    return str(_parsed(ConfirmMessageReceivedRequest(), body).message_object_id)


def _parsed(message: Any, body: bytes) -> Any:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ValueError(f"no {type(message).__name__}") from error
    return message


def refused_objects(error: httpx.HTTPStatusError) -> bool:
    """Whether the SuperLink may have refused a push for its objects: it answers only 500."""
    return error.response.status_code == httpx.codes.INTERNAL_SERVER_ERROR


@dataclass(frozen=True)
class Announced:
    """A reply that a node has announced; its pieces may not have arrived yet.

    Attributes:
        message_id: Id of the reply, and of its root object.
        answers: Id of the message that the SuperLink took it as the answer to.
        pieces: Ids of its objects, each once, in the order in which an honest node sends them.
    """

    message_id: str
    answers: str
    pieces: tuple[str, ...]


class ReplyLink:
    """Access to the SuperLink's replies, one call at a time, without waiting for a node.

    Flower's own ``HttpGrid.pull_messages`` waits up to two hours for the pieces of an announced
    message.

    Args:
        grid: A run's grid; its connection is shared.
        run_id: Flower's number of the run.
    """

    def __init__(self, grid: "HttpGrid", run_id: int) -> None:
        self._grid = grid
        self.run_id = run_id

    def announced(self, message_ids: Iterable[str]) -> list[Announced]:
        """Newly announced replies to these messages; the SuperLink returns each once."""
        client: RuntimeHttpClient = self._grid._runtime_client
        try:
            found = client.PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
                # Data from a site can make the SuperLink fail; there is no reply to read now.
                return []
            raise
        return [
            Announced(m.metadata.message_id, m.metadata.reply_to_message_id, _pieces_of(tree))
            for m, tree in zip(found.messages_list, found.message_object_trees, strict=True)
        ]

    def piece(self, object_id: str) -> bytes | None:
        """The content of an object; None if it has not arrived yet.

        Raises:
            LookupError: if the SuperLink does not expect this object (any more).
        """
        client: RuntimeHttpClient = self._grid._runtime_client
        request = PullObjectRequest(node=self._grid.node, run_id=self.run_id, object_id=object_id)
        answer = client.PullObject(request)
        if not answer.object_found:
            raise LookupError(object_id)
        return bytes(answer.object_content) if answer.object_available else None

    def confirm(self, message_id: str) -> None:
        """Tell the SuperLink that it may delete a reply's objects."""
        client: RuntimeHttpClient = self._grid._runtime_client
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node,
                run_id=self.run_id,
                message_object_id=message_id,
            )
        )


def _pieces_of(tree: ObjectTree) -> tuple[str, ...]:
    found: dict[str, None] = {}
    waiting = [(tree, False)]
    while waiting:
        node, opened = waiting.pop()
        if opened:
            found[node.object_id] = None
        else:
            waiting.append((node, True))
            waiting.extend((child, False) for child in reversed(node.children))
    return tuple(found)


def read_reply(announced: Announced, contents: dict[str, bytes]) -> Message:
    """Assemble a reply from the untrusted contents of its objects, which are consumed.

    Raises:
        ValueError: if they do not form a message that answers the announced one, or if they would
            expand to more than was sent.
    """
    message = put_together(announced.message_id, contents)
    if message.metadata.reply_to_message_id != announced.answers:
        raise ValueError("it answers another message than it was announced for")
    if not message.has_error() and not isinstance(message.content, RecordDict):
        raise ValueError(f"its content is a {type(message.content).__name__}")
    return message


def error_reply(run_id: int, answers: str, code: int, reason: str) -> Message:
    """An error message in place of a rejected reply."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id=answers,
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type="system",
    )
    return make_message(metadata=metadata, error=Error(code=code, reason=reason))


@dataclass
class Work:
    """A ServerApp's run, ready to execute."""

    grid: "HttpGrid"
    context: Context
    run_id: int
    bundle: bytes
    _heartbeat: "HeartbeatSender"

    def finish(self, failure: str) -> None:
        """Report the outcome to the SuperLink; an empty text is success."""
        # Private API: there is no public way to report a run's outcome.
        client: RuntimeHttpClient = self.grid._runtime_client
        client.PushTaskOutput(_output(failure))
        if self._heartbeat.is_running:
            self._heartbeat.stop()
        self.grid.close()


def acquire_work(
    address: str, ca: bytes, secret: bytes
) -> "tuple[RuntimeHttpClient, Iterator[tuple[str, int, int]]]":
    """A client of the Runtime API, and an endless stream of (token, task id, run id).

    A tuple with an empty token means that no task is waiting.
    """
    from flwr.supercore.interceptors import (
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )

    client = _runtime_client(
        address,
        ca,
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({ACQUIRE})),
    )

    def stream() -> Iterator[tuple[str, int, int]]:
        request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        while True:
            try:
                found = client.AcquireTask(request)
            except httpx.HTTPError:
                # The SuperLink is down; its supervisor restarts it.
                yield "", 0, 0
                continue
            yield found.token, found.task.task_id, found.task.run_id

    return client, stream()


@contextmanager
def open_work(address: str, ca: bytes, token: str) -> Iterator[Work]:
    """Open the run that a token stands for."""
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http

    grid = _local_grid()(address, insecure=False, root_certificates=ca, token=token)
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heartbeat.start()
    found = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    enter_task(found.task_id, found.run.run_id, found.context.node_id)
    run, context = run_from_proto(found.run), context_from_proto(found.context)
    grid.set_run(run)
    config: dict[str, Any] = dict(run.override_config)
    context.run_config = config
    bundle = fab_from_proto(found.fab).content
    yield Work(grid, context, run.run_id, bundle, heartbeat)


def give_up(address: str, ca: bytes, token: str, failure: str) -> None:
    """Report that a run's process has died, rather than wait for its heartbeat to lapse."""
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
    )
    from flwr.supercore.retry import make_simple_http_retry_invoker

    client = _runtime_client(
        address,
        ca,
        RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
        RuntimeTokenHttpInterceptor(token=token),
        retry_invoker=make_simple_http_retry_invoker(),
    )
    try:
        client.PushTaskOutput(_output(failure))
    finally:
        client.close()


def _runtime_client(
    address: str, ca: bytes, *interceptors: Any, **options: Any
) -> RuntimeHttpClient:
    """A client of the SuperLink's Runtime API, through its socket."""
    made = RuntimeHttpClient.from_server_address(
        server_address=_host_of(address),
        insecure=False,
        root_certificates=ca,
        interceptors=list(interceptors),
        **options,
    )
    return through(made, address, ca)


def _output(failure: str) -> PushTaskOutputRequest:
    status = SubStatus.FAILED if failure else SubStatus.COMPLETED
    return PushTaskOutputRequest(sub_status=status, details=failure)


def _from_pem(pem: bytes) -> PublicKey:
    key = load_pem_public_key(pem)
    assert isinstance(key, PublicKey)
    return key
