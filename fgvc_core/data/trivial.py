"""TrivialAugment: one random operation at a random strength for each picture.

Müller and Hutter 2021, https://arxiv.org/abs/2103.10158, torchvision's ``TrivialAugmentWide``. It
takes the place of tuned rotation, zoom and colour. Cost: about a millisecond a picture at 64 px.
A warning: solarising and posterising change colours that may be the mark itself.
"""

import torch
from torchvision.transforms import v2


def trivial(images_NCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 (N, 3, S, S) to the same; equal generators give equal views."""
    change = v2.TrivialAugmentWide()
    with torch.random.fork_rng(devices=[]):
        # torchvision draws from the global generator and takes no other.
        torch.default_generator.manual_seed(_seed(generator))
        return torch.stack([change(image_CHW) for image_CHW in images_NCHW])


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator))
