import pytest
import torch

from fgvc_core.data.settings import AugmentSettings
from fgvc_core.data.transforms import AREA, Augment, Mixing, erase


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=8, size=32):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator(9))


LABELS = torch.arange(8) % 4


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_mixed_labels_are_shares_and_draw_from_the_given_generator_alone(kind):
    mixing = Mixing(kind, 0.5, 1.0, 4)
    before = torch.random.get_rng_state()
    images_NCHW, shares_NK = mixing(pictures(), LABELS, generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert shares_NK.shape == (8, 4)
    torch.testing.assert_close(shares_NK.sum(dim=1), torch.ones(8))
    again_NCHW, again_NK = mixing(pictures(), LABELS, generator())
    assert torch.equal(images_NCHW, again_NCHW)
    assert torch.equal(shares_NK, again_NK)
    assert not torch.equal(images_NCHW, mixing(pictures(), LABELS, generator(1))[0])


def test_mixup_is_the_same_blend_of_pictures_and_labels():
    images_NCHW, shares_NK = Mixing("mixup", 1.0, 1.0, 4)(pictures(), LABELS, generator(3))
    share = float(shares_NK[1, LABELS[1]])
    whole = pictures().float()
    expected = share * whole[1] + (1 - share) * whole[0]
    torch.testing.assert_close(images_NCHW[1], expected, rtol=1e-4, atol=0.1)


def test_cutmix_pastes_the_area_that_the_label_says():
    images_NCHW, shares_NK = Mixing("cutmix", 1.0, 1.0, 4)(pictures(), LABELS, generator(4))
    pasted = (images_NCHW[1] != pictures()[1]).any(dim=0).float().mean().item()
    assert pasted == pytest.approx(1 - float(shares_NK[1, LABELS[1]]), abs=0.01)
    assert 0 < pasted < 1


@pytest.mark.parametrize(
    ("kind", "share", "count"), [("none", 1.0, 8), ("both", 0.0, 8), ("both", 1.0, 1)]
)
def test_what_is_not_mixed_stays_as_it_is(kind, share, count):
    images_NCHW, labels_N = Mixing(kind, 0.5, share, 4)(
        pictures(count), LABELS[:count], generator()
    )
    assert torch.equal(images_NCHW, pictures(count))
    assert torch.equal(labels_N, LABELS[:count])


def test_erasing_changes_one_rectangle_of_the_promised_size_in_the_promised_share():
    black = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    erased = erase(black, 0.5, generator()).any(dim=1)
    touched = [mask for mask in erased if mask.any()]
    assert 150 < len(touched) < 250
    for mask in touched[:50]:
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        tall, wide = (int(i.max() - i.min()) + 1 for i in (rows, columns))
        assert mask.float().sum() / (tall * wide) > 0.95
        assert AREA[0] * 0.4 < tall * wide / 1024 < AREA[1] * 1.3
    assert torch.equal(erase(black, 0.0, generator()), black)


def test_trivial_views_repeat_and_differ_between_pictures():
    augment = Augment(AugmentSettings(trivial=True, rotation=0, zoom=0, flip=False, color=0))
    same = pictures(1).expand(6, 3, 32, 32)
    before = torch.random.get_rng_state()
    views = augment(same, generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(views, augment(same, generator()))
    assert len({view.numpy().tobytes() for view in views}) > 3
    assert views.dtype == torch.uint8
