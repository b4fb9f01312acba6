"""Warm runner of a site: answers each message in a forked child, with installed code only.

It replaces Flower's executor. :mod:`.standby` becomes it when a message comes. Everything is
imported once, so a message costs a fork instead of
seconds of imports, and only children initialize a GPU. Flower's executor unpacks the run's bundle,
puts it first on ``sys.path`` and loads the code that it names; this one compares the bundle's bytes
with those that every installation builds, and calls the installed ``fieldmark.client.app``.

A child that dies without an answer (killed, out of memory) is forked once more on the same message:
its charge is in the ledger, and a finished payload is in the outbox. A child that hit a resource
limit is not retried, because it would hit it again; another child answers ``unavailable``.

A child that dies while handing its answer over is not replaced either: the SuperNode waits for the
remaining pieces indefinitely, and sends nothing else. The supervisor restarts the SuperNode, the
coordinator learns that the message is lost, and asks again.

Run as a process: ``python -m fieldmark.client.deployment.runner HOME SOCKET SECRET_FILE``.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flwr.app import Message, RecordDict
from PIL import Image

from fgvc_core.errors import FieldmarkError, PeerError
from fgvc_core.flower.parcels import open_in, pack_in
from fgvc_core.importing import importing
from fgvc_core.privacy.accountant import epsilon_of_plan
from fgvc_core.privacy.odometer import choose_rule
from fgvc_core.privacy.planning import plan_for
from fgvc_core.protocol.bundle import check_bundle
from fgvc_core.supervision import die_with_parent
from fgvc_core.wake import become
from fgvc_core.words import visible
from fieldmark.client.announced import last_announced, read_announced
from fieldmark.client.cache_room import CacheRoom, in_use
from fieldmark.client.deployment.child import (
    Ended,
    Handover,
    at_least_to_answer,
    bound_self,
    wait_for,
)
from fieldmark.client.deployment.flower_internals import (
    UNTAKEN,
    Task,
    acquire_tasks,
    heartbeat_of,
    is_forgotten,
)
from fieldmark.client.deployment.lines import (
    AWAITS,
    HALF_HANDED_OVER,
    REFUSED,
    UNANSWERED,
)
from fieldmark.client.deployment.standby import wake_file
from fieldmark.client.limits import Limits
from fieldmark.client.privacy.approval import waiting_runs
from fieldmark.client.privacy.masked import forget_old
from fieldmark.client.privacy.policy import protection
from fieldmark.client.recipe_limits import uses_gpu
from fieldmark.client.site import Resources, Site, no_room

POLL_S = 5.0
"""Maximum interval between two calls for a message, in seconds. Each costs the SuperNode
milliseconds; it notifies this process of a message."""
WARM_S = 300.0
"""Time without a message after which this process gives its memory back, in seconds. It counts from
the last answer, whose time the coordinator knows: that the next answer comes later by the imports
tells nobody anything about the pictures."""
STANDBY = "fieldmark.client.deployment.standby"
ATTEMPTS = 2
_REFUSED, _FORGOTTEN = 3, 4


class Runner:
    """Answers the messages of one site's SuperNode.

    Args:
        home: Home of the site.
        socket: Unix socket of the SuperNode's Runtime API.
        secret: Secret that the SuperNode requires for handing out tasks.
        stand_by: Called after ``WARM_S`` without a message, with the number of notifications that
            need no attention any more.
    """

    def __init__(
        self,
        home: Path,
        socket: Path,
        secret: bytes,
        stand_by: Callable[[int], object] = lambda seen: None,
    ) -> None:
        self._home, self._socket, self._secret = home, socket, secret
        self._warm_up, self._cache_room = WarmUp(home), CacheRoom(home)
        self._last_lent = (Limits(), Resources(cache=""))
        self._handover: Handover | None = None
        self._pending: set[str] = set()
        self._wake, self._stand_by = wake_file(socket), stand_by

    def serve(self) -> None:
        """Answer messages until the process is stopped or its parent dies."""
        parent, answered = os.getppid(), time.monotonic()
        with contextlib.suppress(OSError):
            forget_old(self._home)
        tokens = acquire_tasks(self._socket, self._secret)
        while os.getppid() == parent:
            # Read before the call: a message that comes after it changes the count.
            seen = self._wake.count()
            token = next(tokens)
            if token:
                self._answer(token)
                self._tell_of_pending()
                answered = time.monotonic()
            elif time.monotonic() - answered > WARM_S:
                self._stand_by(seen)
                return
            else:
                self._wake.wait(seen, POLL_S)

    def _tell_of_pending(self) -> None:
        """Say once of each announced run that a person here has to approve."""
        try:
            pending = {run for run, _ in waiting_runs(Site.open(self._home))}
        except FieldmarkError:
            # The answer itself was refused for it, with a reason.
            return
        for run in sorted(pending - self._pending):
            _say(f"run {run} {AWAITS}: fieldmark site approve {self._home}")
        self._pending = pending

    def _answer(self, token: str) -> None:
        task = self._take(token)
        if task is None:
            return
        try:
            if task.fault:
                # Without an answer the SuperNode would wait and send nothing else.
                _say(f"a message could not be put together: {task.fault}")
                task.refuse(bundle=False)
                task.finish(well=False)
            else:
                self._work_on(task)
        except UNTAKEN as error:
            # The SuperNode is gone, or was restarted and has forgotten the task.
            _say(f"a task could not be ended: {type(error).__name__}")
            if not is_forgotten(error):
                # It may have received a part of an answer.
                _say(HALF_HANDED_OVER)

    def _work_on(self, task: Task) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            ended = self._in_child(task, self._work)
            if self._is_over(task, ended):
                return
            if ended.limit:
                _say(f"{ended.limit}; the site answers that it is unavailable")
                answer = self._unavailable(ended.limit)
                if self._is_over(task, self._in_child(task, answer, only_answers=True)):
                    return
                break
            _say(f"the process of message {task.message.metadata.message_id[:12]} died "
                 f"(status {ended.status}), attempt {attempt} of {ATTEMPTS}")  # fmt: skip
        task.refuse(bundle=False)
        task.finish(well=False)

    def _is_over(self, task: Task, ended: Ended) -> bool:
        """Whether a child has answered, or the message can no longer be answered."""
        code = os.WEXITSTATUS(ended.status) if os.WIFEXITED(ended.status) else None
        if ended.handing_over and (ended.limit or code not in (0, _REFUSED, _FORGOTTEN)):
            # The SuperNode would never send a second answer: it waits for the first.
            _say(ended.limit or f"a process died as it answered (status {ended.status})")
            _say(HALF_HANDED_OVER)
            return True
        if ended.limit or code is None:
            return False
        if code in (0, _REFUSED):
            task.finish(well=code == 0)
            self._warm_up.look()
            self._cache_room.look()
        return code in (0, _REFUSED, _FORGOTTEN)

    def _take(self, token: str) -> Task | None:
        """Task with its message; None if the SuperNode was restarted in between."""
        # On a slow line fetching the message takes longer than a task lives without heartbeat.
        heartbeat = heartbeat_of(self._socket, token)
        try:
            return Task.pull(self._socket, token)
        except UNTAKEN as error:
            _say(f"a task could not be taken: {type(error).__name__}")
            return None
        finally:
            # Stop the thread before the fork, which would copy its held locks but not the thread.
            if heartbeat.is_running:
                heartbeat.stop()

    def _in_child(
        self, task: Task, work: Callable[[Task], int], *, only_answers: bool = False
    ) -> Ended:
        """Run ``work`` in a forked child within the site's limits, and wait for it."""
        limits, resources = self._lent()
        if only_answers:
            limits = at_least_to_answer(limits)
        with in_use(resources.cache):
            return self._forked(task, work, limits, resources.device)

    def _forked(
        self, task: Task, work: Callable[[Task], int], limits: Limits, device: str
    ) -> Ended:
        self._handover = handover = Handover()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                die_with_parent()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                # Only in the child: CUDA cannot start in forks of a process that initialized it.
                bound_self(limits, on_gpu=uses_gpu(device))
                status = work(task)
            except BaseException as error:
                # The text goes to the local log only: it may contain a patient's file name.
                _say(f"ended by {type(error).__name__}: {error}")
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        # Started after the fork, because it is a thread.
        heartbeat = task.heartbeat()
        try:
            return wait_for(child, limits, handover)
        finally:
            handover.close()
            if heartbeat.is_running:
                heartbeat.stop()

    def _lent(self) -> tuple[Limits, Resources]:
        """Limits and resources from ``site.toml``; the last readable ones while it is edited."""
        try:
            settings = Site.open(self._home).settings
            self._last_lent = settings.limits, settings.resources
        except FieldmarkError as error:
            _say(f"site.toml cannot be read just now: {error}")
        return self._last_lent

    def _unavailable(self, limit: str) -> Callable[[Task], int]:
        def work(task: Task) -> int:
            from fieldmark.client.app import unavailable

            return self._answered(task, lambda: unavailable(task.message, task.context, limit))

        return work

    def _work(self, task: Task) -> int:
        from fieldmark.client.app import app

        try:
            check_bundle(task.bundle)
        except PeerError as error:
            _say(f"refused: {error}")
            record_refusal(self._home, error)
            self._begin_handover()
            task.refuse(bundle=True)
            return _REFUSED
        return self._answered(task, lambda: app(task.message, task.context))

    def _answered(self, task: Task, answer: Callable[[], Message]) -> int:
        # Overrides the node's own configuration: this process serves one site.
        task.context.node_config = {"site-home": str(self._home)}
        open_in(task.message.content)
        reply = answer()
        tell_of_refusal(reply.content, self._home)
        pack_in(reply.content)
        self._begin_handover()
        try:
            task.push(reply)
        except UNTAKEN as error:
            if not is_forgotten(error):
                raise
            _say("the SuperNode has restarted: the answer is for nobody")
            return _FORGOTTEN
        return 0

    def _begin_handover(self) -> None:
        if self._handover is not None:
            self._handover.begin()


