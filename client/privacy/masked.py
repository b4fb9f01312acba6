"""A site's two trips of a masked sum, through the gate: ready, then its part.

The order decides what a crash, a second set or an old copy can give away.

Trip 1: policy, pins and size are checked; the cost, if there is one, is reserved; the clear value
is computed and stored with fresh keys; the ledger records that the site is ready; the ready text is
signed.

Trip 2: the set of sites is checked; *under the ledger's writing lock* it becomes the one set of
this place; noise and masks are added; the part **replaces** clear value and keys in one atomic
write; the ledger records it as sent; the reply is signed.

The stored value is found by the request's context and locked by its place, so that two requests, or
two sets, cannot be worked on side by side.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import DataError, PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import PrivacyEvent
from fgvc_core.protocol.keys import fingerprint
from fgvc_core.protocol.messages import Reply, Request
from fgvc_core.protocol.stages import SECURE, STAGES, stage_of
from fgvc_core.recipe import Recipe
from fgvc_core.secure.masks import new_secret, public_key
from fgvc_core.secure.part import NAME, Scale, masked_part, seeds_of
from fgvc_core.secure.plain import exact_scale
from fgvc_core.secure.ready import Place, Ready, context_of, place_of, sign_ready
from fgvc_core.secure.rules import SumRules
from fgvc_core.secure.view import View, check_cohort, read_view
from fgvc_core.wire.arrays import TensorSpec
from fieldmark.client.privacy.gate import Departure, Gate
from fieldmark.client.privacy.ledger import second_request, second_view
from fieldmark.client.privacy.outbox import SUMS, Outbox, Payload
from fieldmark.client.privacy.peers import Peers
from fieldmark.client.reading import units_digest
from fieldmark.client.site import Site

KEPT_S = 30 * 86400.0
"""Seconds after which a clear value that nobody has asked for is deleted."""

UNFINISHED_S = 3600.0
"""Seconds after which a file that a crash has cut short is deleted."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a site at one place.

    Attributes:
        site: The site.
        request: The request.
        recipe: Recipe of the run, with ``[secure]``.
        class_names: As announced here.
        protected: Whether the run has differential privacy here.
    """

    site: Site
    request: Request
    recipe: Recipe
    class_names: tuple[str, ...]
    protected: bool

    @property
    def rules(self) -> SumRules:
        """Rules of the run's sums."""
        assert self.recipe.secure is not None
        return self.recipe.secure.rules


@dataclass(frozen=True)
class Summand:
    """What a site has to compute for a sum.

    Attributes:
        specs: The tensors that the sum is about, by the names under which the policy knows them.
        size: Number of values.
        event: Cost of the answer; the site adds its part of this noise in trip 2. None without
            differential privacy.
        bound: With an event: largest norm of one unit's part in the value.
    """

    specs: Mapping[str, TensorSpec]
    size: int
    event: PrivacyEvent | None = None
    bound: float = 0.0

    def scale(self, adding: int) -> Scale:
        """Scale of the sum, if so many sites add up to the noise."""
        if self.event is None:
            return exact_scale(self.size)
        return Scale.of_noise(self.bound, self.size, self.event.noise_multiplier, adding)


