"""Process supervision: start, log with rotation, restart with back-off, stop.

A supervisor holds one folder, and only one can hold it at a time. Its child processes end with it
(Linux), so none keeps serving unsupervised.
"""

import contextlib
import ctypes
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from filelock import FileLock, Timeout

from fgvc_core.errors import ConfigurationError, RunInterrupted
from fgvc_core.files import (
    FILE_MODE,
    PrivateLogFile,
    make_private,
    private_folder,
    replace_private_json,
    write_privately,
)
from fgvc_core.words import OneRecord

STEADY_S = 60.0
"""Seconds after which a process counts as up, and its next failure as the first."""
STOP_WITHIN_S = 10.0
STEP_S = 0.25
"""Interval between two looks of a supervisor at its processes, in seconds."""
UP_WITHIN_S = 180.0
TELL_AFTER_S = 15.0
"""Interval of words on a process that is not up yet, in seconds."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Service:
    """A process to keep running.

    Attributes:
        name: Name of the service and of its log.
        command: The command.
        environment: Variables added to our own environment.
        waits: Seconds before the first, second... restart; the last value repeats.
        after_death: Called with the exit status when the process has ended by itself.
        on_line: Called with each line of its output.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    waits: tuple[float, ...] = (0.2, 1.0, 3.0, 10.0)
    after_death: Callable[[int], None] = lambda status: None
    on_line: Callable[[str], None] = lambda line: None


class _Running:
    def __init__(self, service: Service, log: logging.Logger) -> None:
        self.service = service
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.failures = 0
        self.restarts = -1
        self.due = 0.0
        self.last_exit: int | None = None