def tell_of_refusal(content: RecordDict, home: Path) -> None:
    """Say for the supervisor that an answer is a refusal, or that there is none.

    Args:
        content: Content of the answer.
        home: Home of the site.
    """
    envelope = content.config_records.get("envelope")
    body = None if envelope is None else envelope.get("body")
    if body == "":
        _say(f"{UNANSWERED}{_why_unanswered(home)}")
    elif isinstance(body, str):
        answer = json.loads(body)
        if str(answer["code"]).startswith("refused"):
            _say(f"{REFUSED}{answer['reason']}")


def _why_unanswered(home: Path) -> str:
    """Why a site could not sign: its log says so, unless the disk that holds it is full."""
    return no_room(home) or f"{home / 'site.log'} says why"


class WarmUp:
    """Fills this process's caches, so that forked children inherit them.

    What a child computes is lost when it exits. Under differential privacy every message would take
    seconds to compute the noise that meets the target and the cost of the plan, and in every run
    the size of the model. All of these depend on recipe and policy alone.

    Args:
        home: Home of the site.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen: tuple[str, float] | None = None

    def look(self) -> bool:
        """Compute what the last announced run will need; returns whether that run is private.

        Errors are ignored here: the run's messages are refused for them, with a reason.
        """
        found = last_announced(self._home)
        if found is None or found[:2] == self._seen:
            return False
        self._seen = found[:2]
        with contextlib.suppress(Exception):
            self._size(found[0])
        try:
            policy = Site.open(self._home).settings.policy
            privacy = protection(policy, found[2])
            if privacy is None:
                return False
            plan = plan_for(privacy, found[2].federation.rounds, found[2].sharers)
            for delta in (privacy.delta, policy.delta):
                epsilon_of_plan(plan, delta)
            choose_rule(plan, policy.cap, policy.delta)
        except Exception:
            # No recipe may crash the runner.
            return False
        return True

    def _size(self, run: str) -> None:
        """Compute the size of the run's model, which every message compares with the limits."""
        from fgvc_core.models.size import kept_bytes, model_size

        held = read_announced(self._home, run)
        if held is not None:
            recipe, class_names = held
            sized = (recipe.model, len(class_names), recipe.data.image_size)
            model_size(*sized)
            kept_bytes(*sized)


def record_refusal(home: Path, error: PeerError) -> None:
    """Record a refused bundle in the site's ledger."""
    from fieldmark.client.privacy.ledger import Ledger

    site = Site.open(home)
    Ledger(site.home, site.data_binding, site.name).note(
        "refused", {"run": "", "round": 0, "what": "bundle", "reason": error.what}
    )


def _say(text: str) -> None:
    print(visible(text), flush=True)


def main() -> None:
    """Entry point of the process."""
    home, socket, secret = sys.argv[1:]
    # The supervisor handles Ctrl-C, and stops this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    # Imported before the first fork, so that children import nothing.
    with importing():
        import torchvision.transforms.v2  # noqa: F401

        import fieldmark.client.app
        import fieldmark.client.stages.private
        import fieldmark.client.workspace  # noqa: F401

        # Pillow imports its formats when it opens the first picture: every child would.
        Image.init()

    _say("ready")
    standby = partial(become, STANDBY, home, socket, secret)
    Runner(
        Path(home), Path(socket), Path(secret).read_bytes(), lambda seen: standby(str(seen))
    ).serve()


if __name__ == "__main__":
    main()
