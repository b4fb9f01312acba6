from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgvc_core.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, surroundings
from fgvc_core.errors import ConfigurationError

from .picture_trees import noise

BOX = (0.25, 0.25, 0.5, 0.5)


def picture(seed=1, height=48, width=64):
    """Noise in the mid range: neither flat nor saturated."""
    return Image.fromarray(64 + noise(seed, height, width) // 2)


def changed(name, severity, seed=7, image=None):
    image = picture() if image is None else image
    return corrupt(image, name, severity, seed, box=BOX, backdrop=picture(2))


def damage(name, severity):
    image = picture(height=192, width=256)
    before, after = (
        np.asarray(i, dtype=float) for i in (image, changed(name, severity, image=image))
    )
    return ((before - after) ** 2).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_does_more_than_the_one_before(name):
    damages = [damage(name, severity) for severity in SEVERITIES]
    assert damages[0] > 0
    assert all(more > less for less, more in pairwise(damages))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_equal_seeds_give_equal_pixels_of_the_same_size(name):
    one, two = changed(name, 3), changed(name, 3)
    assert one.size == picture().size
    assert one.mode == "RGB"
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["noise", "occlusion"])
def test_another_seed_draws_another_corruption(name):
    assert not np.array_equal(changed(name, 3, seed=1), changed(name, 3, seed=2))


def test_the_occluding_square_covers_its_share_and_grows_where_it_is():
    def covered(severity):
        black = Image.new("RGB", (100, 100))
        return np.asarray(changed("occlusion", severity, image=black)).any(axis=2)

    masks = [covered(severity) for severity in SEVERITIES]
    shares = [mask.mean() for mask in masks]
    assert shares == pytest.approx([0.05, 0.1, 0.2, 0.3, 0.4], abs=0.02)
    for smaller, larger in pairwise(masks):
        # Rounding to pixels may leave out one row or column.
        assert (smaller & ~larger).sum() <= 2 * np.sqrt(smaller.sum()) + 1


def test_noise_has_the_published_deviation():
    grey = Image.new("RGB", (128, 128), (128, 128, 128))
    noisy = np.asarray(changed("noise", 1, image=grey), dtype=float)
    assert noisy.std() / 255 == pytest.approx(0.08, rel=0.02)


def test_the_subject_stays_and_its_background_goes():
    before, after, behind = (
        np.asarray(i) for i in (picture(), changed("background", 5), picture(2))
    )
    np.testing.assert_array_equal(before[12:36, 16:48], after[12:36, 16:48])
    np.testing.assert_array_equal(after[:12], behind[:12])


def test_surroundings_hold_nothing_of_the_subject():
    scene = np.zeros((40, 60, 3), dtype=np.uint8)
    scene[10:30, 5:25] = 255
    found = surroundings(Image.fromarray(scene), (5 / 60, 10 / 40, 20 / 60, 20 / 40))
    assert found.size == (60, 40)
    assert not np.asarray(found).any()


def test_a_subject_that_fills_the_picture_leaves_its_mean_colour():
    full = Image.new("RGB", (30, 20), (10, 20, 30))
    assert surroundings(full, (0.0, 0.0, 1.0, 1.0)).getpixel((3, 3)) == (10, 20, 30)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(CORRUPTIONS),
    st.sampled_from(SEVERITIES),
    st.integers(0, 2**62),
    st.tuples(*[st.floats(-0.5, 1.5)] * 2, *[st.floats(0, 2)] * 2),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_size_any_box_gives_a_picture_of_that_size(name, severity, seed, box, size):
    image = Image.new("RGB", size, (90, 120, 150))
    behind = surroundings(image, box)
    assert corrupt(image, name, severity, seed, box=box, backdrop=behind).size == size


@pytest.mark.parametrize(
    ("name", "severity", "says"),
    [("blurr", 1, "'blur'"), ("blur", 6, "1 to 5"), ("background", 1, "boxes")],
)
def test_what_cannot_be_done_is_refused_by_name(name, severity, says):
    with pytest.raises(ConfigurationError, match=name) as refused:
        corrupt(picture(), name, severity, 1)
    assert says in str(refused.value)
