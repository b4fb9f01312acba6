"""The executor of the SuperLink's runs: it runs only the installed ServerApp, one process per run.

Flower's own executor unpacks a run's bundle, puts it on ``sys.path`` and loads the app that it
names: whoever can start a run at the SuperLink can run code as the coordinator. This one runs a
bundle only if it is bit-identical to ours and the conductor requested the run. It imports once and
forks for each run; a run whose process dies is reported at once.

:mod:`.standby` becomes it when a run is announced, and it becomes that again ``WARM_S`` after the
last one.

Run as a separate process: ``python -m fieldmark.server.deployment.executor DIR``.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fgvc_core.errors import FieldmarkError
from fgvc_core.importing import importing
from fgvc_core.protocol.bundle import RUN_KEY, check_bundle
from fgvc_core.supervision import die_with_parent
from fgvc_core.wake import become
from fieldmark.server.deployment.arrivals import Arrivals
from fieldmark.server.deployment.flower_internals import (
    ReplyLink,
    Work,
    acquire_work,
    give_up,
    open_work,
)
from fieldmark.server.deployment.parcel_grid import ParcelGrid
from fieldmark.server.deployment.run_request import active_run, read_run_request
from fieldmark.server.deployment.sockets import superlink_address
from fieldmark.server.deployment.standby import is_announced

POLL_S = 0.3
SELDOM_S = 2.0
"""Interval between two calls for a run while none is expected, in seconds."""
WARM_S = 300.0
"""Time without a run after which this process gives its memory back, in seconds."""
STANDBY = "fieldmark.server.deployment.standby"
ASKED_WITHIN_S = 5.0


class Executor:
    """Takes runs from the SuperLink one after the other, each in its own process.

    Args:
        folder: The coordinator's.
        stand_by: Called after ``WARM_S`` without a run.
    """

    def __init__(self, folder: Path, stand_by: Callable[[], object] = lambda: None) -> None:
        self._folder, self._stand_by = folder, stand_by
        self._link = superlink_address(folder)
        self._ca = (folder / "state" / "loopback" / "ca.pem").read_bytes()
        self._secret = (folder / "secret").read_bytes()
        self._children: dict[int, str] = {}

    def serve(self) -> None:
        """Serve until told to stop."""
        client, tasks = acquire_work(self._link, self._ca, self._secret)
        parent, due = os.getppid(), 0.0
        needed = time.monotonic()
        try:
            while os.getppid() == parent:
                now, announced = time.monotonic(), is_announced(self._folder)
                if announced or self._children:
                    needed = now
                elif now - needed > WARM_S:
                    break
                awaited = announced and not self._children
                if awaited or now >= due:
                    # Each call costs the SuperLink milliseconds.
                    due = now + SELDOM_S
                    token, task, run = next(tasks)
                    if token:
                        _say(f"task {task} of Flower run {run}")
                        self._launch(token)
                self._reap()
                self._obey()
                time.sleep(POLL_S)
        finally:
            client.close()
            for child in self._children:
                os.kill(child, signal.SIGTERM)
        if os.getppid() == parent:
            self._stand_by()

    def _launch(self, token: str) -> None:
        child = os.fork()
        if child:
            self._children[child] = token
            return
        status = 1
        try:
            die_with_parent()
            # Flower's heartbeat sends SIGINT when the run was stopped.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.default_int_handler)
            status = self._carry_out(token)
        except BaseException as error:
            # Last resort of this child process: any failure must reach its log.
            _say(f"ended by {type(error).__name__}: {error}")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Not sys.exit: a forked child must not run the parent's cleanup.
            os._exit(status)

    def _carry_out(self, token: str) -> int:
        from fieldmark.server.app import app

        with open_work(self._link, self._ca, token) as work:
            failure = "interrupted"
            try:
                check_bundle(work.bundle)
                self._check_wanted(work)
                arrivals = Arrivals(ReplyLink(work.grid, work.run_id))
                app(ParcelGrid(work.grid, arrivals), work.context)
                failure = ""
                # Before the SuperLink is told: who sees the run finished finds the page.
                _report(Path(str(work.context.run_config[RUN_KEY])))
            except FieldmarkError as error:
                failure = f"{type(error).__name__}: {error}"
            except KeyboardInterrupt:
                _say("told to stop")
            except Exception as error:
                # An unexpected crash: the run is resumed from its checkpoint, a few times.
                failure = f"died: {type(error).__name__}: {error}"
                raise
            finally:
                work.finish(failure)
        return 0 if not failure else 1

    def _check_wanted(self, work: Work) -> None:
        """Raise FieldmarkError unless the conductor requested exactly this run."""
        run_dir = Path(str(work.context.run_config.get(RUN_KEY, "")))
        own = {path.resolve() for path in (self._folder / "runs").iterdir()}
        inside = run_dir.resolve() in own
        # The conductor records the run's number while this process starts.
        deadline = time.monotonic() + ASKED_WITHIN_S
        while inside and time.monotonic() < deadline:
            if read_run_request(run_dir).flower_run == work.run_id:
                return
            time.sleep(POLL_S)
        raise FieldmarkError(
            f"Flower run {work.run_id} was not asked for by this coordinator.",
            remedy="Start runs with: fieldmark server run DIR RECIPE.",
        )

    def _obey(self) -> None:
        """End the run that a person has asked to stop."""
        run_dir = active_run(self._folder) if self._children else None
        if run_dir is None or read_run_request(run_dir).state != "stopping":
            return
        for child in self._children:
            os.kill(child, signal.SIGTERM)

    def _reap(self) -> None:
        while self._children:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            token = self._children.pop(child)
            if os.WIFSIGNALED(status):
                died = f"its process was ended by signal {os.WTERMSIG(status)}"
                _say(died)
                give_up(self._link, self._ca, token, f"died: {died}")


def _report(run_dir: Path) -> None:
    """Write the run's page here: nobody needs to watch a run to its end for it.

    What goes wrong with it is said, and the run has finished all the same.
    """
    from fieldmark.server.report.page import render

    try:
        render(run_dir)
    except (FieldmarkError, OSError, ValueError, LookupError) as error:
        _say(f"no report: {error}; fieldmark report {run_dir} tries it again")


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Entry point of the process."""
    # Imported before the first fork, so runs start with everything loaded.
    with importing():
        import fieldmark.server.run  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    folder = sys.argv[1]
    Executor(Path(folder), lambda: become(STANDBY, folder)).serve()


if __name__ == "__main__":
    main()
