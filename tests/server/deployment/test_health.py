"""Flower's own gRPC health service on a real socket, and what 'server status' makes of it."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from flwr.supercore.grpc_health import run_health_server_grpc_no_tls
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server

import server.deployment.status
from fgvc_core.supervision import Supervisor, alone, write_json
from server.deployment.health import superlink_health
from server.deployment.pages import metric_lines
from server.deployment.processes import Coordinator, free_loopback_port
from server.deployment.provisioning import init_server
from server.deployment.settings import DeploymentSettings, GatewaySettings
from server.deployment.status import read_status, show_status


@pytest.fixture
def port():
    number = free_loopback_port()
    serving = run_health_server_grpc_no_tls(f"127.0.0.1:{number}")
    yield number
    serving.stop(None)


def test_a_superlink_that_serves_says_so(port):
    assert superlink_health(port) == "serving"


def test_the_proxy_of_the_environment_is_not_asked(port, monkeypatch):
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_loopback_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert superlink_health(port) == "serving"


def test_nobody_and_something_else_at_the_port_are_down():
    assert superlink_health(free_loopback_port(), 1.0) == "down"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert superlink_health(mute.getsockname()[1], 0.5) == "down"


def test_a_service_that_does_not_serve_says_so():
    class Away(HealthServicer):
        def Check(self, request, context):
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)

    serving = grpc.server(ThreadPoolExecutor(1))
    add_HealthServicer_to_server(Away(), serving)
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.start()
    try:
        assert superlink_health(port) == "not serving"
    finally:
        serving.stop(None)


@pytest.mark.parametrize("there", [True, False])
def test_the_status_reads_it_and_asks_for_nodes_only_where_it_serves(
    tmp_path, port, monkeypatch, capsys, there
):
    folder = tmp_path / "fed"
    init_server(folder, DeploymentSettings(hosts=("gate",)))
    health = port if there else free_loopback_port()
    write_json(folder / "state" / "ports.json", {"superlink": 1, "gateway": 2, "health": health})
    asked = []
    monkeypatch.setattr(server.deployment.status, "_nodes", lambda *_: asked.append(1) or {})
    with alone(folder, "The coordinator"):
        found = read_status(folder)
    assert found["superlink"] == ("serving" if there else "down")
    assert asked == ([1] if there else [])
    assert f"fieldmark_superlink_serving {int(there)}" in list(metric_lines(found))
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
