"""gRPC's health service on a real socket, and what 'server status' makes of it."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from flwr.supercore.grpc_health import SimpleHealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server

import fieldmark.server.deployment.status
from fgvc_core.sockets import socket_folder, socket_name
from fgvc_core.supervision import Supervisor, alone
from fieldmark.server.deployment.health import superlink_health
from fieldmark.server.deployment.pages import metrics_text
from fieldmark.server.deployment.processes import Coordinator, free_loopback_port
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.settings import DeploymentSettings, GatewaySettings
from fieldmark.server.deployment.sockets import health_socket, sockets
from fieldmark.server.deployment.status import read_status, show_status


@contextmanager
def answering(path, servicer):
    serving = grpc.server(ThreadPoolExecutor(1))
    add_HealthServicer_to_server(servicer, serving)
    serving.add_insecure_port(f"unix:{socket_name(path)}")
    serving.start()
    try:
        yield path
    finally:
        serving.stop(None)


@pytest.fixture
def service(tmp_path):
    with answering(tmp_path / "health", SimpleHealthServicer()) as path:
        yield path


def test_a_superlink_that_serves_says_so(service):
    assert superlink_health(service) == "serving"


def test_the_proxy_of_the_environment_is_not_asked(service, monkeypatch):
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_loopback_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert superlink_health(service) == "serving"


def test_nobody_and_something_else_at_the_socket_are_down(tmp_path):
    assert superlink_health(tmp_path / "health", 1.0) == "down"
    # Longer than a socket's address, and its folder is not there either.
    assert superlink_health(tmp_path / ("x" * 120) / "health", 1.0) == "down"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(socket_name(tmp_path / "health"))
        mute.listen()
        assert superlink_health(tmp_path / "health", 0.5) == "down"


def test_a_service_that_does_not_serve_says_so(tmp_path):
    class Away(HealthServicer):
        def Check(self, request, context):
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)

    with answering(tmp_path / "health", Away()) as path:
        assert superlink_health(path) == "not serving"


@pytest.mark.parametrize("there", [True, False])
def test_the_status_reads_it_and_asks_for_nodes_only_where_it_serves(
    tmp_path, monkeypatch, capsys, there
):
    folder = tmp_path / "fed"
    init_server(folder, DeploymentSettings(hosts=("gate",)))
    asked = []
    monkeypatch.setattr(
        fieldmark.server.deployment.status, "_nodes", lambda *_: asked.append(1) or {}
    )
    with ExitStack() as stack:
        stack.enter_context(alone(folder, "The coordinator"))
        socket_folder(sockets(folder))
        if there:
            stack.enter_context(answering(health_socket(folder), SimpleHealthServicer()))
        found = read_status(folder)
    assert found["superlink"] == ("serving" if there else "down")
    assert asked == ([1] if there else [])
    assert f"fieldmark_superlink_serving {float(there)}\n" in metrics_text(found)
    show_status(found)
    assert f"SuperLink {found['superlink']}" in capsys.readouterr().out


def test_of_a_coordinator_that_is_not_up_nothing_is_asked(tmp_path):
    init_server(tmp_path / "fed", DeploymentSettings(hosts=("gate",)))
    assert read_status(tmp_path / "fed")["superlink"] == "down"


@pytest.mark.deployment
@pytest.mark.slow
def test_the_real_superlink_serves_is_down_when_killed_and_serves_again(tmp_path):
    folder = tmp_path / "fed"
    gateway = GatewaySettings(listen="127.0.0.1", port=0)
    init_server(folder, DeploymentSettings(hosts=("127.0.0.1",), gateway=gateway))
    with alone(folder, "The coordinator"):
        supervisor = Supervisor(folder)
        coordinator = Coordinator(folder, supervisor, lambda text: None)

        def until(wanted):
            deadline = time.monotonic() + 180
            while (found := read_status(folder)["superlink"]) != wanted:
                assert time.monotonic() < deadline, found
                coordinator.step()
                time.sleep(0.1)

        try:
            # No run is carried out here: anything that stays up stands for the executor.
            coordinator.start(executor=("sleep", "1000"))
            until("serving")
            os.kill(supervisor.pid("superlink"), signal.SIGKILL)
            until("down")
            until("serving")
            coordinator.step()
        finally:
            supervisor.stop()
            coordinator.close()
