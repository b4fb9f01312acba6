import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.data.settings import AugmentSettings
from fgvc_core.data.transforms import Augment, square

NOTHING = {"rotation": 0.0, "zoom": 0.0, "flip": False, "color": 0.0}


def views(images, seed=0, **settings):
    augment = Augment(AugmentSettings(**{**NOTHING, **settings}))
    return augment(images, torch.Generator().manual_seed(seed))


def smooth(count=4, size=24):
    ramp = torch.linspace(20, 230, size)
    image = torch.stack(
        [ramp.expand(size, size), ramp.expand(size, size).T, 0 * ramp + ramp[:, None]]
    )
    return image.round().to(torch.uint8).expand(count, 3, size, size).contiguous()


def test_equal_generators_give_equal_views_and_each_picture_its_own():
    settings = {"rotation": 30.0, "zoom": 0.3, "flip": True, "color": 0.3}
    one, two = views(smooth(), 1, **settings), views(smooth(), 1, **settings)
    assert torch.equal(one, two)
    assert not torch.equal(one, views(smooth(), 2, **settings))
    assert not torch.equal(one[0], one[1])


def test_no_variation_is_the_identity():
    assert torch.equal(views(smooth()), smooth())


def test_a_flip_only_mirrors():
    images = smooth(32)
    for before, after in zip(images, views(images, flip=True), strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))


def test_colour_moves_values_but_not_places():
    grey = torch.full((8, 3, 16, 16), 128, dtype=torch.uint8)
    after = views(grey, color=0.5)
    assert (after.flatten(1).max(1).values - after.flatten(1).min(1).values).max() <= 1
    assert len({int(a[0, 0, 0]) for a in after}) > 4


def test_rotation_keeps_the_middle_and_an_empty_batch_stays_empty():
    images = smooth(16)
    middle = slice(11, 13)
    moved = views(images, rotation=45.0)
    assert (
        moved[..., middle, middle].float() - images[..., middle, middle].float()
    ).abs().max() < 16
    assert views(images[:0], rotation=45.0).shape == (0, 3, 24, 24)


@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([16, 33]), st.floats(0.5, 1.0))
def test_a_square_has_exactly_its_size_whatever_the_picture(height, width, size, crop):
    picture = np.zeros((height, width, 3), np.uint8)
    assert square(picture, size, crop, "bicubic").shape == (size, size, 3)


def test_a_square_is_cut_from_the_centre():
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 200
    assert square(picture, 20).min() == 200
    assert square(picture, 20, crop=0.5, interpolation="bicubic").min() == pytest.approx(200, abs=3)
