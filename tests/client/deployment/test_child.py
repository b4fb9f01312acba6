"""A process that takes more than its site lends; each is a real one."""

import errno
import json
import logging
import os
import resource
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from fgvc_core.flower.internals import enter_run
from fgvc_core.flower.records import to_content
from fgvc_core.protocol.bundle import make_bundle
from fgvc_core.protocol.keys import read_public
from fgvc_core.protocol.messages import Reply, Sealed, seal, unseal
from fieldmark.client.deployment import child
from fieldmark.client.deployment.child import (
    Handover,
    at_least_to_answer,
    bound_self,
    held_bytes,
    wait_for,
)
from fieldmark.client.deployment.lines import HALF_HANDED_OVER
from fieldmark.client.deployment.runner import Runner
from fieldmark.client.job import Incoming, answer
from fieldmark.client.limits import Limits
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.site import Site, write_settings
from fieldmark.client.stages import HANDLERS

from ..protected_sites import COORDINATOR, make_site, request, unprotected


def lent(**changes):
    """Limits as the bounded process reads them; also such as no site.toml may have."""
    values = {"memory_bytes": 10**12, "file_gb": 1000.0, "request_hours": 1.0, **changes}
    return SimpleNamespace(**values)


def in_child(work, limits, *, bounded=True, on_gpu=False, handover=None):
    """(how it ended, what it told)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if bounded:
                bound_self(limits, on_gpu=on_gpu)
            os.write(writer, str(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    ended = wait_for(pid, limits, handover)
    with os.fdopen(reader, "rb") as file:
        return ended, file.read().decode()


def fault_of(act):
    def work():
        try:
            act()
        except Exception as error:
            return f"{type(error).__name__} {getattr(error, 'errno', '')} {error}"
        return "done"

    return work


def room(more):
    return lent(memory_bytes=held_bytes(os.getpid()) + more)


@pytest.mark.parametrize(
    "take", [lambda: np.ones(60_000_000), lambda: torch.ones(60_000_000, dtype=torch.float64)]
)
def test_an_allocation_beyond_its_memory_fails_and_the_process_goes_on(take):
    ended, told = in_child(fault_of(take), room(200_000_000))
    assert "MemoryError" in told or "can't allocate memory" in told
    assert (ended.status, ended.limit) == (0, "")
    # Within its memory the same is done.
    assert in_child(fault_of(take), room(900_000_000))[1] == "done"


def test_what_is_held_is_looked_at_from_outside_where_a_gpu_is_used():
    def hold():
        kept = [np.ones(60_000_000)]
        time.sleep(30)
        return len(kept)

    started = time.monotonic()
    ended, told = in_child(hold, room(200_000_000), on_gpu=True)
    assert os.WTERMSIG(ended.status) == signal.SIGKILL
    assert ended.limit.startswith("limits.memory_gb = ")
    assert told == ""
    assert time.monotonic() - started < 20


def test_files_that_are_mapped_are_not_counted(tmp_path):
    path = tmp_path / "pictures.npy"
    np.save(path, np.zeros(60_000_000, dtype=np.uint64))

    def read():
        return np.load(path, mmap_mode="r").sum()

    assert in_child(read, room(200_000_000))[1] == "0"


def test_work_that_takes_too_long_is_ended():
    started = time.monotonic()
    ended, told = in_child(lambda: time.sleep(60), lent(request_hours=0.5 / 3600))
    assert os.WTERMSIG(ended.status) == signal.SIGKILL
    assert ended.limit.startswith("limits.request_hours = ")
    assert told == ""
    assert time.monotonic() - started < 20


def test_a_file_has_a_largest_size(tmp_path):
    def write():
        (tmp_path / "large").write_bytes(bytes(3_000_000))

    _, told = in_child(fault_of(write), lent(file_gb=0.002))
    assert told.startswith(f"OSError {errno.EFBIG}")
    assert (tmp_path / "large").stat().st_size <= 2_000_000


def test_a_process_with_pictures_leaves_no_core_dump():
    _, told = in_child(lambda: resource.getrlimit(resource.RLIMIT_CORE), lent())
    assert told == "(0, 0)"


def test_a_process_within_its_limits_ends_as_it_would():
    ended, told = in_child(lambda: "answered", Limits())
    assert (ended.status, ended.limit, told) == (0, "", "answered")


@pytest.fixture
def handover():
    made = Handover()
    yield made
    made.close()


@pytest.mark.parametrize("least", [{"request_hours": 0.5 / 3600}, {"memory_bytes": 1}])
def test_what_hands_its_answer_over_is_not_ended_for_a_limit_of_the_work(handover, least):
    def hand_over():
        handover.begin()
        time.sleep(1.5)
        return "handed over"

    ended, told = in_child(hand_over, lent(**least), bounded=False, handover=handover)
    assert (ended.status, ended.limit, told) == (0, "", "handed over")
    assert ended.handing_over


def test_handing_over_has_an_end_of_its_own(handover, monkeypatch):
    monkeypatch.setattr(child, "HANDING_OVER_S", 0.5)

    def hand_over():
        handover.begin()
        time.sleep(60)

    ended, _ = in_child(hand_over, lent(), handover=handover)
    assert os.WTERMSIG(ended.status) == signal.SIGKILL
    assert ended.limit == "its answer was not handed over within 0.5 s"
    assert ended.handing_over


def test_work_that_has_not_come_to_its_answer_is_ended_all_the_same(handover):
    ended, _ = in_child(lambda: time.sleep(60), lent(request_hours=0.5 / 3600), handover=handover)
    assert ended.limit.startswith("limits.request_hours = ")
    assert not ended.handing_over


class Task:
    """A task of the SuperNode's; what is pushed is a file, for the child is another process."""

    def __init__(self, folder, message):
        self.folder, self.message, self.bundle = folder, message, make_bundle()
        self.context = Context(1, 2, {}, RecordDict(), {})
        self.finished, self.refused = [], []

    def push(self, reply):
        envelope = reply.content["envelope"]
        (self.folder / "pushed").write_text(
            json.dumps([envelope["body"], envelope["signature"].hex()])
        )

    def refuse(self, *, bundle):
        self.refused.append(bundle)

    def finish(self, *, well):
        self.finished.append(well)

    def heartbeat(self):
        return SimpleNamespace(is_running=False)


