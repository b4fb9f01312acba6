import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from fgvc_core.data.settings import AugmentSettings
from fgvc_core.data.transforms import Augment, placement, square

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


def test_views_draw_from_the_given_generator_alone_whatever_the_layout_in_memory():
    settings = {"rotation": 30.0, "zoom": 0.3, "flip": True, "color": 0.3}
    before = torch.random.get_rng_state()
    one = views(smooth(), **settings)
    assert torch.equal(torch.random.get_rng_state(), before)
    channels_last = smooth().contiguous(memory_format=torch.channels_last)
    difference = views(channels_last, **settings).float() - one.float()
    assert difference.abs().max() <= 1


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


@given(
    seed=st.integers(0, 2**31),
    rotation=st.floats(0, 180),
    zoom=st.floats(0, 0.9),
    flip=st.booleans(),
    color=st.floats(0, 1),
)
def test_any_view_is_again_a_picture_of_the_same_range(seed, rotation, zoom, flip, color):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8, generator=generator)
    kept = images.clone()
    seen = views(images, seed, rotation=rotation, zoom=zoom, flip=flip, color=color)
    assert (seen.shape, seen.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, kept)
    if not color:
        # Interpolation between pixels and reflection at the edge make no new extremes.
        assert images.min() <= seen.min() <= seen.max() <= images.max()


def test_strong_colours_are_cut_off_and_never_wrap_around():
    white = torch.full((64, 3, 4, 4), 250, dtype=torch.uint8)
    assert views(white, color=0.2).min() >= 150
    assert views(white, color=0.2).max() == 255


def test_about_half_are_mirrored():
    images = smooth(200)
    same = (views(images, flip=True) == images).flatten(1).all(dim=1)
    assert 70 <= int(same.sum()) <= 130


@pytest.mark.parametrize("settings", [{"rotation": 40.0}, {"zoom": 0.4}, {"color": 0.4}])
def test_each_variation_draws_for_each_picture(settings):
    seen = views(smooth(12), **settings)
    assert len({picture.numpy().tobytes() for picture in seen}) == 12


def test_a_quarter_turn_is_a_quarter_turn():
    images = smooth(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "fgvc_core.data.transforms._between", lambda low, high, n, g: torch.full((n,), high)
        )
        turned = views(images, rotation=90.0)
    assert any(torch.equal(turned, images.rot90(k, (2, 3))) for k in (1, 3))


def test_zoom_in_shows_the_middle_and_out_the_surroundings():
    images = torch.zeros(64, 3, 24, 24, dtype=torch.uint8)
    images[..., 8:16, 8:16] = 255
    share = views(images, zoom=0.3).float().mean(dim=(1, 2, 3)) / 255
    assert share.min() == pytest.approx((8 / 24) ** 2 * 0.7**2, rel=0.15)
    assert share.max() == pytest.approx((8 / 24) ** 2 * 1.3**2, rel=0.15)


@given(st.integers(5, 60), st.floats(1, 6), st.booleans(), st.sampled_from(["bilinear", "bicubic"]))
def test_a_square_keeps_the_centre_whatever_the_aspect(side, aspect, tall, interpolation):
    along = round(side * aspect)
    height, width = (along, side) if tall else (side, along)
    picture = np.zeros((height, width, 3), np.uint8)
    # A cross through the centre stays a cross through the centre.
    picture[height // 2 - 1 : (height + 1) // 2 + 1] = 200
    picture[:, width // 2 - 1 : (width + 1) // 2 + 1] = 200
    cut = square(picture, 32, 1.0, interpolation).astype(float)[..., 0]
    assert cut.shape == (32, 32)
    weights = cut - cut.min()
    if weights.sum() > 0:
        for axis in (0, 1):
            profile = weights.sum(axis=axis)
            assert abs((profile * np.arange(32)).sum() / profile.sum() - 15.5) < 1.5


def cut_from_the_whole(picture, size, crop, interpolation):
    """What a square is by definition: the whole picture resized, then the middle of it."""
    target, (left, top) = placement(*picture.shape[:2], size, crop)
    chosen = getattr(Image.Resampling, interpolation.upper())
    whole = Image.fromarray(picture).resize(target, chosen)
    return np.asarray(whole.crop((left, top, left + size, top + size)))


@given(
    st.integers(8, 60),
    st.floats(1, 4),
    st.booleans(),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from([1.0, 0.875]),
    st.integers(0, 99),
)
def test_the_square_of_an_ordinary_picture_is_cut_from_the_whole_to_the_bit(
    side, aspect, tall, interpolation, crop, seed
):
    assume(aspect <= 4 * crop**2 * 0.95 or side >= 48)
    shape = (round(side * aspect), side) if tall else (side, round(side * aspect))
    picture = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    cut = square(picture, 32, crop, interpolation)
    assert (cut == cut_from_the_whole(picture, 32, crop, interpolation)).all()


@given(
    st.integers(1, 40),
    st.floats(5, 60),
    st.booleans(),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from([1.0, 0.875, 0.3]),
    st.integers(0, 99),
)
def test_the_square_of_a_thin_picture_is_the_same_but_for_rounding(
    side, aspect, tall, interpolation, crop, seed
):
    shape = (round(side * aspect), side) if tall else (side, round(side * aspect))
    picture = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    cut = square(picture, 32, crop, interpolation).astype(int)
    off = abs(cut - cut_from_the_whole(picture, 32, crop, interpolation))
    # A value near a half may turn over in each of the two directions; hardly any does in both.
    assert off.max() <= 2
    assert (off > 1).mean() < 0.01


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1), (3, 30_000), (5000, 12_000)])
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.01, 1e-9])
def test_a_square_takes_no_more_pixels_than_the_picture_and_four_squares(monkeypatch, shape, crop):
    made = []
    resize = Image.Image.resize

    def watched(image, size, *args, **kwargs):
        made.append(size[0] * size[1])
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert square(np.full((*shape, 3), 7, np.uint8), 512, crop).shape == (512, 512, 3)
    assert made
    assert max(made) <= max(4 * 512**2, shape[0] * shape[1], 512 * shape[0])


def test_a_square_that_fits_already_is_the_picture_itself():
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert square(picture, 20) is picture


@pytest.mark.parametrize(("crop", "kept"), [(1.0, 1.0), (0.875, 0.875), (0.5, 0.5)])
def test_the_crop_is_the_share_of_the_short_side_that_is_kept(crop, kept):
    ramp = np.linspace(0, 255, 400)[None, :, None].repeat(400, axis=0).repeat(3, axis=2)
    cut = square(ramp.round().astype(np.uint8), 100, crop)
    assert (int(cut[50, -1, 0]) - int(cut[50, 0, 0])) / 255 == pytest.approx(kept, abs=0.02)
