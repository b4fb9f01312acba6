import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRIVATE = ("flwr.supercore", "flwr.proto", "flwr.common", "flwr.server", "flwr.client",
           "flwr.superlink", "flwr.supernode", "flwr.compat")  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", ["fgvc_core", "client", "server", "simulations"])
def test_private_modules_of_flower_are_imported_in_one_file_a_package(package):
    for path in (ROOT / package).rglob("*.py"):
        found = [
            name
            for name in imports(path)
            if any(name == p or name.startswith(p + ".") for p in PRIVATE)
        ]
        assert not found or path.name == "flower_internals.py", f"{path}: {found}"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("flwr.supercore.task_identity", "TaskIdentity"),
        ("flwr.supercore.run", "Run"),
        ("flwr.proto.node_pb2", "NodeInfo"),
    ],
)
def test_a_private_name_of_flower_that_we_use_is_where_it_was(module, name):
    found = getattr(__import__(module, fromlist=[name]), name, None)
    assert found is not None, f"{module}.{name} has moved: look at simulations/flower_internals.py"


def test_a_message_gets_its_identity_the_way_flower_reads_it():
    from flwr.app import Message, RecordDict

    from simulations.flower_internals import SERVER_NODE_ID, empty_run, enter_run, give_id

    enter_run(42)
    message = Message(RecordDict(), dst_node_id=7, message_type="train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (42, SERVER_NODE_ID)
    assert give_id(message) == message.metadata.message_id
    assert empty_run(42).run_id == 42
