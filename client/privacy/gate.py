"""The gate: the only way out of a site.

Nothing else in this package signs or returns a reply. Under differential privacy the order
is: check the request against policy, plan and budget; reserve its cost on the disk; work;
keep the finished payload on the disk; write down that it may leave; sign. Whatever
happens between two of these, what has left was charged, and was charged once.

Without differential privacy a reply is checked, listed and signed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.privacy.chain import GENESIS
from client.privacy.ledger import Ledger
from client.privacy.outbox import Outbox, Payload, request_digest
from client.privacy.policy import check_standing, check_tensors, protection
from client.site import Site
from fgvc_core.errors import FieldmarkError, PeerError, PolicyRefusal
from fgvc_core.privacy.events import ADJACENCY, PrivacyEvent
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.envelope import Sealed, seal
from fgvc_core.protocol.keys import SIGNATURE_BYTES
from fgvc_core.protocol.messages import PrivacyStatement, Reply, Request
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import PackedTensor, digest_all, pack_all

Tensors = Mapping[str, NDArray[np.float32]]
Encode = Callable[[Tensors], dict[str, PackedTensor]]
"""The gate's last stage: finished tensors (noised, where they have to be) -> what travels."""

UNLIMITED = 1e9
"""The cap of a site whose policy names none."""


