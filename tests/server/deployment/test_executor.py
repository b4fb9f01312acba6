"""How a run's process ends decides whether another one goes on with it."""

from contextlib import contextmanager, suppress
from types import SimpleNamespace

import httpx
import pytest

import fieldmark.server.app
import fieldmark.server.deployment.executor as executors
from fgvc_core.errors import DataError, PolicyRefusal, RunFailed
from fgvc_core.protocol.bundle import RUN_KEY, make_bundle
from fieldmark.server.deployment.executor import Executor
from fieldmark.server.deployment.flower_internals import LINK_FAILURES
from fieldmark.server.deployment.run_request import RunRequest, write_run_request

(PUSH_ERROR,) = (kind for kind in LINK_FAILURES if not issubclass(kind, httpx.HTTPError))


@pytest.fixture
def carried_out(tmp_path, monkeypatch):
    """What the SuperLink is told when the ServerApp ends in a certain way."""
    for made in ("state/loopback", "runs/birds/coordinator"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "state" / "loopback" / "ca.pem").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"")
    run_dir = tmp_path / "runs" / "birds"
    write_run_request(run_dir, RunRequest(state="running", flower_run=7))

    def carry_out(end, bundle=None, run_id=7):
        told = []
        context = SimpleNamespace(run_config={RUN_KEY: str(run_dir)})
        work = SimpleNamespace(
            grid=None, context=context, run_id=run_id, bundle=bundle or make_bundle(),
            finish=told.append,
        )  # fmt: skip

        @contextmanager
        def open_work(*args):
            yield work

        monkeypatch.setattr(executors, "open_work", open_work)
        monkeypatch.setattr(executors, "ASKED_WITHIN_S", 0.01)
        monkeypatch.setattr(fieldmark.server.app, "app", lambda grid, context: end())
        with suppress(Exception):
            Executor(tmp_path)._carry_out("token")
        (failure,) = told
        return failure

    return carry_out


@pytest.fixture
def pages(monkeypatch):
    """Folders of the runs whose page was written."""
    written = []
    monkeypatch.setattr("fieldmark.server.report.page.render", written.append)
    return written


def test_the_page_of_a_run_is_written_though_nobody_watches_it(carried_out, pages, tmp_path):
    assert carried_out(lambda: None) == ""
    assert pages == [tmp_path / "runs" / "birds"]


def test_a_run_that_failed_has_no_page(carried_out, pages):
    carried_out(ending(RunFailed("no quorum")))
    assert not pages


@pytest.mark.parametrize("error", [DataError("damaged"), OSError("no space left")])
def test_a_page_that_cannot_be_written_does_not_undo_the_run(
    carried_out, monkeypatch, capsys, error
):
    monkeypatch.setattr("fieldmark.server.report.page.render", lambda run_dir: ending(error)())
    assert carried_out(lambda: None) == ""
    assert "tries it again" in capsys.readouterr().out


def ending(error):
    def end():
        raise error

    return end


def test_a_run_that_ends_well_says_nothing(carried_out):
    assert carried_out(lambda: None) == ""


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("gone"),
        httpx.ReadTimeout("slow"),
        PUSH_ERROR("ab" * 32, 7, "session"),
        ValueError("nobody's fault"),
        OSError("no space left"),
    ],
    ids=["connection", "time", "receipt", "fault", "disk"],
)
def test_a_run_that_ended_by_nobodys_fault_has_died_and_is_gone_on_with(carried_out, error):
    # The conductor starts another one after such a failure, a few times, and after no other.
    assert carried_out(ending(error)).startswith(f"died: {type(error).__name__}: ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PolicyRefusal("no site may go on"), "PolicyRefusal: no site may go on"),
        (RunFailed("no quorum"), "RunFailed: no quorum"),
    ],
    ids=["policy", "quorum"],
)
def test_what_ended_for_a_reason_is_told_with_it_and_not_tried_again(carried_out, error, said):
    assert carried_out(ending(error)).startswith(said)


def test_a_foreign_bundle_and_a_run_that_nobody_asked_for_are_not_carried_out(carried_out):
    never = ending(AssertionError("it was run"))
    assert "not Fieldmark's own" in carried_out(never, bundle=b"another")
    assert "was not asked for" in carried_out(never, run_id=8)
