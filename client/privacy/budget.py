"""Privacy budget of a site: what is spent, what is left, and what a run would cost."""

import math
from dataclasses import dataclass
from typing import Any

from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.accountant import ADJACENCY, PrivacyEvent, alone, epsilon_of_plan
from fgvc_core.privacy.odometer import total_cost
from fgvc_core.privacy.planning import plan_for
from fgvc_core.recipe import Recipe
from fieldmark.client.privacy.admission import UNLIMITED, Admission
from fieldmark.client.privacy.ledger import Ledger, rule_of, total_of
from fieldmark.client.site import Site

MOST_RUNS = 10_000
"""Limit on the search for how many more runs fit."""


@dataclass(frozen=True)
class Budget:
    """Privacy budget of one site.

    Attributes:
        spent: Total epsilon so far.
        how: The method of composition.
        cap: The policy's cap, or None.
        uncapped: Whether the policy explicitly sets no cap.
        delta: The policy's delta.
        runs: Number of runs that have released something.
        unprotected: Number of replies sent without differential privacy; no epsilon bounds them.
        plan: With a recipe: its cost, and the budget after it.
        alone: Where noise was or would be shared: ``spent`` and ``how`` if all other sites work
            with the coordinator, and the policy's ``cap`` for that; else None. An epsilon of None
            is no promise.
    """

    spent: float
    how: str
    cap: float | None
    uncapped: bool
    delta: float
    runs: int
    unprotected: int
    plan: dict[str, Any] | None
    alone: dict[str, Any] | None = None

    @property
    def left(self) -> float | None:
        """Cap minus spent epsilon. Costs are subadditive, so runs may fit whose sum exceeds it."""
        return None if self.cap is None else max(self.cap - self.spent, 0.0)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "spent": self.spent,
            "how": self.how,
            "cap": self.cap,
            "uncapped": self.uncapped,
            "left": self.left,
            "delta": self.delta,
            "adjacency": ADJACENCY,
            "runs": self.runs,
            "unprotected": self.unprotected,
            "plan": self.plan,
            **({} if self.alone is None else {"alone": self.alone}),
        }


def read_budget(site: Site, recipe: Recipe | None = None) -> Budget:
    """Budget of a site, and with a recipe the effect of its run.

    Raises:
        DataError: if the ledger does not verify.
        ConfigurationError: if the recipe's target cannot be met.
    """
    policy = site.settings.policy
    ledger = Ledger(site.home, site.data_binding, site.name)
    spent, how = ledger.total(policy.delta)
    plan = None if recipe is None else _plan(Admission(site, ledger), recipe)
    shared = any(plan.is_shared for plan in ledger.plans())
    without_others = None
    noisy = recipe is not None and recipe.secure is not None and recipe.privacy is not None
    if shared or noisy:
        found, how_alone = ledger.total_alone(policy.delta)
        without_others = {"spent": _finite(found), "how": how_alone, "cap": policy.alone_cap}
    return Budget(
        spent=spent,
        how=how,
        cap=policy.cap,
        uncapped=policy.epsilon_cap == "none",
        delta=policy.delta,
        runs=sum(bool(plan.released) for plan in ledger.plans()),
        unprotected=ledger.unprotected(),
        plan=plan,
        alone=without_others,
    )


def _plan(admission: Admission, recipe: Recipe) -> dict[str, Any]:
    try:
        privacy = admission.protection(recipe)
    except PolicyRefusal as refusal:
        return {"allowed": False, "why": refusal.what, "epsilon": None, "more_runs": 0}
    if privacy is None:
        return {
            "allowed": True,
            "why": "no differential privacy is asked for, and the policy does not require it",
            "epsilon": None,
            "more_runs": None,
        }
    ledger, (cap, delta) = admission.ledger, admission.cap
    events, why = plan_for(privacy, recipe.federation.rounds, recipe.sharers), ""
    try:
        admission.check_budget(privacy, recipe.name, events)
    except PolicyRefusal as refusal:
        why = refusal.what
    total, how = ledger.total(delta, events, admission.rule_for(events))
    if why:
        more: int | None = 0
    else:
        more = None if cap == UNLIMITED else _more_runs(admission, events)
    return {
        "allowed": not why,
        "why": why,
        "epsilon": epsilon_of_plan(events, privacy.delta),
        "delta": privacy.delta,
        "unit": privacy.unit,
        "total_after": total,
        "how_after": how,
        "more_runs": more,
        "events": [event.as_json() for event in events],
        **(
            {}
            if recipe.secure is None
            else {
                **_plan_alone(ledger, events, privacy.delta, delta),
                "unsettled": recipe.secure.most is None,
            }
        ),
    }


def _plan_alone(
    ledger: Ledger, events: tuple[PrivacyEvent, ...], own_delta: float, delta: float
) -> dict[str, Any]:
    """What a run whose noise is shared costs if all other sites work with the coordinator."""
    bare = alone(events)
    return {
        "epsilon_alone": None if bare is None else _finite(epsilon_of_plan(bare, own_delta)),
        "total_after_alone": _finite(ledger.total_alone(delta, events)[0]),
    }


def _finite(epsilon: float) -> float | None:
    """Epsilon, or None for no promise, because JSON has no infinity."""
    return epsilon if math.isfinite(epsilon) else None


def _more_runs(admission: Admission, events: tuple[PrivacyEvent, ...]) -> int:
    """Number of such runs, one after the other, that stay within the cap."""
    (cap, delta), rule = admission.cap, admission.rule_for(events)
    plans = admission.ledger.plans()

    def fits(runs: int) -> bool:
        if rule_of(plans) is not None:
            return total_of(plans, delta, events * runs)[0] <= cap
        # Composed sequentially: a single plan over all of them would cost less.
        further = events * (runs - 1)
        return total_cost((events, events), [(further, further)], rule, delta)[0] <= cap

    if not fits(1):
        return 0
    low, high = 1, 2
    while high < MOST_RUNS and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