def say_ready(
    gate: Gate,
    asked: Asked,
    summand: Summand,
    fields: dict[str, Any],
    work: Callable[[], NDArray[np.float64]],
) -> Departure:
    """Trip 1: work, keep the clear result, and say that the site is ready.

    Args:
        gate: The site's.
        asked: What is asked.
        summand: What is to be computed, and its cost.
        fields: Fields of the reply.
        work: Computes the value without noise; called at most once, after its cost is on the disk.

    Raises:
        PolicyRefusal: if it may not be answered.
        PeerError: if the sites asked together, or the request, are not such as are possible.
    """
    request, site = asked.request, asked.site
    own = fingerprint(site.key.public_key())
    cohort = check_cohort(request.cohort, asked.rules, site.name, own)
    if request.base_round or request.ready:
        raise PeerError("A request for a masked sum starts from no round, and names no ready site.")
    Peers(site).check(cohort)
    if summand.event is not None:
        gate.check_announced(request, asked.recipe)
        gate.ledger.check_reading(units_digest(site, asked.recipe))
    gate.check_leaving(summand.specs)
    bits = summand.scale(asked.rules.adding(len(cohort))).bits
    gate.check_size(TensorSpec(f"uint{bits}", (summand.size,)).packed_bytes)
    place = place_of(request)
    ctx = context_of(request, fingerprint(site.coordinator), asked.class_names)
    outbox = Outbox(site.home)
    with outbox.alone(_lock(place)):
        before = gate.ledger.ready_at(place)
        if before is not None and before[0] != ctx:
            raise second_request(place, before[0])
        payload = outbox.find(SUMS + ctx)
        if payload is None and before is not None:
            raise _gone(place)
        if summand.event is not None:
            with gate.admission.guarded():
                gate.reserve(request, ctx, summand.event)
        if payload is None:
            payload = _worked(place, ctx, site, summand, cohort, fields, work())
            outbox.store(SUMS + ctx, payload)
        ready = Ready.parse(payload.fields["text"])
        assert isinstance(ready, Ready)
        with _guarded(gate, asked):
            gate.ledger.note_ready(place, ctx, ready.key)
            if before is None:
                # A later request of the run: what is asked again has not passed.
                _forget_passed(outbox, place)
            reply = _reply(gate, asked, payload.fields["reply"])
            signed = sign_ready(site.key, ready)
            return gate.depart(request, reply.model_copy(update={"ready": signed}), {})


def send_part(gate: Gate, asked: Asked) -> Departure:
    """Trip 2: check the set of sites, and send this site's part of its sum.

    Raises:
        PolicyRefusal: if another set was answered here, or the value is gone.
        PeerError: if the set is not one that this site may send for; nothing was sent.
    """
    request, site = asked.request, asked.site
    if request.cohort or request.tensors or request.base_round or request.proximal_mu:
        raise PeerError("A request to send carries the ready sites and nothing else.")
    if asked.protected:
        gate.check_announced(request, asked.recipe)
    place = _own_place(request, site.name)
    outbox = Outbox(site.home)
    with outbox.alone(_lock(place)):
        before = gate.ledger.ready_at(place)
        if before is None:
            raise PeerError(
                f"This site was never ready at {place}.",
                remedy="Ask for its work first.",
            )
        key = SUMS + before[0]
        payload = outbox.find(key)
        if payload is None:
            raise _gone(place)
        kept = payload.fields
        if kept["text"] not in {signed.text for signed in request.ready}:
            # Before a restore, or made up: whatever it is, its key is not the stored one.
            raise PeerError(f"This site's own ready text at {place} is not among the forwarded.")
        view = read_view(request.ready, kept["text"], kept["cohort"], asked.rules)
        keys = {name: kept["cohort"][name] for name in view.names}
        Peers(site).check(keys)
        digest = view.digest.hex()
        if kept.get("view", digest) != digest:
            raise second_view(place, kept["view"])
        if "view" not in kept:
            # Before the set is fixed: one bad key must not burn the place.
            seeds_of(view, site.name, bytes.fromhex(kept["secret"]))
        with _guarded(gate, asked):
            gate.ledger.fix_view(place, digest, keys)
        if "view" not in kept:
            payload = _masked(payload, view, site.name, asked.rules)
            # The clear value and both keys are gone once this returns.
            outbox.store(key, payload)
        with _guarded(gate, asked):
            reply = _reply(gate, asked, payload.fields["reply"])
            reply = reply.model_copy(update={"kind": request.kind})
            return gate.depart(request, reply, payload.tensors, before[0])


def _guarded(gate: Gate, asked: Asked) -> AbstractContextManager[None]:
    """Other copies of this home are blocked where they could spend a second time."""
    return gate.admission.guarded() if asked.protected else nullcontext()


def _reply(gate: Gate, asked: Asked, fields: dict[str, Any]) -> Reply:
    """The reply to a request; with differential privacy it states the cost."""
    if asked.protected:
        return gate.reply(asked.request, fields)
    return Reply(**{**fields, "nonce": asked.request.nonce})


