"""The screening of a round's replies, one at a time, and of late replies to earlier rounds.

A reply that arrives after its round was closed is recorded, then dropped or mixed in. Mixing in
(Nguyen et al. 2022, FedBuff, section 3, https://arxiv.org/abs/2106.06639) adds the *update*, the
reply minus the model that it was computed from, to the model that is now sent, with its weight
divided by sqrt(1 + rounds late).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from fgvc_core.errors import PeerError
from fgvc_core.flower.records import SiteFault, words_of_a_site
from fgvc_core.protocol.messages import Reply
from fgvc_core.protocol.stages import TRAIN, stage_of
from fgvc_core.wire.arrays import TensorSpec
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.screening.checks import Screened, Screening, SiteRefusal
from fieldmark.server.screening.comparison import UnsoundUpdate, UpdateHistory
from fieldmark.server.screening.tally import Tally
from fieldmark.server.screening.trust import SiteTrust
from fieldmark.server.sites.messages import ROUNDS_LATE, Answer, Exchange
from fieldmark.server.strategies import SoundReply, Tensors


class ReplyScreening:
    """Screens the answers of one run.

    Args:
        state: The run's state.
        screening: Checks authenticity and validity.
        tally: Records each answer.
        trust: Records refused replies by site.
        deadline_s: Of a round, in seconds, for messages.
    """

    def __init__(
        self,
        state: RunState,
        screening: Screening,
        tally: Tally,
        trust: SiteTrust,
        deadline_s: float,
    ) -> None:
        self._state = state
        self._screening = screening
        self._tally = tally
        self._trust = trust
        self._deadline_s = deadline_s
        self.refusing: dict[str, str] = {}
        """Site -> its reason, of sites whose last answer in the run was a refusal by policy."""
        self.refusals: dict[str, str] = {}
        """Site -> the reason by its own policy, in this stage."""
        self.unsound: set[str] = set()
        """Sites whose reply was refused for its contents, in this stage."""
        self.declined: dict[str, str] = {}
        """Site -> its reason, of sites that refuse this stage's request whenever it is repeated."""

    def begin(self) -> None:
        """Forget the refusals of the last stage."""
        self.refusals, self.unsound, self.declined = {}, set(), {}

    def sound(
        self,
        answers: Iterator[Answer],
        accepted: list[Screened],
        specs: dict[str, TensorSpec] | None = None,
    ) -> Iterator[SoundReply]:
        """The accepted updates among answers; ``accepted`` collects all accepted bodies."""
        for answer in answers:
            screened = self._screen(answer, specs)
            del answer
            if screened is None:
                continue
            # Keep the body only: the tensors are aggregated at once and freed.
            accepted.append(replace(screened, update=None))
            update = screened.update
            del screened
            if update is not None:
                yield update
            # Free the memory before the next answer is fetched and screened.
            del update

    def late(self, answer: Answer) -> SoundReply | None:
        """The update of a late reply, if accepted; its scores no longer count."""
        screened = self._screen(answer, None, event="late_reply")
        return screened.update if screened else None

    def _screen(
        self, answer: Answer, specs: dict[str, TensorSpec] | None, event: str = "reply"
    ) -> Screened | None:
        site = answer.request.site
        if answer.message is None:
            if answer.stalled:
                self._trust.unsound(site, answer.refusal)
            late = f"No reply within deadline_s = {self._deadline_s:g}."
            self._tally.note(answer, None, answer.refusal or late, event=event)
            return None
        try:
            # A reply to a later round may have arrived before this one.
            known = self._state.ledgers.get(site, [0, ""])
            length = int(known[0]) if event == "reply" else 0
            with words_of_a_site():
                screened = self._screening.screen(
                    answer.message, answer.request, specs, length, answer.digests
                )
        except PeerError as error:
            if isinstance(error, SiteRefusal) and error.reply.code == "refused-policy":
                self.refusals[site] = self.refusing[site] = error.reply.reason
            if isinstance(error, SiteRefusal) and error.reply.code.startswith("refused-"):
                self.declined[site] = error.reply.reason
            own = isinstance(error, SiteFault) or not answer.message.has_error()
            if own and not isinstance(error, SiteRefusal):
                self._trust.unsound(site, error.what)
                self.unsound.add(site)
            figures = error.figures if isinstance(error, UnsoundUpdate) else None
            self._tally.note(answer, None, error.what, figures, event)
            return None
        self.refusing.pop(site, None)
        if screened.update is not None:
            self._trust.sound(site)
            if stage_of(answer.request) is TRAIN:
                self._state.claims.setdefault(site, screened.reply.examples)
        self._remember(screened.reply)
        self._tally.note(answer, screened, None, screened.figures, event)
        return screened

    def _remember(self, reply: Reply) -> None:
        """Record the ledger's state and the run's privacy cost that a reply states."""
        if reply.ledger_length >= int(self._state.ledgers.get(reply.site, [0, ""])[0]):
            self._state.ledgers[reply.site] = [reply.ledger_length, reply.ledger_head]
        if reply.privacy is not None:
            self._state.privacy[reply.site] = reply.privacy.model_dump()


class LateReplies:
    """Finds replies to earlier rounds, and records or mixes them in.

    Args:
        mix: Whether updates are mixed into the next round; else they are dropped.
        exchange: Finds them.
        replies: Screens them.
        tally: Records them.
        history: Compares updates with earlier ones.
        rate: Round -> (examples -> mean learning rate of such a site's steps in it).
    """

    def __init__(
        self,
        mix: bool,
        exchange: Exchange,
        replies: ReplyScreening,
        tally: Tally,
        history: UpdateHistory,
        rate: Callable[[int], Callable[[float], float]],
    ) -> None:
        self._mix = mix
        self._exchange = exchange
        self._replies = replies
        self._tally = tally
        self._history = history
        self._rate = rate
        self._sent: dict[int, Tensors] = {}

    def take(self, number: int, sent: Tensors) -> list[SoundReply]:
        """Look for late replies before a round begins.

        Args:
            number: The round that is about to begin.
            sent: The model that it sends.

        Returns:
            Updates to mix into it; none if they are dropped.
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
                self._replies.late(answer)
                continue
            then = self._sent.get(answer.request.round)
            if then is None:
                reason = f"It arrived after round {answer.request.round} was closed."
                self._tally.note(answer, None, reason, event="late_reply")
                continue
            reply = self._screened(answer, then)
            if reply is not None:
                moved = {name: sent[name] + (a - then[name]) for name, a in reply.tensors.items()}
                stale = number - answer.request.round
                yield SoundReply(reply.site, reply.weight / math.sqrt(1 + stale), moved)

    def _screened(self, answer: Answer, then: Tensors) -> SoundReply | None:
        self._history.begin(then, self._rate(answer.request.round))
        return self._replies.late(answer)
