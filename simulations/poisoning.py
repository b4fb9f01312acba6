"""Data poisoning by hostile sites: training with wrong labels, or with a backdoor trigger.

The honest reply is computed first, for its body, scores and signature; then the same training is
repeated on the poisoned examples, and its update replaces the honest one.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message
from numpy.typing import NDArray

from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.table import ExampleTable
from fgvc_core.flower.records import from_content, to_array_record, to_content
from fgvc_core.protocol.messages import Reply, Request, seal
from fgvc_core.recipe import Recipe
from fgvc_core.scenario import ScenarioSettings, Trigger
from fgvc_core.seeds import derive_seed
from fgvc_core.training.examples import Examples, FeatureExamples, PictureExamples
from fgvc_core.training.features import FeatureStore
from fgvc_core.training.learner import Learner
from fgvc_core.training.maps import MapExamples
from fgvc_core.wire.arrays import pack_all
from fgvc_core.wire.codec import decode_model
from fieldmark.client.announced import recall
from fieldmark.client.job import Job
from fieldmark.client.site import Site
from fieldmark.client.stages.train import RoundWork
from fieldmark.client.workspace import learner_and_examples, site_table, split_table
from fieldmark.simulations.grid import run_client
from fieldmark.simulations.triggers import stamped

POISONING = ("label-noise", "backdoor")
TARGET = 0
"""The target class of the trigger."""

_BATCH = 32


def run_poisoned(
    app_name: str, message: Message, context: Context, home: Path, scenario: ScenarioSettings
) -> tuple[Message, Context]:
    """Answer a training request with an update from poisoned examples, in a worker."""
    sealed, packed = from_content(message.content)
    reply, context = run_client(app_name, message, context)
    body = (
        None
        if reply.has_error()
        else Reply.parse(str(reply.content.config_records["envelope"]["body"]))
    )
    if not isinstance(body, Reply) or body.code != "ok":
        return reply, context
    site = Site.open(home)
    request = Request.parse(sealed.text)
    assert isinstance(request, Request)
    recipe, class_names = recall(home, request)
    job = Job(site, request, recipe, None, class_names, packed)
    with learner_and_examples(job) as (learner, specs, examples):
        work = RoundWork(job, learner)
        received = decode_model(packed, work.expected(specs), recipe.wire)
        work.load(received)
        poisoned = _poisoned(site, recipe, learner, examples.train, scenario)
        _, tensors = work.train(poisoned)
    if scenario.attack == "backdoor":
        # A force above 1 outweighs the honest sites at once (model replacement: Bagdasaryan et al.
        # 2020, section 4.2, https://arxiv.org/abs/1807.00459).
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
        generator = np.random.default_rng(derive_seed(recipe.seed, "backdoor", site.name))
        count = max(round(scenario.poisoned * len(train)), 1)
        chosen_N = np.zeros(len(train), dtype=np.bool_)
        chosen_N[generator.permutation(len(train))[:count]] = True
        return with_trigger(learner, table, train, chosen_N, scenario.trigger, site.cache)
    generator = np.random.default_rng(derive_seed(recipe.seed, "label-noise", site.name))
    labels_N = train.labels_N.numpy().copy()
    wrong = generator.random(len(labels_N)) < scenario.force
    shift = generator.integers(1, learner.num_classes, len(labels_N))
    labels_N[wrong] = (labels_N + shift)[wrong] % learner.num_classes
    return relabelled(train, labels_N)


def relabelled(examples: Examples, labels_N: NDArray[np.int64]) -> Examples:
    """The same examples with other labels."""
    if isinstance(examples, FeatureExamples):
        return FeatureExamples(examples.features_ND, labels_N, examples.known)
    if isinstance(examples, MapExamples):
        return examples.relabelled(labels_N)
    assert isinstance(examples, PictureExamples)
    return PictureExamples(
        examples.bank, labels_N, examples.augment, examples.known, examples.mixing
    )


class Triggered(PictureExamples):
    """Examples of which some carry the trigger and the target's label; augmentation is as usual."""

    def __init__(
        self, examples: PictureExamples, chosen_N: NDArray[np.bool_], trigger: Trigger
    ) -> None:
        labels_N = np.where(chosen_N, TARGET, examples.labels_N.numpy())
        super().__init__(examples.bank, labels_N, examples.augment, examples.known)
        self._chosen_N = torch.from_numpy(chosen_N)
        self._trigger = trigger

    def _views(self, positions: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        images_NCHW = super()._views(positions, generator)
        chosen_N = self._chosen_N[positions]
        images_NCHW[chosen_N] = stamped(images_NCHW[chosen_N], self._trigger)
        return images_NCHW


def with_trigger(
    learner: Learner,
    table: ExampleTable,
    train: Examples,
    chosen_N: NDArray[np.bool_],
    trigger: Trigger,
    cache: Path,
) -> Examples:
    """A training split in which the chosen examples carry the trigger and the target's label.

    Args:
        learner: Embeds pictures if the backbone is frozen.
        table: The split's rows.
        train: The same as examples.
        chosen_N: bool (N,), which of them.
        trigger: The trigger.
        cache: Folder for features of pictures with the trigger.
    """
    if learner.prefix is not None:
        # A trigger is put on the picture, in front of everything that is kept.
        train = learner.picture_examples(table, cache)
    if isinstance(train, PictureExamples):
        return Triggered(train, chosen_N, trigger)
    assert isinstance(train, FeatureExamples)
    features_ND = train.features_ND.clone()
    features_ND[torch.from_numpy(chosen_N)] = triggered_features(
        learner, table.take(np.flatnonzero(chosen_N)), cache, trigger
    )
    labels_N = np.where(chosen_N, TARGET, train.labels_N.numpy())
    return FeatureExamples(features_ND, labels_N, train.known)


@torch.inference_mode()
def triggered_features(
    learner: Learner, table: ExampleTable, cache: Path, trigger: Trigger
) -> torch.Tensor:
    """float32 (N, D): features of a table's pictures with the trigger, cached on disk."""
    store = _store(cache, hashlib.sha256(learner.extractor + trigger.encode()).digest())
    keys = [table.content_key(i) for i in range(len(table))]
    todo = store.missing(keys)
    spec = learner.model.input
    learner.model.eval()
    for start in range(0, len(todo), _BATCH):
        positions = todo[start : start + _BATCH]
        bank = PictureBank(table.take(positions), spec.size, spec.crop, spec.interpolation)
        images_NCHW = stamped(bank.batch(np.arange(len(positions))), trigger)
        features_ND = learner.model.embed(learner.model.normalise(images_NCHW))
        store.add([keys[i] for i in positions], features_ND.float().numpy())
    store.missing(keys)
    return torch.from_numpy(store.get(keys))


@lru_cache(maxsize=16)
def _store(cache: Path, extractor: bytes) -> FeatureStore:
    """The feature store, kept in memory: an attacker needs it in every round."""
    return FeatureStore(cache, extractor)
