"""The record of each reply: an event, the site's statistics, bytes sent and received."""

from typing import Any

from flwr.app import ArrayRecord

from fgvc_core.flower.records import from_array_record
from fgvc_core.protocol.messages import Reply, Request, Scores
from fgvc_core.protocol.stages import Stage, stage_of
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.run_log.events import EventLog
from fieldmark.server.screening.checks import Screened, reply_bytes
from fieldmark.server.sites.messages import Answer


class Tally:
    """Counts and records the replies of one run.

    Args:
        state: The run's state; its site statistics are kept up to date.
        events: The event log.
    """

    def __init__(self, state: RunState, events: EventLog) -> None:
        self._state = state
        self._events = events
        self._sent = 0
        self._received = 0
        self._arrays: tuple[ArrayRecord | None, int] = (None, 0)
        self._counted: list[tuple[str, int]] = []

    def open(self, arrays: ArrayRecord) -> None:
        """Begin a stage that sends these tensors to each site."""
        self._arrays = arrays, reply_bytes("", b"", from_array_record(arrays))

    def close(self) -> tuple[int, int]:
        """Add the bytes since the last call to the run's total; returns (received, sent)."""
        received, sent = self._received, self._sent
        self._state.bytes_up += received
        self._state.bytes_down += sent
        self._sent = self._received = 0
        self._counted.clear()
        return received, sent

    def void(self) -> None:
        """Close a round of which nothing was used: its replies are no site's rounds."""
        for site, rounds in self._counted:
            figures = self._figures(site)
            figures["rounds"] -= rounds
            figures["contributed"] -= 1
        self.close()

    def note(
        self,
        answer: Answer,
        screened: Screened | None,
        reason: str | None,
        figures: dict[str, float] | None = None,
        event: str = "reply",
    ) -> None:
        """Record one answer, accepted or refused."""
        request = answer.request
        reply = screened.reply if screened else None
        down = self._sent_bytes(request) if event == "reply" else 0
        up = screened.nbytes if screened else 0
        self._sent += down
        self._received += up
        self._events.emit(
            event,
            round=request.round,
            kind=request.kind,
            **({"phase": request.phase} if request.phase else {}),
            site=request.site,
            accepted=reason is None,
            reason=reason,
            bytes_up=up,
            bytes_down=down,
            seconds=round(answer.seconds, 4),
            work_seconds=float(reply.seconds) if reply else None,
            examples=reply.examples if reply else None,
            loss=reply.loss if reply else None,
            val_top1=share(reply.scores if reply else None),
            **({"figures": figures} if figures else {}),
        )
        self._add(request, reply, up, down)

    def left_out(self, site: str, stage: Stage | None) -> None:
        """Record an accepted release that was rejected later; stage None: the declared units."""
        figures = self._figures(site)
        figures["refused"] += 1
        figures["rounds"] -= stage is not None and stage.closes_round
        figures["contributed"] = figures.get("contributed", 0) - (stage is not None)

    def _figures(self, site: str) -> dict[str, Any]:
        return self._state.sites.setdefault(
            site,
            {
                **{"rounds": 0, "contributed": 0, "refused": 0, "bytes_up": 0, "bytes_down": 0},
                "examples": None,
            },
        )

    def _add(self, request: Request, reply: Reply | None, up: int, down: int) -> None:
        figures = self._figures(request.site)
        figures["bytes_up"] += up
        figures["bytes_down"] += down
        figures["refused"] += reply is None
        if reply is not None:
            figures["version"], figures["code"] = reply.version, reply.code_digest
            # Scores count as answers, too: they select the best model.
            figures["answered"] = figures.get("answered", 0) + 1
            bare = reply.privacy is None
            figures["unprotected"] = figures.get("unprotected", 0) + bare
        stage = stage_of(request)
        if reply is not None and stage.carries not in ("nothing", "ready"):
            figures["rounds"] += stage.closes_round
            self._counted.append((request.site, int(stage.closes_round)))
            # A checkpoint of an earlier version has no count.
            figures["contributed"] = figures.get("contributed", figures["rounds"] - 1) + 1
            # Under differential privacy the declared units are the weight, not a count; in a masked
            # sum no site's weight is known.
            known = reply.privacy is None and stage.carries != "masked"
            figures["examples"] = reply.examples if known else None

    def _sent_bytes(self, request: Request) -> int:
        return len(request.model_dump_json()) + self._arrays[1]


def share(scores: Scores | None) -> float | None:
    """Top-1 of a site's scores, 0 to 1, or None if it scored nothing."""
    return scores.correct / scores.examples if scores and scores.examples else None
