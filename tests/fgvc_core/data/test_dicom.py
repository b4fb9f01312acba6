"""DICOM: pixels as the standard shows them, nothing of the header anywhere, damage bounded."""

import io
import json
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fgvc_core.cli import data_app
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.depth import Depth
from fgvc_core.data.dicom import read_dicom
from fgvc_core.data.files import FileSource
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.settings import PATIENT, DataSettings
from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal

from .dicom_files import SECRET, pydicom, ramp, write_dicom
from .picture_trees import noise, write_folders

TWELVE = {"BitsStored": 12, "HighBit": 11}


def read(path: Path, depth: Depth | None = None) -> np.ndarray:
    return FileSource(path.parent, [path.name], depth=depth).picture(0)


def grey(path: Path, depth: Depth | None = None) -> np.ndarray:
    """The first row's values, where stored ones rise by 16."""
    picture_HWC = read(path, depth)
    assert picture_HWC.dtype == np.uint8
    assert (picture_HWC == picture_HWC[:1, :, :1]).all()
    return picture_HWC[0, :, 0].astype(int)


def test_the_files_window_becomes_0_to_255_and_small_is_bright_in_monochrome1(tmp_path):
    window = {"WindowCenter": 2048, "WindowWidth": 1024, **TWELVE}
    seen = grey(write_dicom(tmp_path / "a.dcm", ramp(), **window))
    assert seen[1536 // 16 - 1] == 0
    assert seen[2048 // 16] == 128
    assert seen[2560 // 16] == 255
    inverse = write_dicom(
        tmp_path / "b.dcm", ramp(), PhotometricInterpretation="MONOCHROME1", **window
    )
    assert (grey(inverse) == 255 - seen).all()


def test_windows_count_in_rescaled_units_and_the_first_of_several_is_taken(tmp_path):
    path = write_dicom(
        tmp_path / "ct.dcm", (ramp().astype(np.int16) - 1000), RescaleSlope=2,
        RescaleIntercept=-24, WindowCenter=[40, 400], WindowWidth=[400, 1500],
    )  # fmt: skip
    units = 2 * (np.arange(0, 4096, 16) - 1000) - 24
    expected = np.clip(((units - 39.5) / 399 + 0.5) * 255, 0, 255).round()
    assert np.abs(grey(path) - expected).max() <= 1
    lung = grey(path, Depth("window", window=(-600.0, 1500.0)))
    assert np.abs(lung - np.clip((units + 1350) * 0.17, 0, 255)).max() <= 1


@pytest.mark.parametrize("kind", ["LINEAR_EXACT", "SIGMOID"])
def test_other_window_functions_of_the_standard(tmp_path, kind):
    path = write_dicom(
        tmp_path / "a.dcm", ramp(), WindowCenter=2000, WindowWidth=800, VOILUTFunction=kind
    )
    x = (np.arange(0, 4096, 16) - 2000) / 800
    expected = np.clip(x + 0.5, 0, 1) if kind == "LINEAR_EXACT" else 1 / (1 + np.exp(-4 * x))
    assert np.abs(grey(path) - 255 * expected).max() <= 1


def test_a_table_of_values_of_interest_goes_before_the_window(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.LUTData = np.arange(4095, -1, -1, dtype=np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    path = write_dicom(
        tmp_path / "a.dcm", ramp(), VOILUTSequence=[table], WindowCenter=1, WindowWidth=2, **TWELVE
    )
    assert np.abs(grey(path) - (4095 - np.arange(0, 4096, 16)) * 255 / 4095).max() <= 1


def test_depth_without_a_window_is_refused_unless_the_recipe_says_how(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", ramp(), **TWELVE)
    with pytest.raises(DataError, match="more than 8 bits") as caught:
        read(path)
    assert "data.depth" in caught.value.remedy
    assert np.abs(grey(path, Depth("scale")) - np.arange(256) * 16 * 255 / 4095).max() <= 1
    assert grey(path, Depth("percentile"))[[0, -1]].tolist() == [0, 255]
    eight = np.tile(np.arange(256, dtype=np.uint8)[None], (4, 1))
    assert (grey(write_dicom(tmp_path / "b.dcm", eight)) == np.arange(256)).all()


def test_padding_does_not_count_towards_the_percentiles(tmp_path):
    pixels = ramp().astype(np.int16)
    pixels[10:] = -2000
    path = write_dicom(tmp_path / "a.dcm", pixels, PixelPaddingValue=-2000)
    assert abs(int(read(path, Depth("percentile"))[0, 128, 0]) - 128) <= 2


def test_colors_palettes_and_compressed_pixels(tmp_path):
    rgb_HWC = noise(1)
    assert (read(write_dicom(tmp_path / "rgb.dcm", rgb_HWC)) == rgb_HWC).all()
    planes = np.ascontiguousarray(rgb_HWC.transpose(2, 0, 1)).reshape(rgb_HWC.shape)
    path = write_dicom(tmp_path / "planes.dcm", planes, PlanarConfiguration=1)
    assert (read(path) == rgb_HWC).all()
    ybr_HWC = np.asarray(Image.fromarray(rgb_HWC).convert("YCbCr"))
    path = write_dicom(tmp_path / "ybr.dcm", ybr_HWC, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read(path).astype(int) - rgb_HWC).max() <= 4
    palette = {
        f"{color}PaletteColorLookupTable{part}": value
        for k, color in enumerate(("Red", "Green", "Blue"))
        for part, value in (
            ("Descriptor", [256, 0, 16]),
            ("Data", (np.arange(256) * 257 // (k + 1)).astype(np.uint16).tobytes()),
        )
    }
    index_HW = rgb_HWC[..., 0]
    path = write_dicom(
        tmp_path / "palette.dcm", index_HW, PhotometricInterpretation="PALETTE COLOR", **palette
    )
    assert np.abs(read(path).astype(int) - index_HW[..., None] / [1, 2, 3]).max() <= 1
    held = io.BytesIO()
    smooth = Image.fromarray(rgb_HWC).resize((64, 48), Image.Resampling.BICUBIC)
    smooth.save(held, "JPEG", quality=95, subsampling=0)
    path = write_dicom(
        tmp_path / "jpeg.dcm", np.asarray(smooth), "1.2.840.10008.1.2.4.50",
        pydicom.encaps.encapsulate([held.getvalue()]), PhotometricInterpretation="YBR_FULL_422",
    )  # fmt: skip
    assert np.abs(read(path).astype(int) - np.asarray(smooth)).mean() < 3
    whole = pydicom.dcmread(
        write_dicom(tmp_path / "rle.dcm", ramp(), WindowCenter=9, WindowWidth=9)
    )
    expected = read(tmp_path / "rle.dcm")
    whole.compress(pydicom.uid.RLELossless)
    whole.save_as(tmp_path / "rle.dcm")
    assert (read(tmp_path / "rle.dcm") == expected).all()


def test_of_several_frames_the_first_is_read_and_the_others_are_counted(tmp_path):
    write_folders(tmp_path, ["a", "b"])
    frames = np.stack([np.full((20, 24), value, np.uint8) for value in (9, 90, 200)])
    write_dicom(tmp_path / "a" / "cine", frames)
    table = load_table(DataSettings(name="folder", path=str(tmp_path)), tmp_path)
    assert (table.picture(list(table.ids).index("a/cine")) == 9).all()
    counts = json.loads(check(tmp_path, "--json").stdout)["unused"]["counts"]
    assert counts == {"further frames of files, of which one is read (data.frame)": 2}


@pytest.mark.parametrize("compressed", [False, True])
def test_the_frame_that_the_recipe_names_is_read_with_its_own_window(tmp_path, compressed):
    frames = np.stack([np.full((20, 24), value, np.uint16) for value in (100, 1000, 2000)])
    groups = []
    for center in (100, 1000, 4000):
        window, group = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = center, 8001
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    path = write_dicom(tmp_path / "a.dcm", frames, PerFrameFunctionalGroupsSequence=groups)
    if compressed:
        whole = pydicom.dcmread(path)
        whole.compress(pydicom.uid.RLELossless)
        whole.save_as(path)
    shown = {
        frame: FileSource(tmp_path, ["a.dcm"], frame=frame).picture(0)[0, 0, 0]
        for frame in ("first", "middle", "last")
    }
    # In the middle of their windows the first two, a quarter of the width below it the last.
    assert shown == {"first": 128, "middle": 128, "last": 64}


def test_windows_of_an_enhanced_file_lie_in_its_groups(tmp_path):
    frames = np.stack([ramp(), ramp()])
    window, group = pydicom.Dataset(), pydicom.Dataset()
    window.WindowCenter, window.WindowWidth = 2048, 1024
    group.FrameVOILUTSequence = [window]
    path = write_dicom(tmp_path / "a.dcm", frames, PerFrameFunctionalGroupsSequence=[group, group])
    assert grey(path)[128] == 128


# ---- people --------------------------------------------------------------------------------


def check(*arguments: object):
    return CliRunner().invoke(data_app, ["check", *(str(a) for a in arguments)])


def write_patients(root: Path) -> None:
    """Two classes of twelve pictures; patients 0 to 7 have three each, in one class or both."""
    for i in range(24):
        write_dicom(
            root / "ab"[i % 2] / f"{i:02}.dcm", noise(i)[..., 0], PatientID=f"{SECRET}-{i // 3}"
        )


@pytest.mark.parametrize("layout", ["folder", "manifest"])
def test_pictures_of_one_patient_are_one_subject_and_no_name_is_kept(tmp_path, layout):
    write_patients(tmp_path)
    rows = [f"{'ab'[i % 2]}/{i:02}.dcm,{'ab'[i % 2]}" for i in range(24)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    settings = DataSettings(name=layout, path=str(tmp_path), subject_column="dicom:PatientID")
    table = load_table(settings, tmp_path / "cache")
    by_id = dict(zip(table.ids, table.subjects, strict=True))
    assert len(set(by_id.values())) == 8
    assert by_id["a/00.dcm"] == by_id["b/01.dcm"] != by_id["b/03.dcm"]
    sides = set(zip(table.subjects, table.splits, strict=True))
    assert len(sides) == 8
    assert {split for _, split in sides} == {"train", "test"}
    assert SECRET not in repr((table.ids, table.subjects, table.columns))


def test_a_patient_in_two_splits_is_a_fault_that_names_a_picture(tmp_path):
    for split, i in (("train", 0), ("train", 1), ("test", 2), ("test", 3)):
        patient = f"{SECRET}-{0 if i in (0, 2) else i}"
        name = tmp_path / split / "ab"[i % 2] / f"{i}.dcm"
        write_dicom(name, noise(i)[..., 0], PatientID=patient)
    result = check(tmp_path, "--json", "--set", "data.subject_column=dicom:PatientID")
    report = json.loads(result.stdout)
    assert report["parted_subjects"] == ["the patient of test/a/2.dcm"]
    assert SECRET not in result.stdout
    assert result.exit_code == 3


def test_a_picture_without_a_patient_is_refused_or_left_out(tmp_path):
    write_patients(tmp_path)
    write_dicom(tmp_path / "a" / "none.dcm", noise(90)[..., 0], PatientID="")
    write_folders(tmp_path, ["b"], each=1)
    settings = DataSettings(name="folder", path=str(tmp_path), subject_column="dicom:PatientID")
    with pytest.raises(DataError, match="2 pictures have no PatientID"):
        load_table(settings, tmp_path)
    left_out = LeftOut()
    assert len(load_table(settings, tmp_path, left_out=left_out)) == 24
    assert left_out.counts() == {"without a PatientID": 2}


def test_nothing_of_a_header_is_in_the_cache_or_in_what_is_told(tmp_path, capfd):
    from fgvc_core.data.pictures import PictureBank

    write_patients(tmp_path / "data")
    whole = (tmp_path / "data" / "a" / "00.dcm").read_bytes()
    assert SECRET.encode() in whole
    (tmp_path / "data" / "a" / "cut.dcm").write_bytes(whole[:-50])
    settings = DataSettings(
        name="folder", path=str(tmp_path / "data"), subject_column="dicom:PatientID"
    )
    table = load_table(settings, tmp_path / "cache")
    bank = PictureBank(table, 16, cache=tmp_path / "cache", tolerant=True)
    assert len(bank.faults) == 1
    result = check(tmp_path / "data", "--set", "data.subject_column=dicom:PatientID")
    assert "1 of 25 pictures cannot be read" in " ".join(result.stdout.split())
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    held = b"".join(path.read_bytes() for path in files) + result.output.encode()
    assert SECRET.encode() not in held + str(capfd.readouterr()).encode()


def test_patients_of_a_set_without_dicom_are_refused_and_a_site_names_subjects_by_them(tmp_path):
    from fieldmark.client.privacy.policy import check_subject

    settings = DataSettings(name="cub", path=str(tmp_path), subject_column=PATIENT)
    with pytest.raises(ConfigurationError, match="is not for data"):
        load_table(settings, tmp_path)
    check_subject("folder", PATIENT)
    for kind, column in (("cub", PATIENT), ("folder", None), ("folder", "patient")):
        with pytest.raises(PolicyRefusal):
            check_subject(kind, column)


def test_a_site_recognizes_a_folder_of_patients_and_shows_no_name(tmp_path):
    from fieldmark.client.proposing import recognize

    write_patients(tmp_path)
    found = recognize(tmp_path, {"subject_column": PATIENT})
    assert found == {"subject_column": PATIENT, "kind": "folder", "folders": "classes"}


# ---- damage --------------------------------------------------------------------------------


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    write_folders(tmp_path, ["a", "b"])
    write_dicom(tmp_path / "a" / "x.dcm", noise(1)[..., 0])
    write_dicom(tmp_path / "a" / "1.2.840", noise(2)[..., 0])
    with monkeypatch.context() as m:
        m.setattr("fgvc_core.data.file_kinds.find_spec", lambda name: None)
        told = " ".join(check(tmp_path).stdout.split())
    assert "2 in a format that is not read here (DICOM)" in told
    assert "pip install 'fieldmark[formats]'" in told
    from fgvc_core.data import dicom

    def missing():
        raise ImportError

    monkeypatch.setattr(dicom, "_pydicom", missing)
    with pytest.raises(DataError, match="'formats' extra"):
        read(tmp_path / "a" / "x.dcm")


def hostile(folder: Path) -> dict[str, Path]:
    whole = write_dicom(folder / "whole.dcm", ramp(), WindowCenter=9, WindowWidth=9).read_bytes()
    head = whole[: whole.index(b"\x08\0\x16\0")]
    nested = b"\xfe\xff\0\xe0\xff\xff\xff\xff" + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff"
    files = {
        "text": b"not found", "empty": b"", "no-mark": whole[:128] + b"DICX" + whole[132:],
        "header": head, "cut": whole[:-100], "half": whole[: len(whole) // 4],
        "deep": head + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + nested * 20_000,
        "many": head + b"\x09\0\x10\0LO\0\0" * 1_000_000,
        "long": head + b"\x08\0\x70\x10UN\0\0\xff\xff\xff\x7f" + bytes(9 * 1024**2),
    }  # fmt: skip
    made = {}
    for name, content in files.items():
        made[name] = folder / f"{name}.dcm"
        made[name].write_bytes(content)
    pixels = noise(1)[..., 0]
    odd = {
        "large": {"Rows": 60_000, "Columns": 60_000}, "no-rows": {"Rows": None},
        "bits": {"BitsAllocated": 64}, "samples": {"SamplesPerPixel": 2},
        "kind": {"PhotometricInterpretation": "HSV"}, "zero": {"Columns": 0},
        "frames": {"NumberOfFrames": 2_000_000_000}, "nan": {"RescaleSlope": "0"},
    }  # fmt: skip
    for name, elements in odd.items():
        made[name] = write_dicom(folder / f"{name}.dcm", pixels, **elements)
    deflated = write_dicom(folder / "deflated.dcm", pixels, "1.2.840.10008.1.2.1.99")
    table = struct.pack("<II", 0xE000FFFE, 0x7FFFFFFC)
    for name, data in (("table", table + bytes(64)), ("stream", bytes(64)), ("bomb", bomb())):
        syntax = "1.2.840.10008.1.2.4.50"
        content = pydicom.encaps.encapsulate([bomb()]) if name == "bomb" else data
        try:
            made[name] = write_dicom(folder / f"{name}.dcm", pixels, syntax, content)
        except ValueError:
            continue
    return {**made, "deflated": deflated}


def bomb() -> bytes:
    """A JPEG of 12,000 x 12,000 pixels in a file that says 30 x 24."""
    held = io.BytesIO()
    Image.new("L", (64, 64)).save(held, "JPEG")
    content = held.getvalue()
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", 12_000, 12_000) + content[at + 4 :]


def test_damaged_and_hostile_files_are_errors_of_the_data_in_bounded_time_and_memory(tmp_path):
    for name, path in hostile(tmp_path).items():
        if name in ("frames", "nan"):
            assert read(path).shape == (24, 30, 3)
            continue
        # Tracing makes the parser many times slower.
        traced = name != "many"
        if traced:
            tracemalloc.start()
        began = time.monotonic()
        with pytest.raises(DataError) as caught:
            read_dicom(path, None)
        assert time.monotonic() - began < 5, name
        if traced:
            assert tracemalloc.get_traced_memory()[1] < 100e6, name
            tracemalloc.stop()
        assert SECRET not in str(caught.value), name
        assert path.name in caught.value.what


def test_flipped_bytes_raise_nothing_else_and_tell_nothing(tmp_path, caplog, recwarn):
    whole = write_dicom(
        tmp_path / "a.dcm", ramp(), WindowCenter=9, WindowWidth=9, RescaleSlope=1,
        RescaleIntercept=0,
    ).read_bytes()  # fmt: skip
    end = whole.index(b"\xe0\x7f\x10\0")
    rng, told = np.random.default_rng(3), []
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(132, end + 12, rng.integers(1, 6)):
            damaged[at] = rng.integers(0, 256)
        (tmp_path / "a.dcm").write_bytes(bytes(damaged[: rng.integers(200, len(whole))]))
        try:
            read(tmp_path / "a.dcm")
        except DataError as error:
            told.append(str(error))
    assert len(told) > 50
    assert not [words for words in told if SECRET in words]
    assert SECRET not in caplog.text
    assert not [w for w in recwarn if SECRET in str(w.message)]
