"""Answering a message: authenticate the request, do the work, and pass the reply through the gate.

A request of an announced and admitted run becomes a :class:`Job`; its stage selects the handler
(:mod:`fieldmark.client.stages`).
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgvc_core import __version__
from fgvc_core.errors import FieldmarkError, PeerError, PolicyRefusal
from fgvc_core.files import PrivateLogFile
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.causes import Cause
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.messages import Code, Reply, Request, Sealed, fixed_seconds, unseal
from fgvc_core.protocol.stages import OWN_SUMS, ROLL_CALL, Stage, stage_of
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import PackedTensor, digest_all
from fgvc_core.words import OneRecord
from fieldmark.client.announced import read_announcement, recall, remember
from fieldmark.client.causes import LimitReached, cause_of, failure_in_words
from fieldmark.client.encoding import UpdateEncoder, check_weight
from fieldmark.client.privacy.admission import ApprovalMissing
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.outbox import SUMS, Outbox
from fieldmark.client.reading import check_class_names, check_knowledge
from fieldmark.client.recipe_limits import check_lent, kept_in_words
from fieldmark.client.request_rate import RequestRate
from fieldmark.client.site import Site


@dataclass(frozen=True)
class Job:
    """One request of an announced run.

    Attributes:
        site: The site.
        request: The request.
        recipe: Recipe of the run.
        privacy: Differential privacy of the answer, or None.
        class_names: As announced.
        received: Tensors of the request; their signed digests match, but dtypes and shapes are not
            checked yet.
    """

    site: Site
    request: Request
    recipe: Recipe
    privacy: PrivacySettings | None
    class_names: tuple[str, ...]
    received: Mapping[str, PackedTensor]

    @property
    def stage(self) -> Stage:
        """Stage of the run that the request belongs to.

        Raises:
            PeerError: if there is no such stage.
        """
        return stage_of(self.request)


def echo(site: Site, request: Request) -> dict[str, Any]:
    """Reply fields that repeat the request."""
    return {
        "kind": request.kind,
        "run": request.run,
        "round": request.round,
        "site": site.name,
        "nonce": request.nonce,
        "recipe_digest": request.recipe_digest,
        "version": __version__,
        "code_digest": code_digest(),
    }


@dataclass(frozen=True)
class Incoming:
    """Received message: signed body and packed tensors, not checked yet."""

    sealed: Sealed
    tensors: dict[str, PackedTensor]


def answer(home: Path, incoming: Incoming) -> Departure | None:
    """Answer a request; never raises.

    Returns:
        The reply, or None if the home cannot be opened, the request is not the coordinator's, or a
        daily limit is exceeded: then no signed reply is sent.
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
        # The boundary of the site: no exception's text may leave.
        log.exception("a request was not answered")
        return None
    return _guarded(site, request, log, lambda: _work(site, request, incoming))


def unavailable(home: Path, incoming: Incoming, limit: str) -> Departure | None:
    """Answer ``unavailable`` after the worker process hit a resource limit.

    Args:
        home: Home of the site.
        incoming: The message that the process was working on.
        limit: The limit in words, for the site's own log.

    Returns:
        As :func:`answer`.
    """
    log = _site_log(home)
    found = _authentic(home, incoming, log)
    if found is None:
        return None
    site, request = found

    def work() -> Departure:
        raise LimitReached(limit)

    return _guarded(site, request, log, work)


def _authentic(home: Path, incoming: Incoming, log: logging.Logger) -> tuple[Site, Request] | None:
    """Site and request; None, with a line in the log, if the home or the request is invalid."""
    try:
        site = Site.open(home)
        digests = digest_all(incoming.tensors)
        request = unseal(Request, incoming.sealed, site.coordinator, digests)
    except FieldmarkError as error:
        log.error("a request was not answered: %s", error)
        return None
    except Exception:
        # The boundary of the site: no exception's text may leave.
        log.exception("a request was not answered")
        return None
    # A roll call may leave the site open: it is broadcast.
    if request.site != site.name and (request.kind != ROLL_CALL.kind or request.site):
        log.error("a request for site '%s' was not answered", request.site)
        return None
    return site, request


def _work(site: Site, request: Request, incoming: Incoming) -> Departure:
    gate = Gate(site)
    # With every message: a coordinator that stays away from a sum may never ask for another.
    if Outbox(site.home).holds(SUMS):
        from fieldmark.client.privacy.masked import forget_old

        forget_old(site.home)
    if request.notice:
        _site_log(site.home).warning("the last reply was refused: %s", request.notice)
    if request.kind == ROLL_CALL.kind:
        return _answer_roll_call(gate, site, request)
    recipe, class_names = recall(site.home, request)
    check_knowledge(site, recipe)
    if site.rows is None:
        # Checked again: the limits may have changed since the announcement.
        check_lent(site, recipe, class_names)
    check_weight(incoming.tensors, recipe.wire)
    privacy = gate.admit(request, recipe)
    if recipe.secure is None and (request.cohort or request.ready):
        raise PeerError("The run's recipe has no [secure], and the request is for a masked sum.")
    job = Job(site, request, recipe, privacy, class_names, incoming.tensors)
    return _answer(gate, job) if privacy is None else _answer_privately(gate, job, privacy)


