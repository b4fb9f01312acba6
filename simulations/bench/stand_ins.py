"""A grid of stand-in sites that answer from prepared tensors, immediately and in this process."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flwr.app import Message

from fgvc_core.flower.records import to_array_record, to_content
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import public_text, read_private
from fgvc_core.protocol.messages import Kind, Reply, Request, seal
from fgvc_core.wire.arrays import PackedTensor
from fieldmark.server.home import CoordinatorHome
from fieldmark.simulations.grid import InProcessGrid

Parts = dict[str, PackedTensor]

_ECHOED = ("kind", "run", "round", "nonce", "recipe_digest")


class StandIns(InProcessGrid):
    """Signed answers of nodes that do no work; those of one number send the same tensors.

    Args:
        home: Of the run; ``<site>.key`` is beside it.
        kind: Requests of this kind are answered with tensors.
        distinct: Numbers; a node's is its id modulo this.
    """

    def __init__(self, home: CoordinatorHome, kind: Kind, distinct: int) -> None:
        self.site_keys = {n: read_private(home.run_dir / f"{n}.key") for n in home.allow_list}
        names = sorted(self.site_keys)
        # The executor is never used: answers are created when they are pulled.
        super().__init__(ThreadPoolExecutor(1), [{"name": name} for name in names], 1)
        self._names = dict(zip(self._contexts, names, strict=True))
        self._kind, self._distinct = kind, distinct
        # Precomputed, because hashing its own tensors is the site's cost.
        self._digests = [
            {name: part.digest() for name, part in self.parts(number).items()}
            for number in range(distinct)
        ]

    def parts(self, number: int) -> Parts:
        """The tensors of a number, read anew each time."""
        raise NotImplementedError

    def figures(self, node: int) -> dict[str, Any]:
        """Further fields of a node's replies."""
        return {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Create the answers immediately."""
        return [self._answer(self._waiting.pop(i)) for i in message_ids]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        name = self._names[node]
        request = Request.parse(str(message.content.config_records["envelope"]["body"]))
        assert isinstance(request, Request)
        number = node % self._distinct
        packed = self.parts(number) if request.kind == self._kind else {}
        reply = Reply(
            **{field: getattr(request, field) for field in _ECHOED},
            **self.figures(node),
            site=name,
            code="ok",
            public_key=public_text(self.site_keys[name].public_key()),
            code_digest=code_digest(),
            tensors=self._digests[number] if packed else {},
        )
        content = to_content(seal(self.site_keys[name], reply), to_array_record(packed))
        return Message(content, reply_to=message)
