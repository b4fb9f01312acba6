"""The requests of a round: what each site is sent, and what it is told of its earlier replies."""

from collections.abc import Iterator
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fgvc_core.flower.records import to_array_record
from fgvc_core.protocol.messages import Phase, Request
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.run_log.checkpoint import RunState
from fieldmark.server.screening.tally import Books
from fieldmark.server.screening.trust import Standing
from fieldmark.server.sites.messages import Exchange
from fieldmark.server.sites.outgoing import Outgoing
from fieldmark.server.strategies import StreamingFedAvg

Asked = list[tuple[Request, Message]]


class Asking:
    """Composes the requests of one run.

    Args:
        exchange: Signs them.
        strategy: Says what travels beside the model.
        outgoing: Makes a model into what travels.
        books: Told what a round's tensors weigh.
        standing: How each site's replies were taken.
        state: Knows the sites' ledgers as last seen.
        keeps: Whether sites keep something from round to round.
    """

    def __init__(
        self,
        exchange: Exchange,
        strategy: StreamingFedAvg,
        outgoing: Outgoing,
        books: Books,
        standing: Standing,
        state: RunState,
        keeps: bool,
    ) -> None:
        self._exchange = exchange
        self._strategy = strategy
        self._outgoing = outgoing
        self._books = books
        self._standing = standing
        self._state = state
        self._keeps = keeps

    def train(self, number: int, cohort: list[str], model: ArrayRecord, grid: Grid) -> Asked:
        """A round's requests, through the strategy's own ``configure_train``."""
        requests: Asked = []
        beside = to_array_record(pack_all(self._strategy.beside()))

        def compose(round_: int, arrays: ArrayRecord, config: ConfigRecord) -> Iterator[Message]:
            mu = config.get("proximal-mu", 0.0)
            outgoing = self._outgoing(arrays)
            outgoing = ArrayRecord({**outgoing, **beside}) if beside else outgoing
            self._books.open(outgoing)
            for site in cohort:
                pair = self._exchange.compose(
                    "train",
                    round_,
                    site,
                    outgoing,
                    mu if isinstance(mu, float) else 0.0,
                    **self._told(site),
                )
                requests.append(pair)
                yield pair[1]

        self._strategy.compose = compose
        list(self._strategy.configure_train(number, model, ConfigRecord(), grid))
        return requests

    def release(self, number: int, phase: Phase, sites: list[str], model: ArrayRecord) -> Asked:
        """Requests for what sites release about their pictures under a model."""
        self._books.open(model)
        return [
            self._exchange.compose("release", number, site, model, phase=phase, **self._told(site))
            for site in sites
        ]

    def score(self, number: int, sites: list[str], model: ArrayRecord, phase: Phase = "") -> Asked:
        """Requests for scores of a model; with a phase, of what a site makes of it, too."""
        outgoing = self._outgoing(model)
        self._books.open(outgoing)
        return [
            self._exchange.compose("score", number, site, outgoing, phase=phase, **self._told(site))
            for site in sites
        ]

    def _told(self, site: str) -> dict[str, Any]:
        standing = self._standing.of(site)
        return {
            "known_head": str(self._state.ledgers.get(site, [0, ""])[1]),
            "base_round": standing["folded"] if self._keeps else 0,
            "notice": standing["notice"],
        }
