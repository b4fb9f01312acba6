"""Gate of a site: the only code that signs and returns replies.

Under differential privacy, the order is: check the request against policy, plan and budget; reserve
its cost durably; work; store the finished payload durably; record that it may leave; sign. After a
crash at any point, whatever has left was charged exactly once. Charges and departures are also
written to the user's register, outside the home, so that an older copy of the home releases
nothing.

Without differential privacy a reply is checked, recorded and signed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvc_core.errors import FieldmarkError, PeerError, PolicyRefusal
from fgvc_core.privacy.accountant import ADJACENCY, PrivacyEvent, merge
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.keys import SIGNATURE_BYTES
from fgvc_core.protocol.messages import (
    PrivacyStatement,
    Reply,
    Request,
    Sealed,
    ValidationReply,
    fixed_seconds,
    seal,
)
from fgvc_core.protocol.stages import ROLL_CALL
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import PackedTensor, TensorSpec, digest_all, pack_all, spec_of
from fgvc_core.wire.codec import packed_bytes
from fieldmark.client.encoding import UpdateEncoder
from fieldmark.client.privacy.admission import Admission
from fieldmark.client.privacy.chain import GENESIS
from fieldmark.client.privacy.ledger import Ledger, Plan
from fieldmark.client.privacy.outbox import Outbox, Payload, request_digest
from fieldmark.client.privacy.policy import allowed_figures, check_tensors
from fieldmark.client.reading import subject_column, units_digest
from fieldmark.client.site import Site

Tensors = Mapping[str, NDArray[np.float32]]
Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Departure:
    """Reply that may leave: signed body and packed tensors."""

    sealed: Sealed
    tensors: dict[str, PackedTensor]

    @property
    def nbytes(self) -> int:
        """Total bytes of body, signature and tensors."""
        body = len(self.sealed.text.encode()) + len(self.sealed.signature)
        return body + sum(len(t.data) for t in self.tensors.values())


class Gate:
    """Gate of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._policy = site.settings.policy
        self.ledger = Ledger(site.home, site.data_binding, site.name)
        self.admission = Admission(site, self.ledger)

    def announce(self, request: Request, recipe: Recipe) -> PrivacySettings | None:
        """Decide whether this site takes part in a run, before anything is spent.

        Returns:
            The differential privacy of the run at this site, or None.

        Raises:
            PolicyRefusal: naming the policy setting that forbids it.
        """
        self.admission.check_memory(request)
        privacy = self.admission.protection(recipe)
        events = (
            () if privacy is None else plan_for(privacy, recipe.federation.rounds, recipe.sharers)
        )
        if privacy is not None:
            # Before the approval: nobody should be asked about a run that does not fit.
            self._check_fits(request, recipe.name, privacy, events)
        self.admission.check_approval(request, recipe.name)
        if privacy is not None:
            self._announce(request, recipe, recipe.name, privacy, events)
        return privacy

    def announce_validation(
        self,
        request: Request,
        recipe: Recipe,
        name: str,
        privacy: PrivacySettings,
        event: PrivacyEvent,
    ) -> None:
        """Announce the cost of an answer to a validation kit: a single release.

        Raises:
            PolicyRefusal: naming the policy setting that forbids it.
        """
        self.admission.check_memory(request)
        self.admission.check_approval(request, name)
        self._check_fits(request, name, privacy, (event,))
        self._announce(request, recipe, name, privacy, (event,))

    def admit(self, request: Request, recipe: Recipe) -> PrivacySettings | None:
        """Decide whether to work on a request of an announced run; see :meth:`announce`."""
        self.admission.check_memory(request)
        privacy = self.admission.protection(recipe)
        self.admission.check_approval(request, recipe.name)
        return privacy

    def check_leaving(self, specs: Specs, encode: UpdateEncoder | None = None) -> None:
        """Check that an answer with these tensors may leave, before any work for it.

        Args:
            specs: Specs of the computed tensors.
            encode: Their encoder; None if they travel as they are.

        Raises:
            PolicyRefusal: naming the policy setting that forbids it.
        """
        check_tensors(self._policy, sorted(specs))
        self.check_size(packed_bytes(specs if encode is None else encode.parts(specs)))

    def check_size(self, nbytes: int) -> None:
        """Check a reply's size in bytes against ``policy.max_update_mb``.

        Raises:
            PolicyRefusal: if it is too large.
        """
        size_mb = nbytes / 1e6
        if size_mb > self._policy.max_update_mb:
            raise PolicyRefusal(
                f"The update weighs {size_mb:.1f} MB; this site's policy allows "
                f"max_update_mb = {self._policy.max_update_mb:g}.",
                why="Nothing has left the site.",
                remedy="Train less of the model ([model] train), send it in fewer bytes ([wire]), "
                "or raise the site's policy.",
            )

    def _check_fits(
        self,
        request: Request,
        name: str,
        privacy: PrivacySettings,
        events: tuple[PrivacyEvent, ...],
    ) -> None:
        if self.ledger.plan(request.run) is None:
            self.admission.check_budget(privacy, name, events)

    def _announce(
        self,
        request: Request,
        recipe: Recipe,
        name: str,
        privacy: PrivacySettings,
        events: tuple[PrivacyEvent, ...],
    ) -> None:
        self.admission.claim_data()
        self.write_plan(request.run, request.recipe_digest, recipe, name, privacy, events)
        # Again, so that the register's head of the ledger includes this run.
        self.admission.claim_data()

    def write_plan(
        self,
        run: str,
        recipe_digest: str,
        recipe: Recipe,
        name: str,
        privacy: PrivacySettings,
        events: tuple[PrivacyEvent, ...],
    ) -> None:
        """Record a run's releases in the ledger; costs nothing yet."""
        self.ledger.announce(
            run,
            recipe_digest,
            events,
            self.admission.rule_for(events),
            name=name,
            delta=privacy.delta,
            unit=privacy.unit,
            target=privacy.epsilon,
            units=self._site.settings.data.units,
            reading=units_digest(self._site, recipe),
            subject_column=subject_column(self._site, recipe),
            portion=privacy.steps if privacy.method == "gradients" else 1,
            adjacency=ADJACENCY,
            policy=self._policy.digest,
            **({} if recipe.secure is None else {"secure": recipe.secure.model_dump()}),
            **({"own_head": True} if recipe.personal.method == "own-sums" else {}),
        )

    def check_announced(self, request: Request, recipe: Recipe) -> None:
        """Check that a run was announced with this recipe, is approved, and is no old copy's.

        Raises:
            PolicyRefusal: if it is not approved, or the ledger is an old copy.
            PeerError: if it was not announced with the request's recipe.
        """
        self.admission.check_memory(request)
        self.admission.check_approval(request, recipe.name)
        plan = self.ledger.plan(request.run)
        if plan is None or plan.recipe_digest != request.recipe_digest:
            raise PeerError(f"Run '{request.run}' was never announced to this site.")

    def reserve(self, request: Request, digest: str, event: PrivacyEvent) -> None:
        """Charge one release before the work for it, under both caps; once for each digest.

        Raises:
            PolicyRefusal: if plan or budget do not allow it.
        """
        self.ledger.reserve(
            request.run,
            request.round,
            digest,
            event,
            self.admission.cap,
            self.admission.alone_cap,
        )

    def protected_round(
        self,
        request: Request,
        recipe: Recipe,
        event: PrivacyEvent | None,
        work: Callable[[], Payload],
        specs: Specs | None = None,
        encode: UpdateEncoder | None = None,
        form: type[Reply] = Reply,
    ) -> Departure:
        """Answer one request under differential privacy.

        Args:
            request: The request.
            recipe: Recipe of the run.
            event: Cost of the answer; None if it says nothing about the pictures.
            work: Computes the answer; called at most once per request, after its cost is on the
                disk.
            specs: Specs of the answer's tensors, if known; refuses tensors that may not leave
                before they are charged.
            encode: Encoder of the tensors, which uses only the noised answer and the request.
            form: Type of the reply.

        Raises:
            PolicyRefusal: if it may not be answered.
            PeerError: if the run was not announced with the request's recipe.
        """
        digest, outbox = request_digest(request), Outbox(self._site.home)
        self.check_announced(request, recipe)
        self.ledger.check_reading(units_digest(self._site, recipe))
        self.check_leaving(specs or {}, encode)
        with outbox.alone(digest):
            payload = outbox.find(digest)
            if payload is None and self.ledger.was_sent(request.run, digest):
                raise PolicyRefusal(
                    "The stored reply to this request is gone.",
                    why="Computing it again would be a second release for one charge.",
                    remedy="Start a new run.",
                )
            if event is not None:
                # Even if a reply is stored: a restored ledger may lack the charge for it.
                with self.admission.guarded():
                    self.reserve(request, digest, event)
            if payload is None:
                payload = work()
                if event is None and payload.tensors:
                    raise PolicyRefusal(
                        f"An answer that costs nothing holds {sorted(payload.tensors)[:3]}.",
                        why="Tensors that were computed at a site are released for a charge, or "
                        "stay.",
                        remedy="This is a fault of Fieldmark: please report it.",
                    )
                outbox.store(digest, payload)
            packed = self._encoded(payload.tensors, encode)
            reply = self.reply(request, payload.fields, form)
            # Registers the new head, which turns any copy made before into an older one.
            with self.admission.guarded():
                return self._send(request, reply, packed, digest)

    def release(
        self,
        request: Request,
        reply: Reply,
        tensors: Tensors,
        encode: UpdateEncoder | None = None,
    ) -> Departure:
        """Release a reply without differential privacy, reduced to what the policy shares.

        Args:
            request: The request that is answered.
            reply: The answer; the digests of its tensors are filled in here.
            tensors: Tensors of the answer.
            encode: Their encoder; None if they travel as they are.

        Raises:
            PolicyRefusal: if the policy forbids a tensor or the reply, or it is too large; nothing
                has left.
        """
        policy = self._policy
        self.check_leaving(_specs_of(tensors), encode)
        allowed = reply
        if request.kind != ROLL_CALL.kind:
            if policy.demand:
                raise PolicyRefusal(f"{policy.demand}: this reply is not protected.")
            self.admission.check_approval(request, "of this reply")
            counts = policy.share_counts
            allowed = reply.model_copy(
                update={
                    # Without counts, an update weighs as much as one example.
                    "examples": reply.examples if counts else min(reply.examples, 1),
                    # The mean loss and the working time would reveal the count.
                    "loss": reply.loss if counts else None,
                    "seconds": reply.seconds if counts else fixed_seconds(0.0),
                    # Scores state the number of pictures.
                    "scores": reply.scores if policy.share_scores and counts else None,
                    "personal": reply.personal if policy.share_scores and counts else None,
                }
            )
            if isinstance(allowed, ValidationReply):
                allowed = allowed.model_copy(
                    update={"figures": allowed_figures(policy, allowed.figures)}
                )
        return self._send(request, allowed, self._encoded(tensors, encode), "")

    def _encoded(self, tensors: Tensors, encode: UpdateEncoder | None) -> dict[str, PackedTensor]:
        """Encode finished (if required, noised) tensors for the wire, the last step."""
        self.check_leaving(_specs_of(tensors), encode)
        return pack_all(tensors) if encode is None else encode(tensors)

    def refuse(self, request: Request, reply: Reply, error: FieldmarkError | None) -> Departure:
        """Send a refusal; the reason is recorded in the ledger if policy or request caused it.

        A class of cause leaves only of a run without differential privacy.
        """
        if reply.cause and not self.admission.tells_causes(request):
            reply = reply.model_copy(update={"cause": ""})
        # A coordinator asks again and again until somebody has decided.
        if isinstance(error, PolicyRefusal | PeerError) and reply.code != "awaiting-approval":
            self.ledger.note(
                "refused",
                {
                    "run": request.run,
                    "round": request.round,
                    "what": request.kind,
                    "reason": error.what,
                },
            )
        return self._send(request, reply, {}, "")

    def depart(
        self, request: Request, reply: Reply, tensors: Mapping[str, NDArray[Any]], digest: str = ""
    ) -> Departure:
        """Let one trip of a masked sum leave: recorded, then signed.

        Args:
            request: The request that is answered.
            reply: The reply, with its privacy statement.
            tensors: A part under masks and noise, or nothing.
            digest: Of the request that was charged for it; empty for a reply without content.
        """
        packed = pack_all(tensors)
        self.check_size(sum(len(tensor.data) for tensor in packed.values()))
        return self._send(request, reply, packed, digest)

    def reply(self, request: Request, fields: dict[str, Any], form: type[Reply] = Reply) -> Reply:
        """A reply of an announced run under differential privacy, with its statement."""
        plan = self.ledger.plan(request.run)
        assert plan is not None
        return form(**{**fields, "nonce": request.nonce, "privacy": self._statement(plan)})

    def _statement(self, plan: Plan) -> PrivacyStatement:
        epsilon, how = plan.cost()
        total, how_total = self.ledger.total(self._policy.delta)
        alone: dict[str, float] = {}
        if plan.is_shared:
            stated = {
                "epsilon_alone": plan.cost_alone(),
                "epsilon_total_alone": self.ledger.total_alone(self._policy.delta)[0],
            }
            alone = {name: value for name, value in stated.items() if math.isfinite(value)}
        return PrivacyStatement(
            **alone,
            epsilon=epsilon,
            how=how,
            epsilon_total=total,
            how_total=how_total,
            delta=plan.delta,
            delta_total=self._policy.delta,
            unit=plan.unit,
            adjacency=ADJACENCY,
            events=[event.as_json() for event in plan.priced],
            charged=[event.as_json() for event in merge(plan.charged[1])],
        )

    def _send(
        self, request: Request, reply: Reply, packed: dict[str, PackedTensor], digest: str
    ) -> Departure:
        digests = digest_all(packed)
        reply = reply.model_copy(update={"tensors": digests, "ledger_head": GENESIS})

        def numbered(number: int) -> Reply:
            length = self.ledger.length_with(number)
            return reply.model_copy(update={"ledger_length": length})

        def values(number: int) -> dict[str, Any]:
            # All heads have the same width, so the size is known before the head is.
            size = Departure(Sealed(numbered(number).model_dump_json(), b""), packed).nbytes
            return {
                "run": request.run,
                "round": request.round,
                "what": request.kind,
                "request": digest,
                "nonce": request.nonce,
                "code": reply.code,
                **({"cause": reply.cause} if reply.cause else {}),
                "tensors": {name: list(tensor.shape) for name, tensor in packed.items()},
                "bytes": size + SIGNATURE_BYTES,
                "examples": reply.examples,
                "scores": reply.scores is not None or _has_figures(reply),
                "protected": reply.privacy is not None,
                **({"figures": reply.extent} if isinstance(reply, ValidationReply) else {}),
            }

        entry = self.ledger.note("sent", values)
        complete = numbered(entry.number).model_copy(update={"ledger_head": entry.hash})
        return Departure(seal(self._site.key, complete), packed)


def _has_figures(reply: Reply) -> bool:
    if isinstance(reply, ValidationReply) and reply.figures is not None:
        return True
    return reply.personal is not None


def _specs_of(tensors: Tensors) -> dict[str, TensorSpec]:
    return {name: spec_of(tensor) for name, tensor in tensors.items()}
