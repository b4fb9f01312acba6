"""Other accounts on the machine of a coordinator and of a site, against real processes.

They find no port but the gateway's and the status page's, and no socket that they can open.
"""

import json
import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from deployment_lab import children

from fgvc_core.protocol.bundle import make_bundle
from fgvc_core.sockets import path_of, socket_name
from fgvc_core.supervision import Supervisor, alone
from fieldmark.client.deployment.flower_internals import acquire_tasks
from fieldmark.client.deployment.supervisor import site_services
from fieldmark.client.provision import make_home
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.flower_internals import ControlApi, acquire_work
from fieldmark.server.deployment.processes import Coordinator
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings
from fieldmark.server.deployment.sockets import health_socket

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

NOBODY, WITHIN_S = 65534, 180.0
as_another = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another account")
LISTENING = "0A"


class Both:
    """A coordinator and one site of it, as real processes, in a folder that anybody can enter."""

    def __init__(self, above):
        self.folder = above / "coordinator"
        gateway = GatewaySettings(listen="127.0.0.1", port=0)
        init_server(self.folder, DeploymentSettings(hosts=("127.0.0.1",), gateway=gateway))
        key = (self.folder / "coordinator.pub").read_text().strip()
        site = make_home(above / "lyon", name="lyon", coordinator=key, cache=above / "cache")
        AllowList(self.folder).add("lyon", site.public_key)
        self.supervisor = Supervisor(self.folder)
        self.coordinator = Coordinator(self.folder, self.supervisor, lambda text: None)
        self.coordinator.start()
        self.until(lambda: self.coordinator.ready, "the SuperLink is up")
        state = above / "lyon" / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        address = f"127.0.0.1:{self.coordinator.ports['gateway']}"
        for service in site_services(
            site, address, self.folder / "ca.pem", state, lambda text: None, lambda: None
        ):
            self.supervisor.add(service)
        self.until(lambda: "SuperNode ID" in self.log("supernode"), "the site is connected")
        self.until(lambda: "ready" in self.log("runner"), "its runner is up")
        self.ca = (self.folder / "state" / "loopback" / "ca.pem").read_bytes()
        self.node = state / "sockets" / "supernode"
        self.link = path_of(self.coordinator.superlink)

    def log(self, name):
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def until(self, condition, what):
        deadline = time.monotonic() + WITHIN_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain until {what}"
            self.coordinator.step()
            time.sleep(0.1)

    def listening(self, *names):
        """(address, port) of each TCP socket on which a service, or a child of it, listens."""
        found = set()
        for name in names:
            top = self.supervisor.pid(name)
            for pid in (top, *children(top)):
                found |= listeners(pid)
        return found

    def close(self):
        self.supervisor.stop()
        self.coordinator.close()


def listeners(pid):
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            own.add(os.readlink(descriptor))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in own:
                address, _, port = fields[1].partition(":")
                found.add((address, int(port, 16)))
    return found


def another_account(act):
    """What a function returns that another account of this machine runs; or its error's name."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                said = {"did": act()}
            except Exception as error:
                cause = error.__cause__ or error
                said = {"error": f"{type(error).__name__}: {cause}"}
            os.write(write, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        said = json.loads(told.read())
    os.waitpid(child, 0)
    return said


@pytest.fixture(scope="module")
def both():
    # Not pytest's own folder: nobody could enter it, and nothing would be shown.
    above = Path(tempfile.mkdtemp(prefix="accounts-"))
    above.chmod(0o755)
    with alone(above / "lock", "The test"), pytest.MonkeyPatch.context() as patch:
        # What would have Flower open two ports more.
        for api in ("CONTROL", "FLEET"):
            patch.setenv(f"FLWR_INTERNAL_GRPC_{api}_API", "1")
        made = Both(above)
        try:
            yield made
        finally:
            made.close()
            shutil.rmtree(above)


def opened(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
    return True


def test_nothing_of_a_coordinator_listens_but_the_gateway_and_the_status_page(both):
    found = both.listening("superlink", "executor", "gateway", "pages")
    ports = both.coordinator.ports
    assert {port for _, port in found} == {ports["gateway"], ports["pages"]}
    assert both.listening("superlink", "executor") == set()


def test_nothing_of_a_site_listens(both):
    assert both.listening("supernode", "runner") == set()


def test_the_scan_sees_a_port_where_there_is_one():
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        assert port in {found for _, found in listeners(os.getpid())}


def test_the_account_itself_uses_them(both):
    api = ControlApi(both.coordinator.superlink, both.ca)
    (node,) = api.nodes()
    assert node.status == "online"
    api.close()


@as_another
@pytest.mark.parametrize("which", ["link", "health", "node"])
def test_no_other_account_can_open_a_socket(both, which):
    path = {"link": both.link, "health": health_socket(both.folder), "node": both.node}[which]
    assert path.is_socket()
    assert "Permission denied" in another_account(lambda: opened(path))["error"]


@as_another
@pytest.mark.parametrize(
    "act",
    [
        lambda api: len(api.nodes()),
        lambda api: api.unregister(api.nodes()[0].node_id),
        lambda api: api.start_run(make_bundle(), "run"),
        lambda api: api.stop_run(1),
    ],
    ids=["list nodes", "remove nodes", "start a run", "stop a run"],
)
def test_no_other_account_can_use_the_control_api(both, act):
    # The authority's certificate is no secret here: what is closed is the socket.
    said = another_account(lambda: act(ControlApi(both.coordinator.superlink, both.ca)))
    assert "Permission denied" in said["error"]
    assert len(ControlApi(both.coordinator.superlink, both.ca).nodes()) == 1


@as_another
def test_no_other_account_can_take_a_task_and_with_it_a_message_or_the_model(both):
    secret = (both.folder / "secret").read_bytes()

    def at_the_coordinator():
        client, _ = acquire_work(both.coordinator.superlink, both.ca, secret)
        answer = client._client.post("https://localhost/v1/runtime/acquire-task", content=b"")
        return answer.status_code

    assert "Permission denied" in another_account(at_the_coordinator)["error"]
    # At a site: even who knew its secret; a stream that is not allowed in says 'nothing waits'.
    secret = (both.node.parents[1] / "secret").read_bytes()
    assert another_account(lambda: next(acquire_tasks(both.node, secret))) == {"did": ""}

    def at_the_site():
        transport = httpx.HTTPTransport(uds=socket_name(both.node))
        with httpx.Client(transport=transport) as client:
            return client.get("http://localhost/health").status_code

    assert "Permission denied" in another_account(at_the_site)["error"]


@as_another
@pytest.mark.parametrize("name", ["secret", "state/superlink.db", "state/loopback/server.key"])
def test_no_other_account_can_read_what_would_let_it_in(both, name):
    assert (both.folder / name).exists()
    said = another_account(lambda: len((both.folder / name).read_bytes()))
    assert "Permission denied" in said["error"]


@as_another
def test_it_is_the_folders_mode_that_holds(both):
    """Opened on purpose, the same calls go through: these tests can fail."""
    doors = [p for p in both.link.parents if p == both.folder or both.folder in p.parents]
    before = {path: path.stat().st_mode & 0o7777 for path in (*doors, both.link)}
    try:
        for path in doors:
            path.chmod(0o755)
        both.link.chmod(0o666)
        said = another_account(lambda: len(ControlApi(both.coordinator.superlink, both.ca).nodes()))
        assert said == {"did": 1}
    finally:
        for path, mode in before.items():
            path.chmod(mode)