@dataclass(frozen=True)
class Departure:
    """A reply that may leave: signed body and packed tensors."""

    sealed: Sealed
    tensors: dict[str, PackedTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of body, signature and tensors."""
        body = len(self.sealed.text.encode()) + len(self.sealed.signature)
        return body + sum(len(t.data) for t in self.tensors.values())


class Gate:
    """The gate of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._policy = site.settings.policy
        self._outbox = Outbox(site.home)
        self.ledger = Ledger(site.home, site.data_binding, site.name)

    def protection(self, recipe: Recipe) -> PrivacySettings | None:
        """The differential privacy under which this site works on a recipe.

        Raises:
            PolicyRefusal: if it does not work on it at all.
        """
        data = self._site.settings.data
        check_standing(self._policy, data.units, data.pictures, datetime.now(UTC).date())
        return protection(self._policy, recipe)

    def announce(self, request: Request, recipe: Recipe) -> PrivacySettings | None:
        """Decide whether this site takes part in a run, before anything is spent.

        Returns:
            The differential privacy under which it does, if any.

        Raises:
            PolicyRefusal: naming the policy's line that says no.
        """
        self._check_memory(request)
        privacy = self.protection(recipe)
        if privacy is not None:
            self._announce(request, recipe, privacy)
        self._check_approval(request, recipe)
        return privacy

    def _announce(self, request: Request, recipe: Recipe, privacy: PrivacySettings) -> None:
        if self._site.settings.data.units < 1:
            raise PolicyRefusal(
                "data.units in site.toml is 0: no public number of units is declared.",
                why="Noise, sampling rate and weight are computed from it; the true one is secret.",
                remedy="Declare in site.toml about how many units these data hold.",
            )
        events = plan_for(privacy, recipe.federation.rounds)
        if self.ledger.plan(request.run) is None:
            self._check_budget(events, privacy, recipe)
        self.ledger.announce(
            request.run,
            request.recipe_digest,
            events,
            name=recipe.name,
            delta=privacy.delta,
            unit=privacy.unit,
            target=privacy.epsilon,
            units=self._site.settings.data.units,
            portion=privacy.steps if privacy.method == "gradients" else 1,
            adjacency=ADJACENCY,
            policy=self._policy.digest,
        )

    def _check_budget(
        self, events: tuple[PrivacyEvent, ...], privacy: PrivacySettings, recipe: Recipe
    ) -> None:
        units = {plan.unit for plan in self.ledger.plans()}
        if units - {privacy.unit}:
            raise PolicyRefusal(
                f"privacy.unit = '{privacy.unit}', and this ledger has protected "
                f"'{units.pop()}' so far.",
                why="Costs of two kinds of units do not add up.",
                remedy="Keep to the unit that the ledger was begun with.",
            )
        epsilon, delta = self._cap()
        total, how = self.ledger.total(delta, events)
        if total > epsilon:
            spent, _ = self.ledger.total(delta)
            raise PolicyRefusal(
                f"policy.epsilon_cap = {epsilon:g} at delta {delta:g}: {spent:.4g} is spent, and "
                f"run '{recipe.name}' would bring the total to {total:.4g} ({how}).",
                why="The budget of these data would be exceeded.",
                remedy="Ask for a smaller privacy.epsilon; 'fieldmark site budget' says what "
                "is left.",
            )

    def _check_memory(self, request: Request) -> None:
        if request.known_head and not self.ledger.holds(request.known_head):
            raise PolicyRefusal(
                "The coordinator has seen an entry of this site's ledger that is not in it.",
                why="An old copy of the ledger was put back: what was spent since is forgotten.",
                remedy="Restore the newest copy of the site's home.",
            )

    def _check_approval(self, request: Request, recipe: Recipe) -> None:
        if self._policy.approval == "none":
            return
        for entry in self.ledger.entries():
            if entry.kind == "approved" and entry.values["run"] == request.run:
                if entry.values["recipe_digest"] == request.recipe_digest:
                    return
                break
        raise PolicyRefusal(
            f"policy.approval = 'each-run': run '{request.run}' ({recipe.name}) is not approved.",
            remedy=f"A person at the site says yes with: fieldmark site approve DIR {request.run}",
        )

    def protected_round(
        self,
        request: Request,
        recipe: Recipe,
        event: PrivacyEvent | None,
        work: Callable[[], Payload],
        encode: Encode = pack_all,
    ) -> Departure:
        """Answer one request under differential privacy.

        Args:
            request: What is asked.
            recipe: Of the run.
            event: What the answer costs; None where it says nothing about the pictures.
            work: Computes the answer; called at most once for a request, and after its cost
                is on the disk.
            encode: What the answer's tensors travel as: of the noised release, whose bits
                it may lose, and of the request; nothing else.

        Raises:
            PolicyRefusal: if it may not be answered; nothing was spent then.
        """
        digest = request_digest(request)
        self._check_approval(request, recipe)
        with self._outbox.alone(digest):
            payload = self._outbox.find(digest)
            if payload is None:
                if self.ledger.was_sent(request.run, digest):
                    raise PolicyRefusal(
                        "The stored reply to this request is gone.",
                        why="Computing it again would be a second release for one charge.",
                        remedy="Start a new run.",
                    )
                if event is not None:
                    self.ledger.reserve(request.run, request.round, digest, event, self._cap())
                payload = work()
                self._outbox.store(digest, payload)
            packed = self._encoded(payload.tensors, encode)
            reply = self._reply(request, payload.fields, self._statement(request.run))
            return self._send(request, reply, packed, digest)

    def release(
        self, request: Request, reply: Reply, tensors: Tensors, encode: Encode = pack_all
    ) -> Departure:
        """Let out a reply that differential privacy does not apply to.

        Args:
            request: What is answered.
            reply: The answer; its tensors' digests are filled in here.
            tensors: What goes along.
            encode: What they travel as.

        Raises:
            PolicyRefusal: if it holds what the policy keeps, or is too large. Nothing has
                left then.
        """
        policy = self._policy
        packed = self._encoded(tensors, encode)
        if reply.code == "ok" and request.kind != "roll_call" and policy.privacy == "required":
            raise PolicyRefusal("policy.privacy = 'required': this reply is not protected.")
        allowed = reply
        if request.kind != "roll_call":
            counts = policy.share_counts
            allowed = reply.model_copy(
                update={
                    "examples": reply.examples if counts else min(reply.examples, 1),
                    # Scores say how many pictures they are of: they would tell the count.
                    "scores": reply.scores if policy.share_scores and counts else None,
                }
            )
        return self._send(request, allowed, packed, "")

    def refuse(self, request: Request, reply: Reply, error: FieldmarkError | None) -> Departure:
        """Let out a refusal, and write down the reason in full where it was policy's."""
        if isinstance(error, PolicyRefusal | PeerError):
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

    def _cap(self) -> tuple[float, float]:
        cap = self._policy.epsilon_cap
        return (UNLIMITED if cap is None else cap), self._policy.delta

    def check_size(self, nbytes: int) -> None:
        """Whether a reply whose tensors weigh so much may leave.

        Raises:
            PolicyRefusal: if not.
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

    def _encoded(self, tensors: Tensors, encode: Encode) -> dict[str, PackedTensor]:
        check_tensors(self._policy, sorted(tensors))
        packed = encode(tensors)
        self.check_size(sum(len(part.data) for part in packed.values()))
        return packed

    def _reply(
        self, request: Request, fields: dict[str, Any], statement: PrivacyStatement
    ) -> Reply:
        values = {**fields, "nonce": request.nonce, "privacy": statement}
        return Reply(**values)

    def _statement(self, run: str) -> PrivacyStatement:
        plan = self.ledger.plan(run)
        if plan is None:
            raise PeerError(f"Run '{run}' was never announced to this site.")
        epsilon, how = plan.cost()
        total, how_total = self.ledger.total(self._policy.delta)
        return PrivacyStatement(
            epsilon=epsilon,
            how=how,
            epsilon_total=total,
            how_total=how_total,
            delta=plan.delta,
            delta_total=self._policy.delta,
            unit=plan.unit,
            adjacency=ADJACENCY,
            events=[event.as_json() for event in plan.released],
        )

    def _send(
        self, request: Request, reply: Reply, packed: dict[str, PackedTensor], digest: str
    ) -> Departure:
        digests = digest_all(packed)
        reply = reply.model_copy(update={"tensors": digests, "ledger_head": GENESIS})

        def numbered(number: int) -> Reply:
            return reply.model_copy(update={"ledger_length": number + 1})

        def values(number: int) -> dict[str, Any]:
            # A head has a fixed width: the size is right before the head is known.
            size = Departure(Sealed(numbered(number).model_dump_json(), b""), packed).nbytes
            return {
                "run": request.run,
                "round": request.round,
                "what": request.kind,
                "request": digest,
                "nonce": request.nonce,
                "code": reply.code,
                "tensors": {name: list(tensor.shape) for name, tensor in packed.items()},
                "bytes": size + SIGNATURE_BYTES,
                "examples": reply.examples,
                "scores": reply.scores is not None,
                "protected": reply.privacy is not None,
            }

        entry = self.ledger.note("sent", values)
        complete = numbered(entry.number).model_copy(update={"ledger_head": entry.hash})
        return Departure(seal(self._site.key, complete), packed)
