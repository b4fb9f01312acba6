import numpy as np
import torch

from fgvc_core.data.transforms import RandomViews

from .picture_trees import noise


def pictures(count=6, side=32):
    stacked = np.stack([noise(i, side, side) for i in range(count)])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def seen(views, images_NCHW, seed=1):
    return views(images_NCHW, torch.Generator().manual_seed(seed))


def test_equal_generators_give_equal_views_and_others_other_ones():
    views = RandomViews(0.3, 10.0, 0.4, 0.2)
    one, two, other = (seen(views, pictures(), seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == (6, 3, 32, 32)
    assert one.dtype == torch.uint8


def test_a_view_of_all_without_change_is_the_picture_or_its_mirror_image():
    images_NCHW = pictures()
    # The largest crop still draws an aspect; a square is what is cut out of a square with none.
    found = seen(RandomViews(1.0, 0.0, 0.0, 0.0), images_NCHW[:, :, :1, :1].expand(-1, -1, 8, 8))
    assert torch.equal(found, images_NCHW[:, :, :1, :1].expand(-1, -1, 8, 8))


def test_a_small_crop_shows_only_a_part():
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 3, 64, 64).repeat(50, 1, 1, 1)
    found = seen(RandomViews(0.1, 0.0, 0.0, 0.0), ramp)
    spans_N = (found.amax(dim=(1, 2, 3)).int() - found.amin(dim=(1, 2, 3)).int()).float()
    assert spans_N.min() < 30
    assert spans_N.max() > 45


def test_grey_views_have_one_value_in_all_channels():
    found = seen(RandomViews(1.0, 0.0, 0.0, 1.0), pictures())
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])


def test_no_pictures_give_no_views():
    assert seen(RandomViews(0.5, 10.0, 0.3, 0.5), pictures()[:0]).shape == (0, 3, 32, 32)
