"""From answers to sound updates: screened one at a time, refused ones recorded and left out."""

from collections.abc import Iterator
from dataclasses import replace

from fgvc_core.errors import PeerError
from fgvc_core.flower.records import SiteFault, words_of_a_site
from fgvc_core.protocol.messages import Reply
from fgvc_core.wire.arrays import TensorSpec
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.screening.checks import Screened, Screening, SiteRefusal
from fieldmark.server.screening.comparison import UnsoundUpdate
from fieldmark.server.screening.tally import Books
from fieldmark.server.screening.trust import Standing
from fieldmark.server.sites.messages import Answer
from fieldmark.server.strategies import SoundReply


class Intake:
    """Takes in the answers of one run.

    Args:
        state: The run's state.
        screening: Says who sent a reply and whether it is sound.
        books: Where each is written down.
        standing: What becomes of a site whose replies are not.
        deadline_s: Of a round, for the record.
    """

    def __init__(
        self,
        state: RunState,
        screening: Screening,
        books: Books,
        standing: Standing,
        deadline_s: float,
    ) -> None:
        self._state = state
        self._screening = screening
        self._books = books
        self._standing = standing
        self._deadline_s = deadline_s
        self.refusals: dict[str, str] = {}
        """Site -> its own policy's reason, in this round."""
        self.unsound: set[str] = set()
        """Sites whose reply came and was refused for what it was, in this round or phase."""

    def sound(
        self,
        answers: Iterator[Answer],
        accepted: list[Screened],
        specs: dict[str, TensorSpec] | None = None,
    ) -> Iterator[SoundReply]:
        """The sound updates among answers; ``accepted`` collects all sound bodies."""
        for answer in answers:
            screened = self._screen(answer, specs)
            if screened is None:
                continue
            # The tensors are folded in and forgotten; what is kept is the body.
            accepted.append(replace(screened, update=None))
            update = screened.update
            del screened
            if update is not None:
                yield update
            # Not held on to while the next answer is fetched and screened.
            del update

    def late(self, answer: Answer) -> SoundReply | None:
        """A late reply's update, if it is sound; its scores count for nothing any more."""
        screened = self._screen(answer, None, event="late_reply")
        return screened.update if screened else None

    def _screen(
        self, answer: Answer, specs: dict[str, TensorSpec] | None, event: str = "reply"
    ) -> Screened | None:
        site = answer.request.site
        if answer.message is None:
            if answer.stalled:
                self._standing.unsound(site, answer.refusal)
            late = f"No reply within deadline_s = {self._deadline_s:g}."
            self._books.note(answer, None, answer.refusal or late, event=event)
            return None
        try:
            # A late reply may have been overtaken by one to a later round.
            known = self._state.ledgers.get(site, [0, ""])
            length = int(known[0]) if event == "reply" else 0
            with words_of_a_site():
                screened = self._screening.screen(
                    answer.message, answer.request, specs, length, answer.digests
                )
        except PeerError as error:
            if isinstance(error, SiteRefusal) and error.reply.code == "refused-policy":
                self.refusals[site] = error.reply.reason
            own = isinstance(error, SiteFault) or not answer.message.has_error()
            if own and not isinstance(error, SiteRefusal):
                self._standing.unsound(site, error.what)
                self.unsound.add(site)
            figures = error.figures if isinstance(error, UnsoundUpdate) else None
            self._books.note(answer, None, error.what, figures, event)
            return None
        if screened.update is not None:
            self._standing.sound(site)
            if answer.request.kind == "train" and not answer.request.phase:
                self._state.claims.setdefault(site, screened.reply.examples)
        self._remember(screened.reply)
        self._books.note(answer, screened, None, screened.figures, event)
        return screened

    def _remember(self, reply: Reply) -> None:
        """The site's ledger as it was when it answered, and what the run has cost there."""
        if reply.ledger_length >= int(self._state.ledgers.get(reply.site, [0, ""])[0]):
            self._state.ledgers[reply.site] = [reply.ledger_length, reply.ledger_head]
        if reply.privacy is not None:
            self._state.privacy[reply.site] = reply.privacy.model_dump()