def reply_to(site, task):
    body, signature = json.loads((task.folder / "pushed").read_text())
    sealed = Sealed(body, bytes.fromhex(signature))
    return unseal(Reply, sealed, read_public(site.public_key), {})


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A site that was called, and (message of round 1, its task)."""
    site, recipe = make_site(tmp_path, privacy="optional"), unprotected()
    limits = Limits(memory_gb=2.0, request_hours=1.5 / 3600)
    write_settings(site.home, site.settings.model_copy(update={"limits": limits}))
    enter_run(7)
    called = request(recipe, "roll_call", "run-1", 0, recipe=recipe.to_toml(),
                     class_names=("a", "b"))  # fmt: skip
    assert answer(site.home, Incoming(seal(COORDINATOR, called), {})) is not None
    asked = request(recipe, "train", "run-1", 1)
    content = to_content(seal(COORDINATOR, asked), None)
    message = Message(content, dst_node_id=2, message_type="train")
    message.metadata.__dict__["_message_id"] = "m" * 64
    return Site.open(site.home), Task(tmp_path, message)


def handled(site, task, monkeypatch, work):
    def counted(*args):
        with (task.folder / "tries").open("a") as file:
            file.write("x")
        return work()

    monkeypatch.setitem(HANDLERS, "train", counted)
    monkeypatch.setattr("fieldmark.client.encoding.UpdateEncoder.__init__", lambda self, *a: None)
    monkeypatch.setattr("fieldmark.client.encoding.UpdateEncoder.received", {}, raising=False)
    monkeypatch.setattr("fieldmark.client.privacy.gate.Gate.check_leaving", lambda self, *a: None)
    Runner(site.home, site.home / "socket", b"secret")._work_on(task)


def test_a_request_that_takes_too_long_is_answered_with_a_code_and_not_tried_again(
    begun, monkeypatch
):
    site, task = begun
    handled(site, task, monkeypatch, lambda: time.sleep(60))
    assert (task.finished, task.refused) == ([True], [])
    reply = reply_to(site, task)
    assert (reply.code, reply.reason, reply.examples) == ("unavailable", "", 0)
    assert (task.folder / "tries").read_text() == "x"
    assert "limits.request_hours" in (site.home / "site.log").read_text()
    ledger = Ledger(site.home, site.data_binding, site.name)
    assert [e.values["code"] for e in ledger.entries() if e.kind == "sent"] == ["ok", "unavailable"]


def test_a_request_that_takes_too_much_memory_is_answered_with_the_same_code(begun, monkeypatch):
    site, task = begun
    handled(site, task, monkeypatch, lambda: np.ones(500_000_000))
    assert (task.finished, task.refused) == ([True], [])
    reply = reply_to(site, task)
    assert (reply.code, reply.reason, reply.examples) == ("unavailable", "", 0)
    assert "limits.memory_gb" in (site.home / "site.log").read_text()


def test_what_is_answered_at_a_limit_is_the_same_whichever_it_was(begun, monkeypatch):
    site, task = begun
    told = []
    for work in (lambda: time.sleep(60), lambda: np.ones(500_000_000)):
        handled(site, task, monkeypatch, work)
        reply = reply_to(site, task)
        told.append(reply.model_copy(update={"ledger_head": "", "ledger_length": 0}))
    assert told[0] == told[1]


def test_a_limit_reached_as_the_answer_is_handed_over_ends_nothing(begun, monkeypatch):
    site, task = begun
    push = task.push

    def slowly(reply):
        time.sleep(3)
        push(reply)

    monkeypatch.setattr(task, "push", slowly)
    handled(site, task, monkeypatch, dict)
    assert (task.finished, task.refused) == ([True], [])
    assert (task.folder / "tries").read_text() == "x"
    ledger = Ledger(site.home, site.data_binding, site.name)
    # Of the roll call and of the round: none for the same request twice.
    nonces = [e.values["nonce"] for e in ledger.entries() if e.kind == "sent"]
    assert len(set(nonces)) == len(nonces) == 2


@pytest.mark.parametrize("ended_by", ["a limit", "a signal", "an error"])
def test_after_half_an_answer_no_other_follows_and_the_node_is_to_start_anew(
    begun, monkeypatch, capfd, ended_by
):
    site, task = begun
    monkeypatch.setattr(child, "HANDING_OVER_S", 0.5)

    def half(reply):
        with (task.folder / "pushes").open("a") as file:
            file.write("x")
        if ended_by == "a signal":
            os.kill(os.getpid(), signal.SIGKILL)
        if ended_by == "an error":
            raise MemoryError
        time.sleep(60)

    monkeypatch.setattr(task, "push", half)
    handled(site, task, monkeypatch, dict)
    assert (task.folder / "pushes").read_text() == "x"
    assert (task.finished, task.refused) == ([], [])
    assert HALF_HANDED_OVER in capfd.readouterr().out.splitlines()


def test_who_answers_that_a_limit_was_reached_has_room_of_its_own(begun, monkeypatch):
    site, task = begun
    least = Limits(request_hours=1e-9)
    write_settings(site.home, site.settings.model_copy(update={"limits": least}))
    handled(site, task, monkeypatch, lambda: time.sleep(60))
    assert (task.finished, task.refused) == ([True], [])
    assert reply_to(site, task).code == "unavailable"


def test_that_room_is_a_minute_and_some_memory_and_no_less_than_the_sites():
    held = held_bytes(os.getpid())
    tight = at_least_to_answer(Limits.model_construct(memory_gb=1e-3, request_hours=1e-9))
    assert tight.request_hours == pytest.approx(1 / 60)
    assert tight.memory_bytes >= held + 400_000_000
    ample = at_least_to_answer(Limits(memory_gb=1000.0, request_hours=3.0))
    assert (ample.memory_bytes, ample.request_hours) == (1_000_000_000_000, 3.0)


def test_site_toml_in_the_midst_of_an_edit_leaves_the_limits_as_they_were(begun, capsys):
    site, _ = begun
    runner = Runner(site.home, site.home / "socket", b"secret")
    before, _ = runner._lent()
    assert before == site.settings.limits
    (site.home / "site.toml").write_text("[limits")
    assert runner._lent()[0] == before
    assert "cannot be read just now" in capsys.readouterr().out


@pytest.fixture(autouse=True)
def _quiet():
    yield
    for name in [n for n in logging.root.manager.loggerDict if n.startswith("fieldmark.site.")]:
        logging.getLogger(name).handlers.clear()
