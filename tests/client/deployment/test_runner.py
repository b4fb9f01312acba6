"""The runner answers with installed code, whatever the bundle carries; a dead child is no end."""

import io
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import httpx
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

import fieldmark.client.app
from fgvc_core.protocol.bundle import make_bundle
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.wire.arrays import PackedTensor
from fgvc_core.wire.parcel import make_parcel, open_parcel
from fieldmark.client.deployment.flower_internals import UNTAKEN
from fieldmark.client.deployment.lines import HALF_HANDED_OVER, REFUSED, UNANSWERED
from fieldmark.client.deployment.runner import Runner, tell_of_refusal
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.provision import make_home


@pytest.fixture
def home(tmp_path):
    coordinator = public_text(new_key().public_key())
    make_home(tmp_path / "home", name="lyon", coordinator=coordinator, cache=tmp_path)
    return tmp_path / "home"


class Beat:
    is_running = True

    def stop(self):
        self.is_running = False


class Task:
    """A task whose outcome is written to a file: the child is another process."""

    def __init__(self, folder, bundle, content=None):
        self.folder, self.bundle, self.fault = folder, bundle, ""
        self.context = Context(1, 2, {"site-home": "/elsewhere"}, RecordDict(), {})
        self.message = type("M", (), {})()
        self.message.metadata = type("D", (), {"message_id": "m" * 64})()
        self.message.content = content or RecordDict()
        self.finished = []

    def push(self, reply):
        tensors = reply.content.array_records.get("tensors", {})
        told = {"home": str(self.context.node_config["site-home"]), "tensors": list(tensors)}
        if "parcel" in tensors:
            told["inside"] = list(open_parcel(tensors["parcel"].data))
        (self.folder / "pushed").write_text(json.dumps(told))

    def refuse(self, *, bundle):
        (self.folder / "refused").write_text(str(bundle))

    def finish(self, *, well):
        self.finished.append(well)

    def heartbeat(self):
        return Beat()


def answered(home, task, monkeypatch, app):
    monkeypatch.setattr(fieldmark.client.app, "app", app)
    monkeypatch.setattr("fieldmark.client.deployment.runner.Task.pull", lambda address, token: task)
    monkeypatch.setattr(
        "fieldmark.client.deployment.runner.heartbeat_of", lambda address, token: Beat()
    )
    Runner(home, Path("/nowhere"), b"secret")._answer("token")


def test_a_message_is_answered_by_the_installed_app_for_this_home_alone(
    home, tmp_path, monkeypatch
):
    packed = {"w": PackedTensor("float32", (2,), b"12345678")}
    content = RecordDict({"tensors": ArrayRecord(
        {"parcel": Array("uint8", (9,), "fieldmark.parcel", make_parcel(packed))})})  # fmt: skip
    task = Task(tmp_path, make_bundle(), content)

    def app(message, context):
        assert list(message.content["tensors"]) == ["w"]
        return message

    answered(home, task, monkeypatch, app)
    assert task.finished == [True]
    told = json.loads((tmp_path / "pushed").read_text())
    assert told == {"home": str(home), "tensors": ["parcel"], "inside": ["w"]}


def test_a_bundle_with_code_is_refused_recorded_and_never_run(home, tmp_path, monkeypatch):
    buffer = io.BytesIO(make_bundle())
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("client/app.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    task = Task(tmp_path, buffer.getvalue())
    answered(home, task, monkeypatch, lambda message, context: pytest.fail("it was run"))
    assert task.finished == [False]
    assert (tmp_path / "refused").read_text() == "True"
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "pushed").exists()
    ledger = Ledger(home, fieldmark.client.site.Site.open(home).data_binding, "lyon")
    (entry,) = [e for e in ledger.entries() if e.kind == "refused"]
    assert "client/app.py" in entry.values["reason"]


def test_a_gpu_is_looked_for_in_the_fork_alone_so_that_the_fork_can_use_it(
    home, tmp_path, monkeypatch
):
    def looked():
        (tmp_path / "looked").open("a").write(f"{os.getpid()}\n")
        return False

    # torch: "Cannot re-initialize CUDA in forked subprocess", once a parent has looked.
    monkeypatch.setattr(torch.cuda, "is_available", looked)
    task = Task(tmp_path, make_bundle())
    answered(home, task, monkeypatch, lambda message, context: message)
    assert task.finished == [True]
    pids = (tmp_path / "looked").read_text().split()
    assert pids
    assert str(os.getpid()) not in pids


def test_a_child_that_is_killed_is_forked_once_more_on_the_same_message(
    home, tmp_path, monkeypatch
):
    task = Task(tmp_path, make_bundle())

    def app(message, context):
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return message

    answered(home, task, monkeypatch, app)
    assert task.finished == [True]
    assert (tmp_path / "pushed").exists()


