"""A round without training: noisy sums from every site, and the head that follows from them.

Two phases of one round. First every site releases a noisy sum of its vectors, whose mean
over all sites is the centre; then, around that centre, noisy class sums. Both are tiny.
A site whose second reply is missing has paid for the first all the same; its classes are
then learnt from the others.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fgvc_core.privacy.class_sums import sums_deviation
from fgvc_core.privacy.planning import plan_for
from fgvc_core.privacy.posterior import infer_means, linear_scores
from fgvc_core.protocol.messages import Phase
from fgvc_core.recipe import Recipe
from fgvc_core.wire.arrays import TensorSpec, pack_all
from server.records import to_array_record
from server.strategies import SoundReply

HEAD = ("head.centre", "head.weight", "head.bias")

Tensors = dict[str, NDArray[np.float32]]
Ask = Callable[[Phase, ArrayRecord, dict[str, TensorSpec]], Iterable[SoundReply]]
"""Sends one phase's request with a model and yields the sound replies."""


@dataclass(frozen=True)
class ClosedForm:
    """Makes a head out of releases.

    Attributes:
        recipe: Its ``privacy.method`` is ``class-sums``.
        units: Site name -> its public number of units, as its roll-call answer states it.
        classes: K.
    """

    recipe: Recipe
    units: dict[str, int]
    classes: int

    def run(self, tensors: Tensors, ask: Ask) -> tuple[Tensors | None, int]:
        """Both phases.

        Args:
            tensors: The model as it is; only its head is replaced.
            ask: Carries the requests.

        Returns:
            The new tensors, or None where no site's sums arrived; and how many sites' did.
        """
        directions = len(tensors["head.centre"])
        specs = {"centre": TensorSpec("float32", (directions,))}
        replies = ask("centre", to_array_record(pack_all(tensors)), specs)
        centre_P, units = np.zeros(directions), 0
        for reply in replies:
            # Float64 sums in order of sites: the same replies, the same centre.
            centre_P += reply.tensors["centre"].astype(np.float64)
            units += self.units[reply.site]
        if not units:
            return None, 0
        centred = {**tensors, "head.centre": (centre_P / units).astype(np.float32)}
        specs = {"class-sums": TensorSpec("float32", (self.classes, directions + 1))}
        found = {
            reply.site: np.array(reply.tensors["class-sums"], dtype=np.float64)
            for reply in ask("class-sums", to_array_record(pack_all(centred)), specs)
        }
        if not found:
            return None, 0
        return {**centred, **self._head(found, directions)}, len(found)

    def _head(self, found: dict[str, NDArray[np.float64]], directions: int) -> Tensors:
        privacy = self.recipe.privacy
        assert privacy is not None
        plan = plan_for(privacy, self.recipe.federation.rounds)
        noise = next(e.noise_multiplier for e in plan if e.purpose == "class-sums")
        deviation = sums_deviation(self.classes, directions, privacy.count_coordinate, noise)
        sums_SKQ = np.stack(list(found.values()))
        means = infer_means(
            sums_SKQ[:, :, :-1],
            sums_SKQ[:, :, -1] / privacy.count_coordinate,
            deviation,
            deviation / privacy.count_coordinate,
            privacy.within_spread,
            np.array([self.units[site] for site in found]),
        )
        weights_KP, biases_K = linear_scores(
            means, privacy.within_spread, privacy.class_prior == "counts"
        )
        return {
            "head.weight": weights_KP.astype(np.float32),
            "head.bias": biases_K.astype(np.float32),
        }
