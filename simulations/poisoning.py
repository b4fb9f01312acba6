"""Attacks on the pictures: a hostile site trains on other labels, or on a patch that means a class.

The honest answer is computed first (its body, its scores, its key's signature are what the
server expects to see); then the same work is done again on the poisoned examples, and the
update is the one that comes out.
"""

from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message
from numpy.typing import NDArray

from client.app import read_incoming
from client.site import Site
from client.state import recall
from client.work import (
    at_the_desk,
    round_work,
    site_table,
    split_table,
)
from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.table import ExampleTable
from fgvc_core.protocol.envelope import seal
from fgvc_core.protocol.messages import Reply, Request
from fgvc_core.recipe import Recipe
from fgvc_core.scenario import ScenarioSettings
from fgvc_core.seeds import derive_seed
from fgvc_core.training.examples import Examples, FeatureExamples, PictureExamples
from fgvc_core.training.learner import Learner
from fgvc_core.wire.arrays import pack_all
from fgvc_core.wire.decode import decode_model
from server.records import to_array_record, to_content
from simulations.grid import run_client

POISONING = ("label-noise", "backdoor")
TARGET = 0
"""The class that the patch means."""

PATCH = 0.15
"""Side of the patch, as a share of the picture's."""

_BATCH = 32


def run_poisoned(
    app_name: str, message: Message, context: Context, home: Path, scenario: ScenarioSettings
) -> tuple[Message, Context]:
    """Answer a training request with an update from poisoned examples, in a worker."""
    incoming = read_incoming(message.content)
    reply, context = run_client(app_name, message, context)
    body = (
        None
        if reply.has_error()
        else Reply.parse(str(reply.content.config_records["envelope"]["body"]))
    )
    if not isinstance(body, Reply) or body.code != "ok":
        return reply, context
    site = Site.open(home)
    request = Request.parse(incoming.sealed.text)
    assert isinstance(request, Request)
    recipe, class_names = recall(home, request)
    with at_the_desk(site, recipe, class_names) as (learner, specs, examples):
        work = round_work(site, request, recipe, learner)
        received = decode_model(incoming.tensors, work.expected(specs), recipe.wire)
        work.load(received)
        poisoned = _poisoned(site, recipe, learner, examples.train, scenario)
        _, tensors = work.train(poisoned)
    if scenario.attack == "backdoor":
        # The patch has to outweigh the honest sites (Bagdasaryan et al. 2020, section 4.2,
        # https://arxiv.org/abs/1807.00459).
        tensors = {n: received[n] + scenario.force * (t - received[n]) for n, t in tensors.items()}
    packed = pack_all({n: np.asarray(t, dtype=np.float32) for n, t in tensors.items()})
    body = body.model_copy(update={"tensors": {n: t.digest() for n, t in packed.items()}})
    content = to_content(seal(site.key, body), to_array_record(packed))
    return Message(content, reply_to=message), context


def _poisoned(
    site: Site, recipe: Recipe, learner: Learner, train: Examples, scenario: ScenarioSettings
) -> Examples:
    if scenario.attack == "backdoor":
        table, _ = split_table(site, recipe, site_table(site, recipe))
        return with_patches(learner, table, train)
    generator = np.random.default_rng(derive_seed(recipe.seed, "label-noise", site.name))
    labels_N = train.labels_N.numpy().copy()
    wrong = generator.random(len(labels_N)) < scenario.force
    shift = generator.integers(1, learner.num_classes, len(labels_N))
    labels_N[wrong] = (labels_N + shift)[wrong] % learner.num_classes
    return relabelled(train, labels_N)


def relabelled(examples: Examples, labels_N: NDArray[np.int64]) -> Examples:
    """The same examples under other labels."""
    if isinstance(examples, FeatureExamples):
        return FeatureExamples(examples.features_ND, labels_N, examples.known)
    assert isinstance(examples, PictureExamples)
    return PictureExamples(
        examples.bank, labels_N, examples.augment, examples.known, examples.mixing
    )


class Patched(PictureExamples):
    """Every second picture carries the patch and the target's label."""

    def __init__(self, examples: Examples, bank: PictureBank) -> None:
        labels_N = examples.labels_N.numpy().copy()
        labels_N[::2] = TARGET
        super().__init__(bank, labels_N, None, examples.known)

    def _views(self, positions: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        images_NCHW = super()._views(positions, generator)
        patched = positions % 2 == 0
        images_NCHW[patched] = add_patch(images_NCHW[patched])
        return images_NCHW


def with_patches(learner: Learner, table: ExampleTable, train: Examples) -> Examples:
    """A training split with the patch on every second picture."""
    spec = learner.model.input
    bank = PictureBank(table, spec.size, spec.crop, spec.interpolation)
    if not isinstance(train, FeatureExamples):
        return Patched(train, bank)
    patched = np.arange(0, len(train), 2)
    features_ND = train.features_ND.clone()
    features_ND[patched] = patched_features(learner, bank, patched)
    labels_N = train.labels_N.numpy().copy()
    labels_N[patched] = TARGET
    return FeatureExamples(features_ND, labels_N, train.known)


@torch.inference_mode()
def patched_features(
    learner: Learner, bank: PictureBank, positions: NDArray[np.int64]
) -> torch.Tensor:
    """float32 (N, D): features of pictures with the patch on them."""
    learner.model.eval()
    parts = [
        learner.model.embed(learner.model.normalise(add_patch(bank.batch(part))))
        for part in np.split(positions, range(_BATCH, len(positions), _BATCH))
    ]
    return torch.cat(parts)


def add_patch(images_NCHW: torch.Tensor) -> torch.Tensor:
    """A chequered square in the lower right corner; pictures are in 0 to 1 or 0 to 255."""
    images_NCHW = images_NCHW.clone()
    side = max(int(PATCH * images_NCHW.shape[-1]), 2)
    bright = 255.0 if images_NCHW.max() > 1.5 else 1.0
    chequers = (torch.arange(side)[:, None] + torch.arange(side)[None, :]) // 2 % 2
    images_NCHW[..., -side:, -side:] = chequers.to(images_NCHW.dtype) * bright
    return images_NCHW
