"""Uses of Flower's private modules that both sides share, as read in flwr 1.41.0.

An in-process grid has to do what Flower's runtimes do: give messages an identity and describe
its run. Both sides put messages together from objects that the other side has sent, and speak
Flower's APIs through a Unix socket where Flower's own clients know ports alone. A test fails by
name when one of these moves.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import httpx
from flwr.app import Message
from flwr.cli.build import build_fab_from_files
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
"""The node id that Flower gives to the ServerApp's side."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
"""The call that needs the secret of the SuperLink or SuperNode."""
NO_HOST = "socket.invalid"
"""A name that no resolver knows (RFC 6761, section 6.4)."""
_TIMEOUT_S = 30.0
"""Of each call, in seconds; Flower's own."""

C = TypeVar("C", bound=ProtobufClient)


def enter_task(task_id: int, run_id: int, node_id: int) -> None:
    """Make this process a task's, so that messages can be built in it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def enter_run(run_id: int) -> None:
    """Make this process the ServerApp's side of a run, so that messages can be built."""
    enter_task(1, run_id, SERVER_NODE_ID)


def empty_run(run_id: int) -> Run:
    """A description of a run that no SuperLink knows."""
    return Run.create_empty(run_id=run_id)


def give_id(message: Message) -> str:
    """Give a message a fresh id, as a SuperLink would when it is pushed."""
    message_id = uuid4().hex
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def build_app(files: dict[str, bytes]) -> bytes:
    """An app's bundle as ``flwr run`` makes it; for comparisons with stock Flower alone."""
    return build_fab_from_files(dict(files))[0]


def put_together(message_id: str, contents: dict[str, bytes]) -> Message:
    """A message from the contents of its objects, whoever sent them; they are used up.

    Raises:
        ValueError: if they do not make up a message, or would unfold to more than was sent.
    """
    try:
        _check_unfolded(contents)
        message = inflate_object_from_contents(message_id, contents)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        # Flower's decoders raise whatever they meet: a stranger's bytes decide which.
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(message, Message):
        raise ValueError(f"The root of a message is a {type(message).__name__}.")
    message.metadata.__dict__["_message_id"] = message_id
    return message


def _check_unfolded(contents: Mapping[str, bytes]) -> None:
    """Raise ValueError if an array is made of one chunk several times."""
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == "Array":
            check_named_once(content[content.index(b"\0") + 1 :], children)


def over_socket(client: C, path: Path, trust: ssl.SSLContext | bool = True) -> C:
    """Have one of Flower's clients, which know ports alone, speak through a Unix socket.

    Args:
        client: Not used yet.
        path: Of the socket.
        trust: What vouches for the other side, where it speaks TLS.
    """
    client.close()
    client._client = httpx.Client(
        transport=httpx.HTTPTransport(verify=trust, uds=socket_name(path)),
        timeout=_TIMEOUT_S,
        # A proxy of the environment is for the outside.
        trust_env=False,
    )
    return client
