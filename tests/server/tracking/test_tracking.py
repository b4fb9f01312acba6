import json
import sys
import threading
from pathlib import Path

import pytest

from fgvc_core.errors import ConfigurationError
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.tracking import Choice, Tracking, check_installed, read_track, settled
from fieldmark.server.tracking.tracker import RunFacts, final_figures, settings_of

sys.path.insert(0, str(Path(__file__).parent))
from wandb_file import records, values

RUN = "0123456789abcdef0123456789abcdef"


def round_(number, **changes):
    known = {"round": number, "top1": number / 10, "macro_f1": None, "loss": 2 / number,
             "val_top1": None, "val_loss": None, "seconds": 1.5, "bytes_up": 1000,
             "bytes_down": 2000, "cohort": 3, "accepted": 2, "refused": 1,
             "model": "ab"}  # fmt: skip
    return {**known, **changes}


def tell_run(run_dir: Path, choices, **kinds) -> list[dict]:
    """A short run's events, told to trackers; what the file of events then holds."""
    recipe = parse_recipe("", ["name=birds", "data.path=/srv/private", "train.lr=0.25"])
    run_dir.mkdir(exist_ok=True)
    tracking = Tracking(choices, run_dir, recipe, **kinds)
    events = EventLog(run_dir / "events.jsonl", (tracking,))
    tracking.report_to(events)
    events.emit("run_started", run=RUN, sites=["a", "b", "c"])
    events.emit("round_finished", **round_(1))
    events.emit("reply", round=2, site="b", accepted=False, reason="a norm of 9 times the others'")
    events.emit("scored", round=1, val_top1=0.125, val_loss=1.5)
    events.emit("round_finished", **round_(2, top1=0.75))
    privacy = {"a": {"epsilon": 3.5}, "b": {"epsilon": 4.0}}
    metrics = {"top1": 0.75, "rounds": 2, "best_round": 1, "wall_s": 3.0, "privacy": privacy}
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    events.emit("run_finished", reason="rounds", rounds=2)
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_what_tensorboard_reads_is_what_the_run_told(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the 'tensorboard' extra")
    told = tell_run(tmp_path / "run", [Choice("tensorboard")])
    assert not [e for e in told if e["event"] == "tracker_failed"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "run" / "tracking" / "tensorboard"))
    found.Reload()

    def scalar(name):
        return [(one.step, pytest.approx(one.value)) for one in found.Scalars(name)]

    assert scalar("round/top1") == [(1, 0.1), (2, 0.75)]
    assert scalar("round/loss") == [(1, 2.0), (2, 1.0)]
    assert scalar("round/val_top1") == [(1, 0.125)]
    assert scalar("round/refused") == [(1, 1), (2, 1)]
    assert scalar("final/top1") == [(2, 0.75)]
    assert scalar("epsilon/b") == [(2, 4.0)]
    assert "round/macro_f1" not in found.Tags()["scalars"]
    texts = [
        found.Tensors(name)[0].tensor_proto.string_val[0].decode()
        for name in found.Tags()["tensors"]
    ]
    assert any("| train.lr | 0.25 |" in text for text in texts)
    assert any("b refused: a norm of 9 times" in text for text in texts)
    assert not any("/srv/private" in text for text in texts)


def test_what_mlflow_reads_is_what_the_run_told(tmp_path):
    pytest.importorskip("mlflow", reason="needs the 'mlflow' extra")
    store = tmp_path / "all.db"
    told = tell_run(tmp_path / "run", [Choice("mlflow", str(store))])
    assert not [e for e in told if e["event"] == "tracker_failed"]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("birds").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["train.lr"] == "0.25"
    assert "data.path" not in run.data.params
    history = client.get_metric_history(run.info.run_id, "top1")
    assert [(one.step, one.value) for one in history] == [(1, 0.1), (2, 0.75)]
    assert run.data.metrics["val_top1"] == 0.125
    assert run.data.metrics["final/top1"] == 0.75
    assert run.data.metrics["epsilon/a"] == 3.5
    assert run.data.tags["out_of_the_ordinary.2"].startswith("b refused")
    # Gone on with, it stays one run.
    from fieldmark.server.tracking.to_mlflow import MLflow

    again = MLflow(str(store), RunFacts(tmp_path / "run", parse_recipe("", ["name=birds"]), RUN, 2))
    again.figures(3, {"top1": 0.8})
    again.finish("interrupted", {})
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED"
    assert run.data.metrics["top1"] == 0.8


