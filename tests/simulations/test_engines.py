import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from fgvc_core.errors import RunInterrupted
from fgvc_core.flower.internals import enter_run
from fieldmark.client.app import site_home
from fieldmark.simulations.engines import run_ray

NOWHERE = RecordDict()


class SilentGrid:
    """Its nodes never answer."""

    def pull_messages(self, message_ids):
        return []


@pytest.fixture
def homes(tmp_path):
    for name in ("site-1", "site-10", "site-2", "site-3"):
        (tmp_path / "homes" / name).mkdir(parents=True)
        (tmp_path / "homes" / name / "site.toml").write_text("")
    return [tmp_path / "homes" / name for name in ("site-1", "site-2", "site-3")]


@pytest.fixture
def flower(monkeypatch):
    """Sets what stands for Flower's own simulation."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return lambda run: monkeypatch.setattr("flwr.simulation.run_simulation", run)


@pytest.mark.ray
def test_on_ray_a_node_is_a_site_of_this_run_whatever_else_the_folder_holds(
    homes, flower, tmp_path
):
    found = []

    def run_simulation(num_supernodes, **_):
        enter_run(1)
        for number in range(num_supernodes):
            config = {"partition-id": number}
            found.append(site_home(Context(1, number, config, NOWHERE, {})).resolve())

    flower(run_simulation)
    before = os.environ.get("FIELDMARK_SITES")
    run_ray(tmp_path, homes, 1)
    assert found == [home.resolve() for home in homes]
    assert os.environ.get("FIELDMARK_SITES") == before


@pytest.mark.ray
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_on_ray_a_person_stops_a_server_that_waits_for_its_nodes(
    homes, flower, tmp_path, monkeypatch, how
):
    waiting, stopped = threading.Event(), []
    inner = ServerApp()

    @inner.main()
    def main(grid, context):
        try:
            while True:
                grid.pull_messages(["never"])
                waiting.set()
                time.sleep(0.01)
        except KeyboardInterrupt:
            stopped.append(True)
            raise RunInterrupted("The run was stopped.") from None

    def serve(server_app):
        try:
            server_app(SilentGrid(), Context(1, 1, {}, NOWHERE, {}))
        except RunInterrupted:
            stopped.append("handed to Flower")

    def run_simulation(server_app, **_):
        # As Flower does: the server in a thread of its own; Ray turns SIGTERM into an exit.
        thread = threading.Thread(target=serve, args=(server_app,))
        thread.start()
        assert waiting.wait(10)
        if how == "Ctrl-C":
            # It must not fall into Flower's arms.
            os.kill(os.getpid(), signal.SIGINT)
            thread.join(10)
            assert not thread.is_alive()
            raise RunInterrupted("The run was stopped.")
        raise SystemExit(15)

    monkeypatch.setattr("fieldmark.server.app.app", inner)
    flower(run_simulation)
    with pytest.raises(RunInterrupted, match="stopped") as caught:
        run_ray(tmp_path, homes, 1)
    assert caught.value.exit_code == 6
    assert stopped == [True, "handed to Flower"]


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_ends_a_real_run_on_ray_with_a_checkpoint(tiny_file, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fieldmark", "simulate", str(tiny_file), "--engine", "ray"]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--set=federation.rounds=400"],
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "told").open("w"),
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while _rounds(out / "events.jsonl") < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 6
    finally:
        process.kill()
    assert (out / "checkpoints" / "last.safetensors").is_file()
    assert "--resume" in (tmp_path / "told").read_text()


def _rounds(events: Path) -> int:
    return events.read_text().count("round_started") if events.exists() else 0
