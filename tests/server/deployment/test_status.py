"""What is said of a run whose coordinator was ended, and how long processes have been up."""

import subprocess
import sys
import time

import pytest
from pages_lab import busy_folder
from typer.testing import CliRunner

from fgvc_core.errors import ConfigurationError
from fgvc_core.files import replace_private_json
from fgvc_core.supervision import alone
from fieldmark.server.cli import server_app
from fieldmark.server.deployment.launching import resume
from fieldmark.server.deployment.run_request import RunRequest, check_idle, write_run_request
from fieldmark.server.deployment.status import read_status, show_status
from fieldmark.server.run_log.events import EventLog


def test_a_run_is_not_running_while_its_coordinator_is_down(tmp_path, capsys):
    folder = busy_folder(tmp_path / "fed")
    with alone(folder, "The coordinator"):
        assert read_status(folder)["run"]["state"] == "running"
    found = read_status(folder)
    assert found["run"]["state"] == "interrupted"
    show_status(found)
    said = capsys.readouterr().out
    assert "run birds: interrupted, round 6 of 20, started 2 times" in said
    assert "it goes on once the coordinator is up again" in said


def test_a_run_below_its_quorum_is_said_to_wait_until_a_round_begins(tmp_path, capsys):
    folder = busy_folder(tmp_path / "fed")
    log = EventLog(folder / "runs" / "birds" / "events.jsonl")
    log.emit("waiting_for_sites", present=["lyon"], needed=2, waiting_for={"oslo": "it is away"})
    with alone(folder, "The coordinator"):
        found = read_status(folder)
        assert found["run"]["waiting"] == {"present": 1, "needed": 2}
        show_status(found)
        log.emit("round_started", round=8, cohort=["lyon", "oslo"])
        assert read_status(folder)["run"]["waiting"] is None
    said = capsys.readouterr().out
    assert "run birds: waiting for sites: 1 site is present, a round needs 2, round 6" in said


def test_no_reason_is_cut_on_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    folder = busy_folder(tmp_path / "fed")
    why = "Site 'oslo' answered 'refused-policy'. " + "The policy demands privacy. " * 4
    log = EventLog(folder / "runs" / "birds" / "events.jsonl")
    log.emit("waiting_for_sites", present=["lyon"], needed=2, waiting_for={"oslo": why})
    with alone(folder, "The coordinator"):
        show_status(read_status(folder))
    assert why.strip() in capsys.readouterr().out


@pytest.mark.parametrize("command", ["attach", "cancel"])
def test_a_folder_that_is_no_coordinators_is_not_one_without_a_run(tmp_path, command):
    done = CliRunner().invoke(server_app, [command, str(tmp_path / "fedration")])
    assert isinstance(done.exception, ConfigurationError)
    assert "settings" in done.exception.what


def test_a_run_to_resume_that_there_is_not_is_named_with_those_that_there_are(tmp_path):
    folder = busy_folder(tmp_path / "fed")
    write_run_request(folder / "runs" / "birds", RunRequest(state="finished", tries=1))
    with alone(folder, "The coordinator"):
        with pytest.raises(ConfigurationError, match="There is no run 'birs'") as near:
            resume(folder, "birs")
        with pytest.raises(ConfigurationError, match="There is no run 'x'") as far:
            resume(folder, "x")
    assert near.value.remedy == "Did you mean 'birds'?"
    assert far.value.remedy == "Runs there: birds, spring, summer."


def test_a_run_that_has_ended_has_ended_whether_the_coordinator_is_up_or_not(tmp_path):
    folder = busy_folder(tmp_path / "fed")
    write_run_request(folder / "runs" / "birds", RunRequest(state="finished", tries=1))
    assert read_status(folder)["run"]["state"] == "finished"


def test_processes_are_up_since_their_start(tmp_path):
    folder = busy_folder(tmp_path / "fed")
    services = {"gateway": {"pid": 7, "restarts": 0, "since": time.time() - 3600}}
    replace_private_json(folder / "state" / "services.json", services)
    with alone(folder, "The coordinator"):
        assert 3600 <= read_status(folder)["processes"]["gateway"]["up_s"] < 3660


def test_a_second_run_is_refused_before_anything_large_is_imported(tmp_path):
    folder = busy_folder(tmp_path / "fed")
    with pytest.raises(ConfigurationError, match="is not up"):
        check_idle(folder)
    with alone(folder, "The coordinator"):
        with pytest.raises(ConfigurationError, match="The run 'birds' is on"):
            check_idle(folder)
        looked = (
            "import sys; from fieldmark.cli import main; sys.argv = ['fieldmark', 'server', 'run', "
            f"{str(folder)!r}, 'none.toml']\n"
            "try: main()\n"
            "finally: print([n for n in ('torch', 'timm', 'sklearn') if n in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", looked], capture_output=True, text=True)
    assert "The run 'birds' is on" in done.stderr
    assert f"fieldmark server attach {folder}" in done.stderr
    assert done.stdout.strip().endswith("[]")