def test_what_weights_and_biases_would_sync_is_what_the_run_told(tmp_path):
    pytest.importorskip("wandb", reason="needs the 'wandb' extra")
    told = tell_run(tmp_path / "run", [Choice("wandb")])
    assert not [e for e in told if e["event"] == "tracker_failed"]
    (path,) = (tmp_path / "run" / "tracking").rglob("*.wandb")
    found = list(records(path))
    (run,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.project, run.display_name) == (RUN, "birds", "run")
    config = values(run.config.update)
    assert config["train.lr"] == "0.25"
    assert "data.path" not in config
    history = [values(r.history.item) for r in found if r.WhichOneof("record_type") == "history"]
    tops = [(entry["round"], entry["top1"]) for entry in history if "top1" in entry]
    assert tops == [(1, 0.1), (2, 0.75)]
    assert [e["val_top1"] for e in history if "val_top1" in e] == [0.125]
    summary = {}
    for record in found:
        if record.WhichOneof("record_type") == "summary":
            summary |= values(record.summary.update)
    assert summary["final/top1"] == 0.75
    assert summary["epsilon/b"] == 4.0
    assert "b refused" in summary["out_of_the_ordinary"]
    assert b"/srv/private" not in path.read_bytes()


class Broken:
    """A tracker that fails at a chosen call."""

    def __init__(self, at):
        self.at = at
        self.calls = []

    def _call(self, name):
        self.calls.append(name)
        if name == self.at:
            raise OSError("no space left on the disk")

    def figures(self, round_, values):
        self._call("figures")

    def note(self, round_, text):
        self._call("note")

    def finish(self, state, values):
        self._call("finish")


@pytest.mark.parametrize("at", ["open", "figures", "note", "finish"])
def test_a_tracker_that_fails_is_told_once_and_hurts_neither_the_run_nor_the_others(tmp_path, at):
    whole, broken = Broken("never"), Broken(at)

    def opened(choice, facts):
        if choice.name == "mlflow":
            if at == "open":
                raise OSError("no space left on the disk")
            return broken
        return whole

    told = tell_run(tmp_path / "run", read_track(["mlflow", "wandb"]), opened=opened)
    (failed,) = [event for event in told if event["event"] == "tracker_failed"]
    assert failed["tracker"] == "mlflow"
    assert failed["reason"] == "OSError: no space left on the disk"
    assert broken.calls.count(at) <= 1
    assert whole.calls == ["figures", "note", "figures", "figures", "finish"]
    assert sum(event["event"] == "round_finished" for event in told) == 2


def test_a_tracker_that_hangs_holds_the_end_of_a_run_for_a_bounded_time(tmp_path):
    release = threading.Event()

    def opened(choice, facts):
        release.wait(30)
        return Broken("never")

    told = tell_run(tmp_path / "run", [Choice("mlflow")], opened=opened, wait_s=0.2)
    release.set()
    assert told[-1]["event"] == "tracker_failed"
    assert "did not end within 0.2 s" in told[-1]["reason"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tensorbord", "Did you mean 'tensorboard'"),
        ("wandb=https://api.example.org", "names an address"),
        ("none", "is none of"),
    ],
)
def test_a_wrong_track_is_refused(text, said):
    with pytest.raises(ConfigurationError) as caught:
        read_track([text])
    assert said in str(caught.value)


def test_a_tracker_twice_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(ConfigurationError, match="twice"):
        read_track(["wandb", "wandb=here"])
    monkeypatch.setattr("fieldmark.server.tracking.choices.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        check_installed(read_track(["mlflow"]))
    assert "pip install 'fieldmark[mlflow]'" in str(caught.value)


def test_places_become_absolute_and_addresses_stay(tmp_path):
    choices = read_track(["tensorboard=logs", "mlflow=http://127.0.0.1:5000", "wandb"])
    assert settled(choices, tmp_path) == (
        f"tensorboard={tmp_path / 'logs'}",
        "mlflow=http://127.0.0.1:5000",
        "wandb",
    )


def test_settings_are_flat_and_leave_out_where_pictures_lie():
    found = settings_of(
        parse_recipe("", ["data.path=/srv/private", "federation.rounds=1", "model.head=subspace"])
    )
    assert found["federation.rounds"] == "1"
    assert found["model.head"] == "subspace"
    assert not any("/srv/private" in value for value in found.values())
    assert final_figures({"top1": None, "rounds": 3}) == {"final/rounds": 3.0}
    own = {"personal": {"top1": 0.8, "gain": 0.05, "sites": 3}}
    assert final_figures(own) == {"final/personal_top1": 0.8, "final/personal_gain": 0.05}
