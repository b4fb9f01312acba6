"""One round's training at a site, with what the site keeps from round to round."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fgvc_core.protocol.messages import Request
from fgvc_core.protocol.tensor_names import as_control, controlled, local, shared, split_control
from fgvc_core.recipe import Recipe
from fgvc_core.training.examples import Examples
from fgvc_core.training.learner import Learner
from fgvc_core.training.schedule import Stretch
from fgvc_core.training.variates import ControlVariates
from fgvc_core.wire.arrays import TensorSpec
from fieldmark.client.kept import KeptTensors, Tensors
from fieldmark.client.site import Site


class RoundWork:
    """One round's work on a learner, with what the site keeps from round to round.

    Args:
        site: Whose.
        request: What is asked.
        recipe: Of the run.
        learner: Loaded and trained in place.
        fresh: The local tensors as every site has them before its first round.
    """

    def __init__(
        self,
        site: Site,
        request: Request,
        recipe: Recipe,
        learner: Learner,
        fresh: Tensors,
    ) -> None:
        self._site = site
        self._request = request
        self._recipe = recipe
        self._learner = learner
        self._fresh = fresh
        self._local = recipe.federation.local
        self._scaffold = recipe.federation.strategy == "scaffold"
        self._keeps = self._scaffold or bool(self._local)
        self._kept: Tensors = {}
        self._control: Tensors = {}

    def expected(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """What has to arrive, given all tensors that the model trains."""
        travelling = shared(specs, self._local)
        if self._scaffold and self._request.kind == "train":
            return travelling | as_control({n: travelling[n] for n in controlled(travelling)})
        return travelling

    def load(self, received: Mapping[str, NDArray[np.float32]]) -> None:
        """Take over what was received, and what this site keeps.

        Raises:
            PeerError: if what this site kept is gone.
            DataError: if it is damaged.
        """
        tensors, self._control = split_control(received)
        if self._keeps:
            kept = KeptTensors(self._site.home, self._request.run)
            self._kept = kept.read(self._request.base_round)
        own, _ = split_control(self._kept)
        self._learner.load({**self._fresh, **own, **tensors})

    def train(self, examples: Examples) -> tuple[float, Tensors]:
        """Train, keep what stays, and hand out (mean loss, what travels)."""
        _, own = split_control(self._kept)
        variates = (
            ControlVariates(self._learner.model, own, self._control) if self._scaffold else None
        )
        outcome = self._learner.train_round(
            examples,
            Stretch(self._request.round, self._recipe.federation.rounds),
            self._site.name,
            self._request.proximal_mu,
            variates,
        )
        tensors = self._learner.tensors()
        outgoing = shared(tensors, self._local)
        keep = local(tensors, self._local)
        if variates is not None:
            fresh = {n: a for n, a in variates.fresh().items() if n in self._control}
            keep |= as_control(fresh)
            outgoing |= as_control({n: a - own[n] if n in own else a for n, a in fresh.items()})
        if self._keeps:
            base = self._request.base_round
            KeptTensors(self._site.home, self._request.run).commit(self._request.round, keep, base)
        return outcome.loss, outgoing
