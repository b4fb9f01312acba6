"""Deep pictures by a stated rule, read alike whatever file they are in."""

import numpy as np
import pytest
from PIL import Image

from fgvc_core.data.catalogue import load_table
from fgvc_core.data.depth import Depth
from fgvc_core.data.files import FileSource
from fgvc_core.data.settings import DataSettings
from fgvc_core.errors import DataError

from .test_reader import deep_files, exif_of, png16, tiff16

TWELVE = Depth("scale", bits=12)


def read(folder, name, depth):
    return FileSource(folder, [name], depth=depth).picture(0)


def test_twelve_bits_are_almost_white_in_every_file(tmp_path):
    for name in deep_files(tmp_path):
        picture_HWC = read(tmp_path, name, TWELVE)
        # A PPM states a maximum of 65535 itself, a PGM one of 4095.
        assert (picture_HWC == (16 if name == "rgb.ppm" else 249)).all(), name


def test_rules_map_a_gradient_as_they_say(tmp_path):
    ramp = np.repeat(np.linspace(1000, 3000, 201).astype(np.uint16)[None, :, None], 40, 0)
    (tmp_path / "grey.png").write_bytes(png16(ramp))
    (tmp_path / "rgb.png").write_bytes(png16(np.repeat(ramp, 3, 2)))
    (tmp_path / "rgb.tif").write_bytes(tiff16(np.repeat(ramp, 3, 2)))
    for name in ("grey.png", "rgb.png", "rgb.tif"):
        window = read(tmp_path, name, Depth("window", window=(2000.0, 1000.0)))
        assert window[0, 50, 0] == 0
        assert window[0, 100].tolist() == [128] * 3
        assert window[0, 150, 0] == 255
        percentile = read(tmp_path, name, Depth("percentile"))
        assert percentile[0, 0, 0] == 0
        assert percentile[0, -1, 0] == 255
        assert abs(int(percentile[0, 100, 0]) - 128) <= 1
        scale = read(tmp_path, name, Depth("scale"))
        assert scale[0, 100, 0] == round(2000 / 65535 * 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pictures_are_upright_too(tmp_path, orientation):
    from .test_reader import stored

    grey_HW = np.asarray(stored(orientation).convert("L"))
    deep = Image.fromarray(grey_HW.astype(np.uint16) * 16)
    deep.save(tmp_path / "a.png", exif=exif_of(orientation))
    upright = np.asarray(stored(1).convert("L")).astype(int)
    found = read(tmp_path, "a.png", TWELVE)[..., 0].astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= 1


def test_a_recipes_rule_reaches_the_pictures_and_the_cache(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            value = np.full((20, 20, 1), 1000 * (i + 1), np.uint16)
            (tmp_path / name / f"{i}.png").write_bytes(png16(value))

    def table(**settings):
        return load_table(DataSettings(name="folder", path=str(tmp_path), **settings), tmp_path)

    with pytest.raises(DataError, match="more than 8 bits"):
        table().picture(0)
    one, two = table(depth="scale", depth_bits=12), table(depth="scale")
    assert one.picture(2).mean() == 187
    assert two.picture(2).mean() == 12
    assert one.view_key(2) != two.view_key(2) != table().view_key(2)
    assert one.content_key(2) == two.content_key(2)


def test_a_damaged_deep_picture_is_an_error_of_the_data(tmp_path):
    whole = png16(np.full((40, 40, 3), 4000, np.uint16))
    for cut in (60, len(whole) // 2, len(whole) - 20):
        (tmp_path / "a.png").write_bytes(whole[:cut])
        with pytest.raises(DataError):
            read(tmp_path, "a.png", TWELVE)
