"""The reference of the engine benchmark: a bare PyTorch loop over the same work.

For each site in turn: load the global tensors, score the validation split, train one round; then
average. No messages, signatures, processes or disk.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from fgvc_core.data.pictures import PictureBank
from fgvc_core.data.table import ExampleTable
from fgvc_core.data.transforms import Augment
from fgvc_core.models.build import build_classifier
from fgvc_core.recipe import Recipe

Split = tuple[PictureBank, torch.Tensor]


class BareLoop:
    """A plain loop over the same sites, model, views, optimizer and passes.

    Args:
        recipe: The federation's recipe.
        sites: Each site's (training, validation) tables.
        device: Device of the model.
    """

    def __init__(
        self,
        recipe: Recipe,
        sites: list[tuple[ExampleTable, ExampleTable]],
        device: torch.device | str = "cpu",
    ) -> None:
        self._recipe = recipe
        self._device = device
        size = recipe.data.image_size
        classes = sites[0][0].num_classes
        self._model = build_classifier(recipe.model, classes, size, recipe.seed).to(device)
        self._augment = Augment(recipe.augment)
        self._sites = [(self.split(train), self.split(held)) for train, held in sites]
        self._global = {k: v.clone() for k, v in self._model.state_dict().items()}
        self._generator = torch.Generator().manual_seed(recipe.seed)

    def split(self, table: ExampleTable) -> Split:
        """A table's decoded pictures and their labels."""
        return PictureBank(table, self._recipe.data.image_size), torch.from_numpy(table.labels_N)

    def round(self) -> None:
        """One round over all sites."""
        total = sum(len(labels_N) for (_, labels_N), _ in self._sites)
        mean: dict[str, torch.Tensor] = {}
        for train, held in self._sites:
            self._model.load_state_dict(self._global)
            self._score(held)
            self.train(train)
            share = len(train[1]) / total
            for name, value in self._model.state_dict().items():
                mean[name] = mean.get(name, torch.zeros_like(value)) + share * value
        self._global = mean

    @torch.inference_mode()
    def _score(self, split: Split) -> None:
        bank, labels_N = split
        self._model.eval()
        size = self._recipe.evaluate.batch_size
        for start in range(0, len(labels_N), size):
            positions = np.arange(start, min(start + size, len(labels_N)))
            images_NCHW = bank.batch(positions).to(self._device)
            logits_NK = self._model(self._model.normalise(images_NCHW))
            F.cross_entropy(logits_NK, labels_N[start : start + size].to(self._device))

    def train(self, split: Split) -> None:
        """One round of training on a site's pictures."""
        bank, labels_N = split
        settings = self._recipe.train
        steps = settings.epochs * math.ceil(len(labels_N) / settings.batch_size)
        optimizer = torch.optim.Adam(self._model.parameters(), lr=settings.lr, fused=True)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, steps + 1)
        self._model.train()
        smoothing = self._recipe.loss.label_smoothing
        for _ in range(settings.epochs):
            order = torch.randperm(len(labels_N), generator=self._generator)
            for positions in order.split(settings.batch_size):
                images_NCHW = self._augment(bank.batch(positions.numpy()), self._generator)
                logits_NK = self._model(self._model.normalise(images_NCHW.to(self._device)))
                labels_B = labels_N[positions].to(self._device)
                loss = F.cross_entropy(logits_NK, labels_B, label_smoothing=smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