def check_run(site: Site, recipe: Recipe, class_names: tuple[str, ...]) -> None:
    """Check an announced run against this site, before policy and budget; nothing is computed.

    Raises:
        PolicyRefusal: if the site does not take part in such a run.
        PeerError: if its class names are wrong.
    """
    check_knowledge(site, recipe)
    if site.rows is None:
        check_class_names(class_names)
        check_lent(site, recipe, class_names)
    if recipe.scenario is not None and site.rows is None:
        raise PolicyRefusal(
            "The recipe has a [scenario]: faults and attacks are for simulated sites.",
            remedy="Take [scenario] out of the recipe.",
        )
    if recipe.pretrain.method != "none":
        # Lazy import: it needs torch.
        from fgvc_core.training.self_supervised import self_supervised_loss

        # Fail now, not in round 1, where an optional dependency is missing.
        self_supervised_loss(recipe.pretrain.method, recipe.pretrain.temperature)


def _answer_roll_call(gate: Gate, site: Site, request: Request) -> Departure:
    """Accept or refuse an announced run; nothing is computed."""
    recipe = read_announcement(request)
    check_run(site, recipe, request.class_names)
    if site.rows is None and recipe.model.train not in ("all", "head", "norm"):
        # Maps of pictures are large: people here can read of it before the first is computed.
        kept = kept_in_words(site, recipe, request.class_names)
        _site_log(site.home).warning("run %s ('%s'): %s", request.run, recipe.name, kept)
    ledger = gate.ledger
    remember(site.home, request, ledger.is_unfinished, ledger.was_approved, ledger.was_decided)
    protected = gate.announce(request, recipe) is not None
    reply = Reply(
        **echo(site, request),
        code="ok",
        public_key=site.public_key,
        examples=site.settings.data.units if protected else 0,
    )
    return gate.release(request, reply, {})


def _answer(gate: Gate, job: Job) -> Departure:
    """Answer without differential privacy."""
    # Lazy import: a site that refuses a run needs no torch.
    from fieldmark.client.stages import HANDLERS

    if (masked := _masked(job)) is not None:
        return masked(gate, job)
    handler = HANDLERS.get(job.stage.name)
    if handler is None:
        raise PeerError(f"There is no phase '{job.request.phase}' in a run without [privacy].")
    encode = UpdateEncoder(job.site.home, job.request, job.recipe, job.received)
    if job.stage.encoded:
        # The update has the tensors of the received model.
        gate.check_leaving(encode.received, encode)
    started = time.perf_counter()
    answer = handler(job)
    seconds = fixed_seconds(time.perf_counter() - started)
    fields = {**echo(job.site, job.request), "code": "ok", "seconds": seconds, **answer.fields}
    return gate.release(job.request, Reply(**fields), answer.tensors, encode)


def _masked(job: Job) -> Callable[[Gate, Job], Departure] | None:
    """Handler of a request that is about a masked sum; None for any other."""
    if job.recipe.secure is None:
        return None
    from fieldmark.client.stages.masked import answer_masked, is_masked

    return answer_masked if is_masked(job) else None


def _answer_privately(gate: Gate, job: Job, privacy: PrivacySettings) -> Departure:
    """Answer under differential privacy; holds the reply for ``policy.reply_seconds``."""
    from fieldmark.client.stages.own_sums import answer_own_sums
    from fieldmark.client.stages.private import answer_protected

    started = time.monotonic()
    try:
        if (masked := _masked(job)) is not None:
            return masked(gate, job)
        if (job.request.kind, job.request.phase) == (OWN_SUMS.kind, OWN_SUMS.phase):
            return answer_own_sums(gate, job, privacy)
        return answer_protected(gate, job, privacy)
    finally:
        # Also after an error: its timing must not reveal anything about the pictures.
        hold = job.site.settings.policy.reply_seconds - (time.monotonic() - started)
        if hold > 0:
            time.sleep(hold)


def _guarded(
    site: Site, request: Request, log: logging.Logger, work: Callable[[], Departure]
) -> Departure | None:
    code: Code
    cause: Cause = ""
    refusal: FieldmarkError | None = None
    try:
        return work()
    except PolicyRefusal as error:
        waits = isinstance(error, ApprovalMissing) and request.kind == ROLL_CALL.kind
        log.error("round %d %s: %s", request.round, "waits" if waits else "refused", error)
        code = "awaiting-approval" if waits else "refused-policy"
        reason, refusal = error.what, error
    except PeerError as error:
        log.error("round %d refused: %s", request.round, error)
        code, reason, refusal = "refused-request", error.what, error
    except Exception as error:
        # The boundary of the site: no exception's text may leave.
        log.exception("round %d failed%s", request.round, failure_in_words(error))
        code, reason, cause = "unavailable", "", cause_of(error)
    try:
        named = site.public_key if request.kind == ROLL_CALL.kind else ""
        reply = Reply(
            **echo(site, request), code=code, cause=cause, reason=reason[:500], public_key=named
        )
        return Gate(site).refuse(request, reply, refusal)
    except Exception:
        # The same boundary: neither may what goes wrong while refusing.
        log.exception("round %d could not even be refused", request.round)
        return None


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
