"""A grid of two nodes that answer as a test says, and the two sites' keys."""

import numpy as np
from flwr.app import Message

from fgvc_core import __version__
from fgvc_core.flower.internals import enter_run, give_id
from fgvc_core.flower.records import to_array_record, to_content
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.protocol.messages import Reply, Request, seal
from fgvc_core.wire.arrays import pack_all

KEYS = {"site-1": new_key(), "site-2": new_key()}
ARRAYS = to_array_record(pack_all({"w": np.ones(3, np.float32)}))


class Nodes:
    """A grid whose nodes answer the roll call with what ``answers`` makes of it."""

    def __init__(self, *answers):
        self.answers = dict(enumerate(answers, start=2))
        self.sent = {}
        enter_run(1)

    def get_node_ids(self):
        return list(self.answers)

    def push_messages(self, messages):
        ids = [give_id(message) for message in messages]
        self.sent.update(zip(ids, messages, strict=True))
        return ids

    def pull_messages(self, ids):
        replies = []
        for message_id in ids:
            message = self.sent[message_id]
            body = Request.parse(message.content.config_records["envelope"]["body"])
            content = self.answers[message.metadata.dst_node_id](body)
            if content is not None:
                replies.append(Message(content, reply_to=message))
        return replies


def answering(site, key=None, signer=None, tensors=None, **changes):
    key = key or KEYS[site]

    def answer(request):
        packed = pack_all(tensors or {})
        fields = request.model_dump(include={"kind", "run", "round", "nonce", "recipe_digest"})
        reply = Reply(**{
            **fields, "site": site, "code": "ok", "public_key": public_text(key.public_key()),
            "tensors": {n: t.digest() for n, t in packed.items()},
            "version": __version__, "code_digest": code_digest(), **changes,
        })  # fmt: skip
        return to_content(seal(signer or key, reply), to_array_record(packed))

    return answer
