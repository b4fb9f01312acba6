"""From what arrived to what leaves: check the coordinator, do the work, pass the gate."""

import errno
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgvc_core.errors import FieldmarkError, PeerError, PolicyRefusal
from fgvc_core.files import PrivateLogFile
from fgvc_core.protocol.envelope import Sealed, unseal
from fgvc_core.protocol.messages import Code, Reply, Request
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import PackedTensor, digest_all
from fgvc_core.words import OneRecord
from fieldmark.client.announced import recall, remember
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.reading import check_class_names, check_knowledge
from fieldmark.client.recipe_limits import check_lent
from fieldmark.client.request_rate import RequestRate
from fieldmark.client.site import Site

AnswerWithoutPrivacy = Callable[
    [Site, Request, Recipe, tuple[str, ...], Mapping[str, PackedTensor]],
    tuple[Reply, dict[str, Any]],
]


@dataclass(frozen=True)
class Incoming:
    """What arrived: a signed body and packed tensors, nothing of it checked yet."""

    sealed: Sealed
    tensors: dict[str, PackedTensor]


def answer(home: Path, incoming: Incoming) -> Departure | None:
    """Answer a request; never raises.

    Returns:
        What may leave, or None where the home could not be opened, the request is not
        the coordinator's, or it is one too many today: then nobody is answered.
    """
    log = _site_log(home)
    found = _authentic(home, incoming, log)
    if found is None:
        return None
    site, request = found
    try:
        # A simulated site is asked by its own user.
        rate = RequestRate(home, site.settings.limits, log)
        if site.rows is None and not rate.admits(request.kind, datetime.now(UTC).date()):
            return None
    except Exception:
        log.exception("a request was not answered")
        return None
    return _guarded(site, request, log, lambda: _work(site, request, incoming))


def unavailable(home: Path, incoming: Incoming, limit: str) -> Departure | None:
    """Answer that nothing could be computed: the process that worked on it ran into a limit.

    Args:
        home: The site's.
        incoming: What that process was to answer.
        limit: In words, for the site's own log.

    Returns:
        As :func:`answer`.
    """
    log = _site_log(home)
    found = _authentic(home, incoming, log)
    if found is None:
        return None
    site, request = found

    def work() -> Departure:
        raise _LimitReached(limit)

    return _guarded(site, request, log, work)


class _LimitReached(Exception):
    """A process was ended because it took more than the site lends."""


def _authentic(home: Path, incoming: Incoming, log: logging.Logger) -> tuple[Site, Request] | None:
    """The opened home and the coordinator's request to it; None, and a line, where it is not."""
    try:
        site = Site.open(home)
        digests = digest_all(incoming.tensors)
        request = unseal(Request, incoming.sealed, site.coordinator, digests)
    except FieldmarkError as error:
        log.error("a request was not answered: %s", error)
        return None
    except Exception:
        # The boundary of the site: whatever it was, its text stays here.
        log.exception("a request was not answered")
        return None
    if request.site != site.name and (request.kind != "roll_call" or request.site):
        log.error("a request for site '%s' was not answered", request.site)
        return None
    return site, request


