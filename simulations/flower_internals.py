"""Every use of Flower's private modules by this package, as read in flwr 1.41.0.

An in-process grid has to do what Flower's runtimes do: give messages an identity and
describe its run. A test fails by name when one of these moves.
"""

from uuid import uuid4

from flwr.app import Message
from flwr.cli.build import build_fab_from_files
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["SERVER_NODE_ID", "NodeInfo", "Run", "build_app", "empty_run", "enter_run", "give_id"]

SERVER_NODE_ID = 1
"""The node id that Flower gives to the ServerApp's side."""


def enter_run(run_id: int) -> None:
    """Make this process the ServerApp's side of a run, so that messages can be built."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID


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
