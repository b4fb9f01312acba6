"""Replies that arrive after their round was closed: recorded, then dropped or mixed in.

Mixed in (Nguyen et al. 2022, FedBuff, section 3, https://arxiv.org/abs/2106.06639) it is the
*update* that counts, the reply minus the model that it was computed from, added to the
model that is now sent, with its weight divided by sqrt(1 + rounds late).
"""

import math
from collections.abc import Callable, Iterator

from fieldmark.server.screening.comparison import UpdateHistory
from fieldmark.server.screening.replies import Intake
from fieldmark.server.screening.tally import Books
from fieldmark.server.sites.messages import ROUNDS_LATE, Answer, Exchange
from fieldmark.server.strategies import SoundReply, Tensors


class LateReplies:
    """What becomes of late replies in one run.

    Args:
        mix: Whether they are mixed in; else they are dropped.
        exchange: Finds them.
        intake: Screens them.
        books: Records them.
        history: What updates are compared with.
        rate: Round -> (examples -> mean learning rate of such a site's steps in it).
    """

    def __init__(
        self,
        mix: bool,
        exchange: Exchange,
        intake: Intake,
        books: Books,
        history: UpdateHistory,
        rate: Callable[[int], Callable[[float], float]],
    ) -> None:
        self._mix = mix
        self._exchange = exchange
        self._intake = intake
        self._books = books
        self._history = history
        self._rate = rate
        self._sent: dict[int, Tensors] = {}

    def take(self, number: int, sent: Tensors) -> list[SoundReply]:
        """Look for late replies before a round begins.

        Args:
            number: The round that is about to begin.
            sent: The model that it sends.

        Returns:
            Updates to mix into it; none where they are dropped.
        """
        found = list(self._found(number, sent))
        if self._mix:
            self._sent[number] = sent
            for old in [n for n in self._sent if number - n >= ROUNDS_LATE]:
                del self._sent[old]
        return found

    def _found(self, number: int, sent: Tensors) -> Iterator[SoundReply]:
        for answer in self._exchange.late(number):
            if answer.message is None:
                self._intake.late(answer)
                continue
            then = self._sent.get(answer.request.round)
            if then is None:
                reason = f"It arrived after round {answer.request.round} was closed."
                self._books.note(answer, None, reason, event="late_reply")
                continue
            reply = self._screened(answer, then)
            if reply is not None:
                moved = {name: sent[name] + (a - then[name]) for name, a in reply.tensors.items()}
                stale = number - answer.request.round
                yield SoundReply(reply.site, reply.weight / math.sqrt(1 + stale), moved)

    def _screened(self, answer: Answer, then: Tensors) -> SoundReply | None:
        self._history.begin(then, self._rate(answer.request.round))
        return self._intake.late(answer)
