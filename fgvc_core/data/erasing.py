"""Random erasing: a rectangle of a training picture becomes noise.

Zhong et al. 2020, "Random Erasing Data Augmentation", section 3,
https://arxiv.org/abs/1708.04896: it stands for occlusion. torchvision's own draws one rectangle
for a whole batch. A warning: where classes differ in one small mark, the mark is what is erased.
"""

import torch

AREA = (0.02, 0.2)
"""Share of the picture that is erased; the paper goes to 0.4, too much for small marks."""

ASPECT = (0.3, 3.3)


def erase(images_NCHW: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Erase one rectangle each in about a share of the pictures.

    Args:
        images_NCHW: uint8 (N, C, H, W).
        share: Probability for each picture, 0 to 1.
        generator: The only source of what is drawn.

    Returns:
        The same shape and type, the caller's own.
    """
    count, channels, height, width = images_NCHW.shape
    drawn_5N = torch.rand(5, count, generator=generator)
    area_N = (AREA[0] + (AREA[1] - AREA[0]) * drawn_5N[0]) * height * width
    low, high = (torch.tensor(aspect).log() for aspect in ASPECT)
    aspect_N = (low + (high - low) * drawn_5N[1]).exp()
    tall_N = (area_N * aspect_N).sqrt().round().clamp(1, height)
    wide_N = (area_N / aspect_N).sqrt().round().clamp(1, width)
    top_N = (drawn_5N[2] * (height - tall_N + 1)).floor()
    left_N = (drawn_5N[3] * (width - wide_N + 1)).floor()
    rows_NH = torch.arange(height) - top_N[:, None]
    columns_NW = torch.arange(width) - left_N[:, None]
    inside_NH = (rows_NH >= 0) & (rows_NH < tall_N[:, None])
    inside_NW = (columns_NW >= 0) & (columns_NW < wide_N[:, None])
    chosen_N = drawn_5N[4] < share
    mask_N1HW = (inside_NH[:, :, None] & inside_NW[:, None, :] & chosen_N[:, None, None])[:, None]
    noise_NCHW = torch.randint(
        0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator
    )
    return torch.where(mask_N1HW, noise_NCHW, images_NCHW)
