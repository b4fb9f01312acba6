"""Heads on made-up cached features: private training without a picture."""

import numpy as np
import torch
from tests_recipe import TINY

from fgvc_core.experiment import make_learner
from fgvc_core.models.heads import SubspaceHead
from fgvc_core.recipe import parse_recipe
from fgvc_core.training.examples import FeatureExamples

CLASSES, FEATURES = 12, 256


def head_learner(head, *overrides):
    """The tiny recipe's learner with a frozen backbone."""
    return make_learner(
        parse_recipe(TINY, ["model.train=head", f"model.head={head}", *overrides]), CLASSES
    )


def features(generator, count, signal=1.0):
    """Features around one direction a class."""
    labels = np.arange(count) % CLASSES
    centres = signal * generator.standard_normal((CLASSES, FEATURES))
    values = centres[labels] + generator.standard_normal((count, FEATURES))
    return FeatureExamples(torch.from_numpy(values.astype(np.float32)), labels)


def subspace_learner(directions=96):
    """A learner of class sums, with random directions."""
    learner = head_learner("linear")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(FEATURES, directions, generator=generator)
    learner.model.head = SubspaceHead(torch.linalg.qr(drawn)[0].T.contiguous(), CLASSES)
    return learner
