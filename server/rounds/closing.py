"""After the last round: its model's scores, and what each site makes of the best one."""

from flwr.app import ArrayRecord

from fgvc_core.errors import RunFailed
from fgvc_core.flower.records import to_array_record
from fgvc_core.wire.arrays import pack_all
from fieldmark.server.rounds.best_model import personal_scores
from fieldmark.server.rounds.cohort import draw_cohort
from fieldmark.server.rounds.context import Parts
from fieldmark.server.rounds.requests import Asked
from fieldmark.server.screening.checks import Screened

CLOSING_SITES = 100
"""Most sites that are asked to score the last model: of a thousand, a hundred say enough."""


def closing_scores(parts: Parts, sites: list[str], arrays: ArrayRecord) -> list[Screened]:
    """Scores of the last model, from every site or from a drawn hundred of very many."""
    parts.books.reset()
    number = parts.state.round
    asked = parts.standing.in_use(sites)
    if len(asked) > CLOSING_SITES:
        share = CLOSING_SITES / len(asked)
        asked = draw_cohort(asked, share, parts.recipe.seed, number + 1)
    return _scores(parts, parts.asking.score(number, asked, arrays))


def personalise(parts: Parts, sites: list[str], arrays: ArrayRecord) -> None:
    """Each site fine-tunes the best model for itself, and says what it gained."""
    parts.books.reset()
    number = parts.state.round
    if not parts.local:
        # What stays at the sites goes with the last round; else it is the best model.
        best, _ = parts.checkpoints.read("best")
        number, arrays = parts.state.best_round, to_array_record(pack_all(best))
    asked = parts.standing.in_use(sites)
    replies = _scores(parts, parts.asking.score(number, asked, arrays, "personal"))
    parts.state.personal = personal_scores([screened.reply for screened in replies])
    parts.events.emit("personalised", sites=len(parts.state.personal))


def _scores(parts: Parts, requests: Asked) -> list[Screened]:
    replies: list[Screened] = []
    answers = parts.exchange.ask(requests, parts.recipe.federation.deadline_s)
    for _ in parts.intake.sound(answers, replies):
        raise RunFailed("A scoring reply carried an update.")
    parts.books.close()
    return replies
