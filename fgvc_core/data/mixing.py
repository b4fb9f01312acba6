"""Mixing two pictures and their labels.

Mixup: Zhang et al. 2018, https://arxiv.org/abs/1710.09412. CutMix: Yun et al. 2019,
https://arxiv.org/abs/1905.04899. Both torchvision's, each picture with its neighbour in the
(shuffled) batch. A mixed picture belongs to two examples at once: under differential privacy, where
one example's part must be bounded, mixing is refused. A warning: for classes that differ in
one small part, pasting over that part leaves a wrong label; few epochs do not pay for it.
"""

from typing import Literal

import torch
from torchvision.transforms import v2

Mix = Literal["none", "mixup", "cutmix", "both"]


class Mixing:
    """Mixes whole batches.

    Args:
        kind: ``both`` draws one of the two for each batch.
        alpha: Of the Beta distribution that the share comes from.
        share: Probability that a batch is mixed, 0 to 1.
        num_classes: K.
    """

    def __init__(self, kind: Mix, alpha: float, share: float, num_classes: int) -> None:
        self._share = share
        kinds = {"mixup": (v2.MixUp,), "cutmix": (v2.CutMix,), "both": (v2.MixUp, v2.CutMix)}
        self._ways = [way(alpha=alpha, num_classes=num_classes) for way in kinds.get(kind, ())]

    def __call__(
        self, images_NCHW: torch.Tensor, labels_N: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and labels, mixed or as they are.

        Args:
            images_NCHW: uint8 (N, 3, S, S).
            labels_N: int64 (N,).
            generator: The only source of what is drawn.

        Returns:
            Pictures (float where mixed), and labels (N,) or shares of the classes (N, K).
        """
        if not self._ways or len(labels_N) < 2:
            return images_NCHW, labels_N
        drawn_2 = torch.rand(2, generator=generator)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        if drawn_2[0] >= self._share:
            return images_NCHW, labels_N
        way = self._ways[int(drawn_2[1] * len(self._ways))]
        with torch.random.fork_rng(devices=[]):
            # torchvision draws from the global generator and takes no other.
            torch.default_generator.manual_seed(seed)
            mixed_NCHW, shares_NK = way(images_NCHW.float(), labels_N)
        return mixed_NCHW, shares_NK.float()
