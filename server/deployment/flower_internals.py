"""Every use of Flower's private modules by the coordinator, as read in flwr 1.41.0.

The Control API is spoken over loopback alone; the Runtime API by our executor, in place of
Flower's, which would unpack each run's bundle and put it on ``sys.path``. A test fails by
name when one of these moves.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from flwr.app import Context
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
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TaskType,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from google.protobuf.message import DecodeError

from fgvc_core.protocol.bundle import RUN_KEY
from fgvc_core.protocol.keys import PublicKey, fingerprint, read_public

__all__ = [
    "LINK_FAILURES",
    "PROTOBUF_MEDIA_TYPE",
    "PUBLIC_KEY_HEADER",
    "SIGNATURE_HEADER",
    "TIMESTAMP_HEADER",
    "ControlApi",
    "Node",
    "Work",
    "acquire_work",
    "give_up",
    "open_work",
    "read_push",
    "took_nothing",
]

PUBLIC_KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER
SIGNATURE_HEADER = FLEET_HTTP_SIGNATURE_HEADER
LINK_FAILURES = (httpx.HTTPError, ObjectPushError)
"""What a run's process meets when the SuperLink dies in the midst of a call. A piece that was
stored, and whose receipt died with the SuperLink, is taken for refused when it comes again."""
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
FEDERATION = ""


@dataclass(frozen=True)
class Node:
    """A SuperNode that the SuperLink knows."""

    node_id: int
    fingerprint: str
    status: str
    last_online: str


class ControlApi:
    """The SuperLink's Control API, at ``127.0.0.1:port``."""

    def __init__(self, port: int, ca: bytes) -> None:
        self._client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{port}",
            insecure=False,
            root_certificates=ca,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def nodes(self) -> list[Node]:
        """All nodes that are registered."""
        response = self._client.ListNodes(ListNodesRequest())
        return [
            Node(
                node_id=info.node_id,
                fingerprint=fingerprint(_from_pem(info.public_key)),
                status=info.status,
                last_online=info.last_activated_at,
            )
            for info in response.nodes_info
            if info.status != "unregistered"
        ]

    def register(self, public_key: str, name: str) -> int:
        """Register a site's key; returns its node id.

        Raises:
            httpx.HTTPStatusError: if the key is in use already, or was once.
        """
        pem = read_public(public_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        response = self._client.RegisterNode(RegisterNodeRequest(public_key=pem, name=name))
        return int(response.node_id)

    def unregister(self, node_id: int) -> None:
        """Take a node off for good; its key can never be registered again."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, bundle: bytes, run_dir: str) -> int:
        """Start a Flower run; returns its id.

        Raises:
            RuntimeError: if the SuperLink says no.
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
        """(status, sub-status, details) of a Flower run; empty where it is unknown."""
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


@dataclass(frozen=True)
class Pushed:
    """What a node announces before it sends a message's pieces.

    Attributes:
        node: The node that pushes; the SuperLink checks that it is the key's.
        claimed: Nodes that the messages say they come from.
        pieces: Objects that they are made of, each as often as it is named.
    """

    node: int
    claimed: set[int]
    pieces: int


def read_push(body: bytes) -> Pushed:
    """Read the body of a push-messages call.

    Raises:
        ValueError: if it is no such request.
    """
    request = PushMessagesRequest()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise ValueError("no PushMessages request") from error
    waiting, pieces = list(request.message_object_trees), 0
    while waiting:
        pieces += 1
        waiting.extend(waiting.pop().children)
    claimed = {message.metadata.src_node_id for message in request.messages_list}
    return Pushed(request.node.node_id, claimed, pieces)


def took_nothing(body: bytes) -> bool:
    """Whether the answer to a push-messages call asks for no object at all.

    The SuperLink asks for the objects that it lacks, the message's own among them, unless it has
    not stored the message: it answers one that was sent to another node, or has an answer.
    """
    answer = PushMessagesResponse()
    try:
        answer.ParseFromString(body)
    except DecodeError:
        return False
    return not answer.objects_to_push


@dataclass
class Work:
    """A ServerApp's run, ready to be carried out."""

    grid: HttpGrid
    context: Context
    run_id: int
    bundle: bytes
    _heartbeat: HeartbeatSender

    def finish(self, failure: str) -> None:
        """Tell the SuperLink how it ended; an empty text is success."""
        # Flower's own: there is no public way to name a run's outcome.
        client: RuntimeHttpClient = self.grid._runtime_client
        client.PushTaskOutput(_output(failure))
        if self._heartbeat.is_running:
            self._heartbeat.stop()
        self.grid.close()


def acquire_work(
    port: int, ca: bytes, secret: bytes
) -> "tuple[RuntimeHttpClient, Iterator[tuple[str, int, int]]]":
    """A client of the Runtime API, and an endless stream of (token, task id, run id).

    A tuple whose token is empty means that nothing waits just now.
    """
    client = RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}",
        insecure=False,
        root_certificates=ca,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods=frozenset({_ACQUIRE})
            ),
        ],
    )

    def stream() -> Iterator[tuple[str, int, int]]:
        request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        while True:
            try:
                found = client.AcquireTask(request)
            except httpx.HTTPError:
                # The SuperLink is not up (yet, or just now): its supervisor sees to that.
                yield "", 0, 0
                continue
            yield found.token, found.task.task_id, found.task.run_id

    return client, stream()


@contextmanager
def open_work(port: int, ca: bytes, token: str) -> Iterator[Work]:
    """Take up the run that a token stands for."""
    grid = HttpGrid(f"127.0.0.1:{port}", insecure=False, root_certificates=ca, token=token)
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heartbeat.start()
    found = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id = found.task_id
    TaskIdentity.run_id = found.run.run_id
    TaskIdentity.node_id = found.context.node_id
    run, context = run_from_proto(found.run), context_from_proto(found.context)
    grid.set_run(run)
    config: dict[str, Any] = dict(run.override_config)
    context.run_config = config
    bundle = fab_from_proto(found.fab).content
    yield Work(grid, context, run.run_id, bundle, heartbeat)


def give_up(port: int, ca: bytes, token: str, failure: str) -> None:
    """Say that a run's process has died, so that nobody waits for its heartbeat to lapse."""
    client = RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}",
        insecure=False,
        root_certificates=ca,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            RuntimeTokenHttpInterceptor(token=token),
        ],
        retry_invoker=make_simple_http_retry_invoker(),
    )
    try:
        client.PushTaskOutput(_output(failure))
    finally:
        client.close()


def _output(failure: str) -> PushTaskOutputRequest:
    status = SubStatus.FAILED if failure else SubStatus.COMPLETED
    return PushTaskOutputRequest(sub_status=status, details=failure)


def _from_pem(pem: bytes) -> PublicKey:
    key = load_pem_public_key(pem)
    assert isinstance(key, PublicKey)
    return key
