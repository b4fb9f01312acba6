import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PRIVATE = ("flwr.supercore", "flwr.proto", "flwr.common", "flwr.server", "flwr.client",
           "flwr.superlink", "flwr.supernode", "flwr.compat")  # fmt: skip
INTERNALS = [
    ROOT / "fgvc_core/flower/internals.py",
    ROOT / "client/deployment/flower_internals.py",
    ROOT / "server/deployment/flower_internals.py",
]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def is_private(module):
    return any(module == p or module.startswith(p + ".") for p in PRIVATE)


PRIVATE_NAMES = sorted(
    {
        (module, name)
        for path in INTERNALS
        for module, name in imports(path)
        if name is not None and is_private(module)
    }
)


@pytest.mark.parametrize("package", ["fgvc_core", "client", "server", "simulations"])
def test_private_modules_of_flower_are_imported_in_one_file_a_package(package):
    for path in (ROOT / package).rglob("*.py"):
        found = [module for module, _ in imports(path) if is_private(module)]
        assert not found or path in INTERNALS, f"{path}: {found}"


def test_every_file_that_uses_them_is_looked_at():
    assert len(PRIVATE_NAMES) > 30


@pytest.mark.parametrize(("module", "name"), PRIVATE_NAMES)
def test_a_private_name_of_flower_that_we_use_is_where_it_was(module, name):
    found = getattr(__import__(module, fromlist=[name]), name, None)
    assert found is not None, f"{module}.{name} has moved: look at the files of INTERNALS"


@pytest.mark.parametrize(
    ("module", "owner", "attribute"),
    [
        ("flwr.superlink.grid", "HttpGrid", "_runtime_client"),
        ("flwr.supercore.runtime", "RuntimeHttpClient", "AcquireTask"),
        ("flwr.supercore.runtime", "RuntimeHttpClient", "PullTaskInput"),
        ("flwr.supercore.runtime", "RuntimeHttpClient", "PushTaskOutput"),
        ("flwr.supercore.control.control_http_client", "ControlHttpClient", "StartRun"),
        ("flwr.supercore.control.control_http_client", "ControlHttpClient", "ListRuns"),
        ("flwr.supercore.control.control_http_client", "ControlHttpClient", "ListNodes"),
        ("flwr.supernode.fleet_http_client", "FleetHttpClient", "DeactivateNode"),
        ("flwr.supercore.heartbeat", "HeartbeatSender", "is_running"),
    ],
)
def test_a_private_method_of_flower_that_we_call_is_there(module, owner, attribute):
    found = getattr(__import__(module, fromlist=[owner]), owner)
    assert hasattr(found, attribute), f"{module}.{owner}.{attribute} has moved"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "flwr.superlink.cli.flower_superlink:_parse_args_run_superlink",
            ["--host", "--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile",
             "--isolation", "--enable-supernode-auth", "--superexec-auth-secret-file",
             "--disable-runtime-dependency-installation", "--database"],
        ),
        (
            "flwr.supernode.cli.flower_supernode:_parse_args_run_supernode",
            ["--superlink", "--root-certificates", "--auth-supernode-private-key", "--host",
             "--isolation", "--superexec-auth-secret-file"],
        ),
    ],
)  # fmt: skip
def test_the_options_that_we_start_flower_with_are_known_to_it(command, options):
    module, _, name = command.partition(":")
    parser = getattr(__import__(module, fromlist=[name]), name)()
    known = {option for action in parser._actions for option in action.option_strings}
    assert set(options) <= known


def test_a_message_gets_its_identity_the_way_flower_reads_it():
    from flwr.app import Message, RecordDict

    from fgvc_core.flower.internals import SERVER_NODE_ID, empty_run, enter_run, give_id

    enter_run(42)
    message = Message(RecordDict(), dst_node_id=7, message_type="train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (42, SERVER_NODE_ID)
    assert give_id(message) == message.metadata.message_id
    assert empty_run(42).run_id == 42