def test_a_child_that_dies_again_and_again_is_answered_for_with_a_code(home, tmp_path, monkeypatch):
    task = Task(tmp_path, make_bundle())
    answered(home, task, monkeypatch, lambda message, context: os.kill(os.getpid(), signal.SIGKILL))
    assert task.finished == [False]
    assert (tmp_path / "refused").read_text() == "False"


def test_a_message_that_cannot_be_put_together_is_answered_for_with_a_code(
    home, tmp_path, monkeypatch
):
    task = Task(tmp_path, make_bundle())
    task.fault = "ValueError: An array names a chunk more than once."
    answered(home, task, monkeypatch, lambda message, context: pytest.fail("it was worked on"))
    assert task.finished == [False]
    assert (tmp_path / "refused").read_text() == "False"


def test_what_an_app_raises_stays_here(home, tmp_path, monkeypatch):
    task = Task(tmp_path, make_bundle())

    def app(message, context):
        raise ValueError("/data/patient-7/left.png")

    answered(home, task, monkeypatch, app)
    assert (tmp_path / "refused").read_text() == "False"
    assert not (tmp_path / "pushed").exists()


GONE = httpx.HTTPStatusError(
    "401", request=httpx.Request("POST", "http://x"), response=httpx.Response(401)
)


@pytest.mark.parametrize("error", UNTAKEN, ids=lambda kind: kind.__name__)
def test_a_task_that_the_node_has_forgotten_ends_neither_the_runner_nor_the_node(
    home, monkeypatch, error
):
    beats = []

    def beat(address, token):
        beats.append(Beat())
        return beats[-1]

    def pull(address, token):
        # It may take longer than a task lives without a sign of life.
        assert beats[-1].is_running
        raise GONE if error is httpx.HTTPError else error(*["x"] * (error is not RuntimeError) * 2)

    monkeypatch.setattr("fieldmark.client.deployment.runner.Task.pull", pull)
    monkeypatch.setattr("fieldmark.client.deployment.runner.heartbeat_of", beat)
    Runner(home, Path("/nowhere"), b"secret")._answer("token")
    assert [b.is_running for b in beats] == [False]


def test_a_node_that_starts_anew_while_its_message_is_worked_on_leaves_the_runner_up(
    home, tmp_path, monkeypatch
):
    task = Task(tmp_path, make_bundle())

    def finish(*, well):
        raise GONE

    monkeypatch.setattr(task, "finish", finish)
    answered(home, task, monkeypatch, lambda message, context: message)
    assert (tmp_path / "pushed").exists()


def test_an_answer_that_nobody_waits_for_any_more_is_not_worked_out_twice(
    home, tmp_path, monkeypatch
):
    task = Task(tmp_path, make_bundle())

    def push(reply):
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
        raise GONE

    monkeypatch.setattr(task, "push", push)
    answered(home, task, monkeypatch, lambda message, context: message)
    assert (tmp_path / "tries").read_text() == "x"
    assert task.finished == []
    assert not (tmp_path / "refused").exists()


def test_a_refusal_that_did_not_reach_the_node_whole_has_it_start_anew(
    home, tmp_path, monkeypatch, capfd
):
    task = Task(tmp_path, make_bundle())
    task.fault = "ValueError: An array names a chunk more than once."

    def refuse(*, bundle):
        raise httpx.ReadTimeout("after its announcement")

    monkeypatch.setattr(task, "refuse", refuse)
    answered(home, task, monkeypatch, lambda message, context: pytest.fail("it was worked on"))
    assert HALF_HANDED_OVER in capfd.readouterr().out.splitlines()


def test_a_refusal_is_said_for_the_supervisor_and_no_other_answer(capsys, tmp_path, monkeypatch):
    def answered(body):
        envelope = ConfigRecord({"body": body, "signature": b""})
        tell_of_refusal(RecordDict({"envelope": envelope}), tmp_path)
        return capsys.readouterr().out

    said = answered(json.dumps({"code": "refused-policy", "reason": "a\x1b[2J cap"}))
    assert said == f"{REFUSED}a\\x1b[2J cap\n"
    assert answered("") == f"{UNANSWERED}{tmp_path}/site.log says why\n"
    whole = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: whole._replace(free=4096))
    assert f"the disk of '{tmp_path}' is full" in answered("")
    for body in (json.dumps({"code": "ok", "reason": ""}),
                 json.dumps({"code": "awaiting-approval", "reason": "not yet"})):  # fmt: skip
        assert answered(body) == ""