class Supervisor:
    """Keeps services running until it is stopped.

    Args:
        folder: The supervisor's own folder; contains ``logs/`` and ``state/``.
    """

    def __init__(self, folder: Path) -> None:
        self._logs, self._state = folder / "logs", folder / "state"
        for made in (self._logs, self._state):
            private_folder(made)
        self._running: dict[str, _Running] = {}
        self._asked: set[str] = set()
        self.log = _file_log(self._logs / "supervisor.log")

    def add(self, service: Service) -> None:
        """Add a service and start it."""
        running = _Running(service, _file_log(self._logs / f"{service.name}.log"))
        self._running[service.name] = running
        self._start(running)

    def step(self) -> None:
        """Handle ended processes, and start those that are due."""
        changed = False
        while self._asked:
            self.restart(self._asked.pop())
            changed = True
        for running in self._running.values():
            process = running.process
            if process is not None and process.poll() is not None:
                changed = True
                self._bury(running, process.returncode)
            if running.process is None and time.monotonic() >= running.due:
                changed = True
                self._start(running)
        if changed:
            self._note()

    def restart(self, name: str) -> None:
        """End a service gracefully; the next step starts it again."""
        running = self._running[name]
        if running.process is not None:
            _end([running.process])
            running.process, running.due = None, 0.0

    def ask_restart(self, name: str) -> None:
        """Request a restart of a service at the next step; thread-safe."""
        self._asked.add(name)

    def stop(self) -> None:
        """End all services in reverse order."""
        for running in reversed(self._running.values()):
            if running.process is not None and running.process.poll() is None:
                self.log.info("stopping %s", running.service.name)
                _end([running.process])
            running.process = None
        self._note()

    def pid(self, name: str) -> int | None:
        """The process id of a running service, else None."""
        process = self._running[name].process
        return None if process is None or process.poll() is not None else process.pid

    def _bury(self, running: _Running, status: int) -> None:
        waits = running.service.waits
        if time.monotonic() - running.started > STEADY_S:
            running.failures = 0
        wait = waits[min(running.failures, len(waits) - 1)]
        running.failures += 1
        running.process, running.last_exit = None, status
        self.log.warning("%s ended (%s); again in %g s", running.service.name, status, wait)
        running.service.after_death(status)
        running.due = time.monotonic() + wait

    def _start(self, running: _Running) -> None:
        service = running.service
        running.process = subprocess.Popen(
            service.command,
            env={**os.environ, **service.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A session of its own: Ctrl-C reaches only the supervisor, which ends the services in
            # order.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        running.started = time.monotonic()
        running.restarts += 1
        assert running.process.stdout is not None
        threading.Thread(
            target=_copy,
            args=(running.process.stdout, running.log, service.on_line),
            daemon=True,
        ).start()
        self.log.info("%s is up as %d", service.name, running.process.pid)
        self._note()

    def _note(self) -> None:
        now = time.time()
        values = {
            name: {
                "pid": self.pid(name),
                "since": round(now - (time.monotonic() - running.started), 1),
                "restarts": running.restarts,
                "last_exit": running.last_exit,
            }
            for name, running in self._running.items()
        }
        replace_private_json(self._state / "services.json", values)


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder for one supervisor, and record its process id.

    Raises:
        ConfigurationError: if another supervisor holds it.
    """
    state = folder / "state"
    private_folder(state)
    lock = FileLock(state / "up.lock", timeout=0, mode=FILE_MODE)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"{what} of '{folder}' is up already.",
            remedy="Stop it first, or look at it with the status command.",
        ) from None
    try:
        write_privately(state / "up.pid", f"{os.getpid()}\n")
        yield
    finally:
        (state / "up.pid").unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def until_told() -> Iterator[list[int]]:
    """Yields a list that stays empty until SIGTERM or Ctrl-C asks this process to end.

    A second Ctrl-C ends it at once. Outside the main thread, where Python lets nobody handle
    signals, the list stays empty.
    """
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in told:
            end_at_once()
        told.append(number)

    before = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def holder(folder: Path) -> int | None:
    """The process id of the supervisor that holds a folder, or None."""
    state = folder / "state"
    lock = FileLock(state / "up.lock", timeout=0, mode=FILE_MODE)
    if not state.is_dir():
        return None
    try:
        with lock:
            return None
    except Timeout:
        pass
    try:
        return int((state / "up.pid").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def stop_holder(folder: Path, within_s: float = 60.0) -> bool:
    """Ask the supervisor of a folder to end, and wait; False if there was none."""
    pid = holder(folder)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + within_s
    while holder(folder) is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    return True


def start_detached(command: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    """Start a supervisor that outlives this terminal."""
    # A restored backup may lack the folder of logs.
    private_folder(log.parent)
    if not log.exists():
        make_private(log)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def start_up(
    name: str, who: str, folder: Path, ready: Path, say: Callable[[str], None], waits: str = ""
) -> str | None:
    """Start ``fieldmark NAME up`` in the background and wait until it writes a file.

    Args:
        name: ``site`` or ``server``.
        who: What it is in a sentence, for instance "The site".
        folder: Its folder.
        ready: The file that it writes once it is up.
        say: Called with status messages.
        waits: What is said every ``TELL_AFTER_S`` until then; empty: nothing.

    Returns:
        None once it is up; its last words if it has ended, or did not come up in time and was
        ended.

    Raises:
        ConfigurationError: if it is up already, or has ended with such an error.
    """
    refuse_second(folder, name)
    log = folder / "logs" / "up.log"
    said = log.stat().st_size if log.exists() else 0
    ready.unlink(missing_ok=True)
    command = (sys.executable, "-P", "-m", "fieldmark", name, "up", str(folder))
    process = start_detached(command, log)
    deadline = time.monotonic() + UP_WITHIN_S
    told = time.monotonic() + TELL_AFTER_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready.exists():
            say(f"up, as process {process.pid}; its words are in {log}")
            return None
        if waits and time.monotonic() >= told:
            told += TELL_AFTER_S
            left = max(deadline - time.monotonic(), 0.0)
            say(f"{waits}, waiting {left:.0f} s more: {last_words(log, said)}")
        time.sleep(STEP_S)
    if process.poll() is None:
        process.terminate()
    elif process.returncode == ConfigurationError.exit_code:
        raise ConfigurationError(
            f"{who} did not come up: {last_words(log, said)}", remedy=f"Its words are in {log}."
        )
    return last_words(log, said)


def refuse_second(folder: Path, what: str) -> None:
    """Refuse to start a second supervisor, before anything of the first one is touched.

    Raises:
        ConfigurationError: if a supervisor holds the folder.
    """
    pid = holder(folder)
    if pid is not None:
        raise ConfigurationError(
            f"This {what} is up already, as process {pid}.",
            why="Two of them would take each other's messages.",
            remedy=f"fieldmark {what} stop {shlex.quote(str(folder))} ends it.",
        )


def last_words(log: Path, since: int) -> str:
    """The last paragraph that a detached process has written, on one line; empty if none.

    Args:
        log: The file of its output.
        since: Length of the file in bytes before the process started.
    """
    with log.open("rb") as file:
        file.seek(since)
        text = file.read().decode("utf-8", "replace")
    return " ".join(text.strip().split("\n\n")[-1].split())[-600:]


def end_at_once() -> NoReturn:
    """End this process without any orderly stop; its child processes end with it."""
    with contextlib.suppress(OSError):
        os.write(2, b"Ended at once.\n")
    os._exit(RunInterrupted.exit_code)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends; no effect on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_WITHIN_S
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _copy(stream: IO[bytes], log: logging.Logger, on_line: Callable[[str], None]) -> None:
    for line in iter(stream.readline, b""):
        text = line.decode("utf-8", "replace").rstrip()
        log.info("%s", text)
        on_line(text)


def _file_log(path: Path) -> logging.Logger:
    log = logging.getLogger(f"fieldmark.supervision.{path}")
    if not log.handlers:
        handler = PrivateLogFile(path, maxBytes=5_000_000, backupCount=3, encoding="utf-8")
        handler.setFormatter(OneRecord("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log
