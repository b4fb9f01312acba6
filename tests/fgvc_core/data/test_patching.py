"""Random patches on training pictures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.data.patching import SIDES, patched
from fgvc_core.data.settings import AugmentSettings
from fgvc_core.data.transforms import Augment


def made_up(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(st.integers(16, 80), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_what_changes_lies_in_one_rectangle_of_the_stated_size(size, seed):
    images_NCHW = made_up(3, size)
    before = images_NCHW.clone()
    found_NCHW = patched(images_NCHW, 1.0, seeded(seed))
    assert torch.equal(images_NCHW, before)
    assert found_NCHW.shape == images_NCHW.shape
    assert found_NCHW.dtype == torch.uint8
    longest = max(round(SIDES[1] * size), 2)
    for one_CHW, other_CHW in zip(found_NCHW, images_NCHW, strict=True):
        changed_HW = (one_CHW != other_CHW).any(dim=0)
        for axis in (0, 1):
            places = changed_HW.any(dim=axis).nonzero()[:, 0]
            assert not len(places) or int(places.max() - places.min()) < longest


def test_about_the_share_of_pictures_has_one_and_equal_seeds_give_equal_pictures():
    images_NCHW = made_up(400, 32)
    one, two = (patched(images_NCHW, 0.3, seeded(1)) for _ in range(2))
    assert torch.equal(one, two)
    changed = (one != images_NCHW).flatten(1).any(dim=1).float().mean()
    assert 0.22 < float(changed) < 0.38
    assert torch.equal(patched(images_NCHW, 0.0, seeded(1)), images_NCHW)
    assert not torch.equal(patched(images_NCHW, 0.3, seeded(2)), one)


def test_a_patch_depends_on_no_other_picture():
    # Under differential privacy one picture must not change another's view.
    images_NCHW, others_NCHW = made_up(6, 32), made_up(6, 32, seed=9)
    others_NCHW[2] = images_NCHW[2]
    one, other = (patched(x, 0.7, seeded(3)) for x in (images_NCHW, others_NCHW))
    assert torch.equal(one[2], other[2])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_augmentation_puts_them_on_where_the_recipe_says_so(share):
    settings_ = AugmentSettings(rotation=0, zoom=0, flip=False, color=0, patches=share)
    images_NCHW = made_up(8, 32)
    found_NCHW = Augment(settings_)(images_NCHW, seeded(4))
    changed_N = (found_NCHW != images_NCHW).flatten(1).any(dim=1)
    assert bool(changed_N.all()) == bool(changed_N.any()) == bool(share)
