"""Private modules of Flower that both sides use, as of flwr 1.42.0.

An in-process grid does what Flower's runtimes do: it assigns message ids and describes its run.
Both sides assemble messages from objects that the other side has sent, and speak Flower's APIs
through Unix sockets, which Flower's own clients do not support. A test fails by name when one of
these private modules changes.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import httpx
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fgvc_core.sockets import socket_name
from fgvc_core.wire.parcel import check_named_once

__all__ = [
    "ACQUIRE",
    "NO_HOST",
    "SERVER_NODE_ID",
    "NodeInfo",
    "Run",
    "build_app",
    "empty_run",
    "enter_run",
    "enter_task",
    "give_id",
    "over_socket",
    "put_together",
]

SERVER_NODE_ID = 1
"""Node id that Flower assigns to the ServerApp's side."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
"""The call that requires the secret of the SuperLink or SuperNode."""
NO_HOST = "socket.invalid"
"""A host name that never resolves (RFC 6761, section 6.4)."""
_TIMEOUT_S = 30.0
"""Timeout of each call, in seconds; Flower's own value."""

C = TypeVar("C", bound=ProtobufClient)


def enter_task(task_id: int, run_id: int, node_id: int) -> None:
    """Give this process the identity of a task, which building messages requires."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def enter_run(run_id: int) -> None:
    """Give this process the identity of a run's ServerApp, which building messages requires."""
    enter_task(1, run_id, SERVER_NODE_ID)


def empty_run(run_id: int) -> Run:
    """A description of a run without a SuperLink."""
    return Run.create_empty(run_id=run_id)


def give_id(message: Message) -> str:
    """Assign a new id to a message, as a SuperLink does when it is pushed."""
    message_id = uuid4().hex
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def build_app(files: dict[str, bytes]) -> bytes:
    """The bundle that ``flwr run`` builds; only for comparisons with stock Flower."""
    from flwr.cli.build import build_fab_from_files

    return build_fab_from_files(dict(files))[0]


def put_together(message_id: str, contents: dict[str, bytes]) -> Message:
    """Assemble an untrusted message from the contents of its objects, which are consumed.

    Raises:
        ValueError: if they do not form a message, or would expand to more than was sent.
    """
    try:
        _check_unfolded(contents)
        message = inflate_object_from_contents(message_id, contents)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        # A stranger's bytes decide which exception Flower's decoders raise.
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(message, Message):
        raise ValueError(f"The root of a message is a {type(message).__name__}.")
    message.metadata.__dict__["_message_id"] = message_id
    return message


def _check_unfolded(contents: Mapping[str, bytes]) -> None:
    """Raise ValueError if an array repeats a chunk."""
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == "Array":
            check_named_once(content[content.index(b"\0") + 1 :], children)


def over_socket(client: C, path: Path, trust: ssl.SSLContext | bool = True) -> C:
    """Route one of Flower's clients, which support only ports, through a Unix socket.

    Args:
        client: A client that has not been used yet.
        path: Path of the socket.
        trust: TLS verification of the other side.
    """
    client.close()
    client._client = httpx.Client(
        transport=httpx.HTTPTransport(verify=trust, uds=socket_name(path)),
        timeout=_TIMEOUT_S,
        # Proxies in the environment are for outside connections.
        trust_env=False,
    )
    return client