def _worked(
    place: Place,
    ctx: str,
    site: Site,
    summand: Summand,
    cohort: dict[str, str],
    fields: dict[str, Any],
    value: NDArray[np.float64],
) -> Payload:
    """The clear value with fresh keys, as it is stored."""
    secret = new_secret()
    ready = Ready.model_validate(
        {
            "run": place.run,
            "round": place.round,
            "phase": place.phase,
            "kind": place.kind,
            "ctx": ctx,
            "site": site.name,
            "identity": site.public_key,
            "key": public_key(secret),
        }
    )
    event = summand.event
    noise = {}
    if event is not None:
        noise = {"noise_multiplier": event.noise_multiplier, "bound": summand.bound}
    kept = {
        "text": ready.model_dump_json(),
        "cohort": cohort,
        "reply": fields,
        **noise,
        "secret": secret.hex(),
        "noise": new_secret().hex(),
    }
    return Payload(kept, {"value": np.asarray(value, np.float64)})


def _masked(payload: Payload, view: View, own: str, rules: SumRules) -> Payload:
    """The stored part of one view, without the clear value and the keys."""
    kept, value = payload.fields, payload.tensors["value"]
    if "bound" in kept:
        grid = kept["bound"], value.size, kept["noise_multiplier"]
        scale = Scale.of_noise(*grid, rules.adding(len(view.members)))
    else:
        scale = exact_scale(value.size)
    secret, noise = bytes.fromhex(kept["secret"]), bytes.fromhex(kept["noise"])
    part = masked_part(value, scale, view, own, secret, noise)
    fields = {"text": kept["text"], "cohort": kept["cohort"], "reply": kept["reply"]}
    return Payload({**fields, "view": view.digest.hex(), "names": list(view.names)}, {NAME: part})


def _own_place(request: Request, own: str) -> Place:
    """The place that a request to send is about, by this site's own text in it.

    Nothing in the text is believed: it only says where to look in the ledger.
    """
    for signed in request.ready:
        ready = Ready.parse(signed.text)
        assert isinstance(ready, Ready)
        if ready.site == own:
            asked = STAGES.get((ready.kind, ready.phase))
            sends = SECURE[asked][1] if asked in SECURE else None
            same = (ready.run, ready.round) == (request.run, request.round)
            if not same or sends is not stage_of(request):
                raise PeerError("A request to send is about another place than its ready sites.")
            return ready.place
    raise PeerError("This site's own ready text is not among those of the sum.")


def forget_old(home: Path) -> None:
    """Delete clear values and keys that nobody has asked for in 30 days, whatever comes next.

    Args:
        home: Home of a site.
    """
    outbox = Outbox(home)
    outbox.delete_parts(SUMS, UNFINISHED_S)
    for key, age in outbox.stored(SUMS):
        if age > KEPT_S and _clear_place(outbox, key) is not None:
            outbox.delete(key)


def _forget_passed(outbox: Outbox, place: Place) -> None:
    """Delete clear values of places that are passed: earlier ones of the run."""
    for key, _ in outbox.stored(SUMS):
        found = _clear_place(outbox, key)
        if found is not None and found.run == place.run and found != place:
            outbox.delete(key)


def _clear_place(outbox: Outbox, key: str) -> Place | None:
    """Place of a stored clear value; None if it is masked, gone, or cannot be read."""
    try:
        payload = outbox.find(key)
    except DataError:
        # Whoever asks for it is told; a request for something else is not held back by it.
        return None
    if payload is None or "view" in payload.fields:
        return None
    ready = Ready.parse(payload.fields["text"])
    assert isinstance(ready, Ready)
    return ready.place


def _lock(place: Place) -> str:
    """Name of a place's lock."""
    text = "\0".join((place.run, str(place.round), place.phase, place.kind))
    return "place-" + hashlib.sha256(text.encode()).hexdigest()


def _gone(place: Place) -> PolicyRefusal:
    return PolicyRefusal(
        f"What this site has computed at {place} is gone.",
        why="It is deleted once a later request has come; computing it again would be a second "
        "release for one charge.",
        remedy="Go on with the next round, or start a new run.",
    )


__all__ = ["Asked", "Summand", "forget_old", "say_ready", "send_part"]
