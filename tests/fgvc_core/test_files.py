"""Files that are private from their first byte, whatever the umask."""

import io
import json
import logging
import os
import stat
from pathlib import Path

import pytest

from fgvc_core.files import (
    PrivateLogFile,
    append_durably,
    make_private,
    narrow,
    private_folder,
    replace_json,
    replacing,
    widely_readable,
    write_durably,
    write_privately,
)


@pytest.fixture(autouse=True, params=[0o022, 0o000, 0o077])
def _umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("write", [write_privately, write_durably, append_durably])
def test_a_file_is_its_owners_alone_also_where_a_wider_one_was_there(tmp_path, write):
    write(tmp_path / "fresh", b"x")
    assert mode(tmp_path / "fresh") == 0o600
    (tmp_path / "old").write_text("y")
    (tmp_path / "old").chmod(0o644)
    (tmp_path / "old.part").write_text("cut off before")
    (tmp_path / "old.part").chmod(0o644)
    write(tmp_path / "old", b"x")
    assert mode(tmp_path / "old") == 0o600
    assert (tmp_path / "old").read_bytes().endswith(b"x")


def test_a_folder_and_those_above_it_that_were_missing_are_their_owners_alone(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    given.chmod(0o755)
    assert private_folder(given / "a" / "b") == given / "a" / "b"
    assert mode(given / "a") == mode(given / "a" / "b") == 0o700
    private_folder(given)
    assert mode(given) == 0o755, "the user's own folder stays as it is"


def test_a_log_is_its_owners_alone_and_so_is_each_file_that_it_is_rotated_into(tmp_path):
    handler = PrivateLogFile(tmp_path / "site.log", maxBytes=10, backupCount=2, encoding="utf-8")
    for text in ("first line", "second line"):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 1, text, (), None))
    handler.close()
    assert (tmp_path / "site.log").read_text() == "second line\n"
    assert mode(tmp_path / "site.log") == mode(tmp_path / "site.log.1") == 0o600


def test_what_a_library_writes_by_name_can_be_made_private(tmp_path):
    make_private(tmp_path / "array")
    with (tmp_path / "array").open("w+b") as file:
        file.write(b"x")
    assert mode(tmp_path / "array") == 0o600
    (tmp_path / "wide").mkdir(mode=0o755)
    (tmp_path / "wide").chmod(0o755)
    assert widely_readable(tmp_path / "wide") == [tmp_path / "wide"]
    narrow(tmp_path / "wide")
    assert widely_readable(tmp_path / "wide") == []


@pytest.mark.parametrize("many_writers", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, many_writers):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def cut_off():
        with replacing(path, many_writers=many_writers) as aside:
            aside.write_text("half")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_off()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    with replacing(path, many_writers=many_writers) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"


def test_a_private_replacement_stays_private_where_a_library_makes_the_file_anew(tmp_path):
    path = tmp_path / "a.bin"
    with replacing(path, private=True, durable=True) as aside:
        assert stat.S_IMODE(aside.stat().st_mode) == 0o600
        aside.unlink()
        aside.write_bytes(b"x")
        aside.chmod(0o644)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_replacement_that_others_read_follows_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        replace_json(tmp_path / "a.json", {"a": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_log_on_a_full_disk_counts_what_is_lost_and_prints_no_traceback(tmp_path, capfd):
    path = tmp_path / "site.log"
    handler = PrivateLogFile(path, encoding="utf-8")
    log = logging.Logger("full")
    log.addHandler(handler)
    log.warning("first")
    well = handler.stream
    handler.stream = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)
    for number in range(3):
        log.warning("lost %d", number)
    handler.stream = well
    log.warning("last")
    handler.close()
    assert capfd.readouterr() == ("", "")
    assert path.read_text().splitlines() == [
        "first",
        "up to 3 records are missing here: the log could not be written",
        "last",
    ]
