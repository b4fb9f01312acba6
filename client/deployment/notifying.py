"""Runs a site's ``[notify]`` command when something waits for a person.

Part of the sentence comes from outside (the name of a recipe or of a run), so it is one argument,
made visible and cut, that begins with a word of ours: no shell reads it and no program takes it for
an option. The command gets no variable of the node's environment but those that programs need. Its
failure is logged and stops nothing.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

from fgvc_core.errors import FieldmarkError
from fgvc_core.words import visible
from fieldmark.client.notify_settings import Notify

Event = Literal["approval", "refusal"]

MOST_AN_HOUR = 20
"""Most calls an hour: a coordinator can announce and ask without end."""
MOST_CHARACTERS = 500
KEPT = ("HOME", "LANG", "LC_ALL", "LOGNAME", "TZ", "USER")
"""Variables that the command inherits; proxies may hold passwords, and others anything."""
PATH = "/usr/local/bin:/usr/bin:/bin"


class Notifier:
    """Tells a person at the site, by the site's own command, each thing once.

    Args:
        site: Name of the site.
        settings: Returns the current ``[notify]``; read for each event, so that an edit counts.
        say: Told of failures.
        clock: Seconds, for the hourly limit.
    """

    def __init__(
        self,
        site: str,
        settings: Callable[[], Notify],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._site, self._settings, self._say, self._clock = site, settings, say, clock
        self._told: deque[tuple[Event, str]] = deque(maxlen=1000)
        self._calls: deque[float] = deque(maxlen=MOST_AN_HOUR)
        self._one = threading.Lock()
        self.threads: list[threading.Thread] = []

    def tell(self, event: Event, text: str) -> None:
        """Run the command in the background; never raises, never waits.

        Args:
            event: What has happened.
            text: One sentence, which begins with a word of ours.
        """
        if (event, text) in self._told:
            return
        try:
            settings = self._settings()
        except FieldmarkError as error:
            self._say(f"nobody was notified: {visible(error.what)}")
            return
        if not settings.command or (event == "refusal" and not settings.refusals):
            return
        self._told.append((event, text))
        now = self._clock()
        if len(self._calls) == MOST_AN_HOUR and now - self._calls[0] < 3600:
            self._say(f"nobody was notified: more than {MOST_AN_HOUR} times within an hour")
            return
        self._calls.append(now)
        said = visible(text)[:MOST_CHARACTERS]
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        thread = threading.Thread(target=self._run, args=(settings, event, said), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _run(self, settings: Notify, event: Event, text: str) -> None:
        command = [*settings.command, event, self._site, text]
        # One at a time: a slow command must not pile up.
        with self._one:
            try:
                wrong = _called(command, settings.seconds)
            except OSError as error:
                wrong = error.strerror or type(error).__name__
        if wrong:
            self._say(f"notify: '{visible(settings.command[0])}' failed: {wrong}")


def _called(command: list[str], seconds: float) -> str:
    """Run a command; returns why it failed, empty if it did not."""
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command,
            env=clean(os.environ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # With what it has started.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"it did not end within {seconds:g} s (notify.seconds)"
        if status == 0:
            return ""
        words.seek(max(words.tell() - 300, 0))
        last = visible(words.read().decode("utf-8", "replace").strip())
        return f"status {status}" + (f": {last}" if last else "")


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    """The command's environment."""
    return {"PATH": PATH, **{name: variables[name] for name in KEPT if name in variables}}
