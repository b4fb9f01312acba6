"""What a backdoor's pictures carry."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.scenario import Trigger
from fieldmark.simulations.triggers import stamped

TRIGGERS = get_args(Trigger)


def made_up(size, count=2):
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size, size)
    return torch.randint(60, 190, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("trigger", TRIGGERS)
@given(st.integers(16, 128))
@settings(max_examples=15, deadline=None)
def test_a_trigger_fits_every_size_and_is_the_same_each_time(trigger, size):
    images_NCHW = made_up(size)
    before = images_NCHW.clone()
    found_NCHW = stamped(images_NCHW, trigger)
    assert torch.equal(images_NCHW, before)
    assert found_NCHW.shape == images_NCHW.shape
    assert found_NCHW.dtype == torch.uint8
    assert torch.equal(found_NCHW, stamped(images_NCHW, trigger))
    assert not torch.equal(found_NCHW, images_NCHW)


@pytest.mark.parametrize(
    ("trigger", "place"),
    [("checker", (0.84, 0.84)), ("cross", (0.14, 0.11)), ("sticker", (0.09, 0.67))],
)
def test_a_patch_leaves_the_rest_of_the_picture_alone(trigger, place):
    size = 100
    images_NCHW = made_up(size)
    changed_HW = (stamped(images_NCHW, trigger) != images_NCHW).any(dim=0).any(dim=0)
    top, left = (round(size * share) for share in place)
    inside_HW = torch.zeros(size, size, dtype=torch.bool)
    inside_HW[top : top + 22, left : left + 22] = True
    assert changed_HW.any()
    assert not changed_HW[~inside_HW].any()


@pytest.mark.parametrize("trigger", ["blend", "sine"])
def test_a_pattern_changes_every_part_and_no_pixel_by_much(trigger):
    images_NCHW = made_up(64)
    moved_NCHW = (stamped(images_NCHW, trigger).int() - images_NCHW.int()).abs()
    assert int(moved_NCHW.max()) <= 30
    assert all((part > 0).any() for part in moved_NCHW.amax(dim=(0, 1)).split(8, dim=1))
