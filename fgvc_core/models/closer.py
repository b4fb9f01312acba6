"""Further looks at a picture: at its middle, and at where the map of the first look is strong.

In the spirit of Wei et al. 2017, "Selective Convolutional Descriptor Aggregation", section 3.1
(https://arxiv.org/abs/1604.04994: the sum of a map's channels says where the object is), and Fu
et al. 2017, "Look Closer to See Better" (https://openaccess.thecvf.com/content_cvpr_2017/html/
Fu_Look_Closer_to_CVPR_2017_paper.html); nothing is trained for it, so that it goes with cached
features of a frozen backbone. Cost of each: as much again as the first look. A warning: it is cut
from the square that the model sees, and shows no detail that was not in there; where the object
fills the picture already it only loses the rim.
"""

import torch
from torch.nn import functional as F

LEAST, MOST = 0.2, 0.5
"""Bounds of the closer square's half side, as shares of the side."""


def closer_look(images_NCHW: torch.Tensor, map_NCHW: torch.Tensor, spread: float) -> torch.Tensor:
    """Squares cut from pictures around where their maps are strong, at the pictures' size.

    The centre is the centroid of what the map's sum over channels has above its own mean; the
    half side is ``spread`` standard deviations of it, along the axis where there are more.

    Args:
        images_NCHW: (N, C, S, S).
        map_NCHW: Their maps (N, D, h, w).
        spread: Above 0.

    Returns:
        (N, C, S, S), bicubic.
    """
    total_NHW = map_NCHW.sum(dim=1)
    above_NHW = (total_NHW - total_NHW.mean(dim=(1, 2), keepdim=True)).clamp_min(0.0)
    # A map that is the same everywhere looks at all of it.
    above_NHW = above_NHW + 1e-12
    share_NHW = above_NHW / above_NHW.sum(dim=(1, 2), keepdim=True)
    middle_N, wide_N = [], []
    for axis in (1, 2):
        size = share_NHW.shape[axis]
        at_S = (torch.arange(size, device=share_NHW.device) + 0.5) / size
        along_NS = share_NHW.sum(dim=3 - axis)
        found_N = (along_NS * at_S).sum(dim=1)
        middle_N.append(found_N)
        wide_N.append((along_NS * (at_S - found_N[:, None]).square()).sum(dim=1).sqrt())
    half_N = (spread * torch.maximum(*wide_N)).clamp(LEAST, MOST)
    row_N, column_N = (torch.minimum(torch.maximum(m, half_N), 1 - half_N) for m in middle_N)
    return _cut(images_NCHW, row_N, column_N, half_N)


def middle_look(images_NCHW: torch.Tensor, share: float) -> torch.Tensor:
    """The middle squares of pictures, at the pictures' size: (N, C, S, S), bicubic.

    Args:
        images_NCHW: (N, C, S, S).
        share: Of the side, above 0 to 1.
    """
    half_N = images_NCHW.new_full((images_NCHW.shape[0],), share / 2)
    at_N = torch.full_like(half_N, 0.5)
    return _cut(images_NCHW, at_N, at_N, half_N)


def _cut(
    images_NCHW: torch.Tensor, row_N: torch.Tensor, column_N: torch.Tensor, half_N: torch.Tensor
) -> torch.Tensor:
    side = images_NCHW.shape[-1]
    # From -1 to 1 over the picture, at the middles of the cut square's pixels.
    step_S = (2 * torch.arange(side, device=images_NCHW.device) + 1) / side - 1
    down_NS = 2 * row_N[:, None] - 1 + 2 * half_N[:, None] * step_S
    across_NS = 2 * column_N[:, None] - 1 + 2 * half_N[:, None] * step_S
    grid_NHW2 = torch.stack(
        [
            across_NS[:, None, :].expand(-1, side, -1),
            down_NS[:, :, None].expand(-1, -1, side),
        ],
        dim=-1,
    )
    return F.grid_sample(
        images_NCHW, grid_NHW2, mode="bicubic", padding_mode="border", align_corners=False
    )
