"""The in-process grid: a Flower grid whose nodes are tasks of worker processes on this machine.

A ServerApp sees the same interface as over a SuperLink: messages are pushed, and replies are pulled
by id. Only a window of replies is computed ahead of what has been pulled, so memory does not grow
with the number of nodes. Replies older than the one that is being pulled (their round has closed
without them) do not count toward the window, which they would otherwise fill forever.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from itertools import islice

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fgvc_core.flower.internals import NodeInfo, Run, empty_run, enter_run, give_id

CLIENT_APP = "fieldmark.client.app:app"
PULL_WAIT_S = 0.05
LOST = 1
"""Error code of a reply whose worker died."""


class InProcessGrid(Grid):
    """A grid over a pool of workers.

    Args:
        executor: Runs the client app; any number of workers.
        node_configs: One configuration per node; node ids are assigned in their order.
        workers: How many tasks run at once.
        client_app: ``module:attribute`` of the client app, imported in the worker.
        run_id: Flower's id of the run.
    """

    def __init__(
        self,
        executor: Executor,
        node_configs: list[dict[str, str | int | float | bool]],
        workers: int,
        client_app: str = CLIENT_APP,
        run_id: int = 1,
    ) -> None:
        self._executor = executor
        self._client_app = client_app
        self._run = empty_run(run_id)
        # In Flower, node 1 is the server.
        self._contexts = {
            node: Context(run_id, node, dict(config), RecordDict(), {})
            for node, config in enumerate(node_configs, start=2)
        }
        self._workers = workers
        self._window = 2 * workers
        self._waiting: OrderedDict[str, Message] = OrderedDict()
        self._running: dict[str, Future[tuple[Message, Context]]] = {}
        self._ready: dict[str, Message] = {}
        self._sent: dict[str, Message] = {}
        self._started: dict[str, float] = {}
        self._seconds: dict[int, float] = {}
        self._pushed: dict[str, int] = {}
        self._count = 0
        self._reading = 0
        enter_run(run_id)

    def set_run(self, run: Run) -> None:
        """Set Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message with Flower's constructor."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; they are always online."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes, without keys."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; returns their ids in order."""
        ids = []
        for message in messages:
            message_id = give_id(message)
            self._waiting[message_id] = message
            self._pushed[message_id] = self._count
            self._count += 1
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are ready; waits briefly if there is none."""
        wanted = list(message_ids)
        self._reading = self._pushed.get(wanted[0], self._reading) if wanted else self._reading
        self._collect(0.0)
        self._dispatch(wanted)
        if not any(message_id in self._ready for message_id in wanted):
            self._collect(PULL_WAIT_S)
            self._dispatch(wanted)
        found = [i for i in wanted if i in self._ready]
        for message_id in found:
            del self._pushed[message_id]
        return [self._ready.pop(message_id) for message_id in found]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until all replies are in or the timeout has passed."""
        open_ids = list(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while open_ids and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(open_ids):
                replies.append(reply)
                open_ids.remove(reply.metadata.reply_to_message_id)
        return replies

    def _dispatch(self, wanted: list[str]) -> None:
        """Start the tasks that fit into the window, the slowest node first.

        If a long task started last, the other workers would be idle at the end of a round.
        """
        for message_id in wanted[:1]:
            # The next reply to be pulled must be started, or the reader would wait forever.
            if message_id in self._waiting and len(self._running) < self._workers + 1:
                self._start(message_id)
        while self._waiting and len(self._running) < self._workers + 1:
            free = self._window - len(self._running) - sum(map(self._is_ahead, self._ready))
            if free <= 0:
                return
            # Only the first few are examined: with ten thousand nodes a full scan is too slow.
            ahead = list(islice(filter(self._is_ahead, self._waiting), free))
            ahead = ahead or list(islice(self._waiting, free))
            self._start(max(ahead, key=self._expected))

    def _is_ahead(self, message_id: str) -> bool:
        return self._pushed[message_id] >= self._reading

    def _expected(self, message_id: str) -> float:
        return self._seconds.get(self._waiting[message_id].metadata.dst_node_id, 0.0)

    def _start(self, message_id: str) -> None:
        message = self._waiting.pop(message_id)
        context = self._contexts[message.metadata.dst_node_id]
        self._sent[message_id] = message
        self._started[message_id] = time.monotonic()
        self._running[message_id] = self._submit(message, context)

    def _submit(self, message: Message, context: Context) -> "Future[tuple[Message, Context]]":
        return self._executor.submit(run_client, self._client_app, message, context)

    def _collect(self, timeout: float) -> None:
        if not self._running:
            return
        done, _ = wait(self._running.values(), timeout, return_when=FIRST_COMPLETED)
        for message_id in [i for i, future in self._running.items() if future in done]:
            future = self._running.pop(message_id)
            message = self._sent.pop(message_id)
            node = message.metadata.dst_node_id
            self._seconds[node] = time.monotonic() - self._started.pop(message_id)
            try:
                reply, self._contexts[node] = future.result()
            except BrokenProcessPool:
                raise
            except Exception as error:
                reply = Message(Error(LOST, type(error).__name__), reply_to=message)
            self._ready[message_id] = reply


def run_client(app_name: str, message: Message, context: Context) -> tuple[Message, Context]:
    """Run a client app on one message, in a worker."""
    module, _, attribute = app_name.partition(":")
    app = getattr(import_module(module), attribute)
    enter_run(context.run_id)
    return app(message, context), context