def _work(site: Site, request: Request, incoming: Incoming) -> Departure:
    # Imported here: a roll call of a site that cannot take part costs no torch.
    from fieldmark.client.encoding import UpdateEncoder, check_weight
    from fieldmark.client.stages.private import answer_protected
    from fieldmark.client.workspace import echo, read_announcement

    gate = Gate(site)
    if request.notice:
        _site_log(site.home).warning("the last reply was refused: %s", request.notice)
    if request.kind == "roll_call":
        recipe = read_announcement(request)
        check_knowledge(site, recipe)
        if site.rows is None:
            check_class_names(request.class_names)
            check_lent(site, recipe, request.class_names)
        if recipe.scenario is not None and site.rows is None:
            raise PolicyRefusal(
                "The recipe has a [scenario]: faults and attacks are for simulated sites.",
                remedy="Take [scenario] out of the recipe.",
            )
        if recipe.pretrain.method != "none":
            from fgvc_core.losses.self_supervised import self_supervised_loss

            # A site without the extra is out before the first round, not in it.
            self_supervised_loss(recipe.pretrain.method, recipe.pretrain.temperature)
        remember(site.home, request, gate.ledger.is_unfinished)
        protected = gate.announce(request, recipe) is not None
        reply = Reply(
            **echo(site, request),
            code="ok",
            public_key=site.public_key,
            examples=site.settings.data.units if protected else 0,
        )
        return gate.release(request, reply, {})
    recipe, class_names = recall(site.home, request)
    check_knowledge(site, recipe)
    if site.rows is None:
        # Once more: the limits may be others than when the run was announced.
        check_lent(site, recipe, class_names)
    check_weight(incoming.tensors, recipe.wire)
    privacy = gate.admit(request, recipe)
    if privacy is not None:
        return answer_protected(site, gate, request, recipe, privacy, class_names, incoming.tensors)
    if request.kind == "release":
        from fieldmark.client.stages.statistics import answer_statistics

        reply, tensors = answer_statistics(site, request, recipe, class_names, incoming.tensors)
        return gate.release(request, reply, tensors)
    encode = UpdateEncoder(site.home, request, recipe, incoming.tensors)
    if request.kind == "train":
        # What comes back is what was sent, trained.
        gate.check_leaving(encode.received, encode)
    work = _part_of_the_run(request)
    reply, tensors = work(site, request, recipe, class_names, incoming.tensors)
    return gate.release(request, reply, tensors, encode)


def _part_of_the_run(request: Request) -> "AnswerWithoutPrivacy":
    """What answers a request to train or to score: rounds, or what comes before or after them.

    Raises:
        PeerError: if there is no such part.
    """
    from fieldmark.client.stages.personal import answer_personal
    from fieldmark.client.stages.pretrain import answer_pretraining
    from fieldmark.client.workspace import answer_round

    parts: dict[tuple[str, str], AnswerWithoutPrivacy] = {
        ("train", ""): answer_round,
        ("score", ""): answer_round,
        ("train", "pretrain"): answer_pretraining,
        ("score", "personal"): answer_personal,
    }
    found = parts.get((request.kind, request.phase))
    if found is None:
        raise PeerError(f"There is no '{request.kind}' of phase '{request.phase}'.")
    return found


def _guarded(
    site: Site, request: Request, log: logging.Logger, work: Callable[[], Departure]
) -> Departure | None:
    code: Code
    refusal: FieldmarkError | None = None
    try:
        return work()
    except PolicyRefusal as error:
        log.error("round %d refused: %s", request.round, error)
        code, reason, refusal = "refused-policy", error.what, error
    except PeerError as error:
        log.error("round %d refused: %s", request.round, error)
        code, reason, refusal = "refused-request", error.what, error
    except Exception as error:
        # The boundary of the site: whatever it was, its text stays here.
        log.exception("round %d failed%s", request.round, _limit_in_words(error))
        code, reason = "unavailable", ""
    try:
        from fieldmark.client.workspace import echo

        named = site.public_key if request.kind == "roll_call" else ""
        reply = Reply(**echo(site, request), code=code, reason=reason[:500], public_key=named)
        return Gate(site).refuse(request, reply, refusal)
    except Exception:
        log.exception("round %d could not even be refused", request.round)
        return None


def _limit_in_words(error: Exception) -> str:
    """Which limit a fault of memory or disk may be of, for the site's log; empty for others."""
    # torch has its own error for a GPU's memory, and a plain RuntimeError for the machine's.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return ": memory has ended (the machine's, or limits.memory_gb)"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return ": a file became too large (limits.file_gb)"
    return ""


def _site_log(home: Path) -> logging.Logger:
    log = logging.getLogger(f"fieldmark.site.{home}")
    if not log.handlers and (home / "site.toml").is_file():
        handler = PrivateLogFile(
            home / "site.log", maxBytes=1_000_000, backupCount=3, delay=True, encoding="utf-8"
        )
        handler.setFormatter(OneRecord("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    return log
