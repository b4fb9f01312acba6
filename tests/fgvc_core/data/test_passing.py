"""What the machine lacks for a moment is no fault of a picture, and is not remembered as one."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from fgvc_core.data import files, passing, walking
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.decoding import decode_each
from fgvc_core.data.files import FileSource
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.passing import PassingFault, is_passing, memory_is_left
from fgvc_core.data.settings import DataSettings
from fgvc_core.errors import DataError
from fgvc_core.experiment import make_learner
from fgvc_core.recipe import parse_recipe

from .picture_trees import make_table, write_picture

MOMENTARY = [
    MemoryError(),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENFILE, "Too many open files in system"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError(errno.EINTR, "Interrupted system call"),
    OSError(errno.ESTALE, "Stale file handle"),
]


def failing(monkeypatch, error, times=10**6, memory=False):
    """Pictures named b.png fail so many times; is there memory when that is asked?"""
    opened = Image.open
    left = [times]

    def fail(path, *args, **kwargs):
        if Path(path).name == "b.png" and left[0]:
            left[0] -= 1
            raise error
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(files, "memory_is_left", lambda: memory)


def table_of(tmp_path: Path):
    for number, name in enumerate("abc"):
        write_picture(tmp_path / "tree" / "jay" / f"{name}.png", number)
    settings = DataSettings(
        name="folder", path=str(tmp_path / "tree"), classes=("jay", "wren"), test_fraction=0.0
    )
    return load_table(settings, tmp_path / "cache", left_out=LeftOut())


def learner_for(train: str):
    return make_learner(
        parse_recipe(f"""
        [data]
        image_size = 32
        [model]
        backbone = "fieldmark_nano"
        train = "{train}"
    """),
        2,
    )


@pytest.mark.parametrize("train", ["head", "all"])
@pytest.mark.parametrize("error", MOMENTARY, ids=repr)
def test_a_moments_lack_is_raised_and_the_picture_is_there_again_afterwards(
    tmp_path, monkeypatch, train, error
):
    table, learner = table_of(tmp_path), learner_for(train)
    with monkeypatch.context() as patched:
        failing(patched, error)
        with pytest.raises(PassingFault, match=r"b\.png' could not be read just now"):
            learner.readable_examples(table, tmp_path / "cache", LeftOut())
    left_out = LeftOut()
    sound, examples = learner.readable_examples(table, tmp_path / "cache", left_out)
    assert (len(sound), len(examples), left_out.total) == (3, 3, 0)


def test_a_picture_that_asks_for_more_than_any_may_counts_as_nothing(tmp_path, monkeypatch):
    table, learner = table_of(tmp_path), learner_for("head")
    failing(monkeypatch, MemoryError(), memory=True)
    left_out = LeftOut()
    sound, _ = learner.readable_examples(table, tmp_path / "cache", left_out)
    assert sound.ids == ("jay/a.png", "jay/c.png")
    assert left_out.total == 1


@pytest.mark.parametrize("error", [MemoryError(), OSError("broken data stream")], ids=repr)
def test_a_picture_that_failed_for_lack_of_memory_is_decoded_once_more(
    tmp_path, monkeypatch, error
):
    write_picture(tmp_path / "b.png", 1)
    failing(monkeypatch, error, times=1, memory=True)
    assert FileSource(tmp_path, ["b.png"]).picture(0).shape == (24, 30, 3)


def test_a_decoders_complaint_is_not_believed_while_memory_is_short(tmp_path, monkeypatch):
    write_picture(tmp_path / "b.png", 1)
    failing(monkeypatch, OSError("broken data stream"))
    with pytest.raises(PassingFault, match="out of memory"):
        FileSource(tmp_path, ["b.png"]).picture(0)


def test_any_source_may_run_out_of_memory(monkeypatch):
    table = make_table([0, 0])

    def short(row, size=None):
        raise MemoryError

    monkeypatch.setattr(table.source, "picture", short)
    with pytest.raises(MemoryError):
        decode_each(table, 16, lambda position, picture: None, whatever=True)


def fail_for_want_of_descriptors(*args, **kwargs):
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_listing_that_fails_for_a_moment_is_no_empty_folder(tmp_path, monkeypatch):
    table = table_of(tmp_path)
    monkeypatch.setattr(os, "scandir", fail_for_want_of_descriptors)
    with pytest.raises(PassingFault):
        table.source.missing()
    with pytest.raises(PassingFault):
        list(walking.tree_pictures(tmp_path, print))


def test_a_file_whose_key_cannot_be_read_for_a_moment_is_not_left_out(tmp_path, monkeypatch):
    table, learner = table_of(tmp_path), learner_for("head")
    monkeypatch.setattr(Path, "open", fail_for_want_of_descriptors)
    with pytest.raises(PassingFault):
        learner.readable_examples(table, tmp_path / "cache", LeftOut())


def test_what_a_file_system_says_of_one_file_is_that_files_own(tmp_path, monkeypatch):
    for number in (errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EPERM, errno.EISDIR):
        assert not is_passing(OSError(number, os.strerror(number)))
    table = table_of(tmp_path)
    failing(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(DataError, match="Permission denied"):
        table.picture(1)


def test_memory_is_asked_for_in_earnest(monkeypatch):
    assert memory_is_left()
    monkeypatch.setattr(passing, "DECODING_BYTES", 1 << 62)
    assert not memory_is_left()
