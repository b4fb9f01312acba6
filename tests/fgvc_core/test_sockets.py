"""Sockets that their owner alone can open, whatever their path's length and the umask."""

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.errors import ConfigurationError
from fgvc_core.sockets import (
    LONGEST,
    make_socket_file,
    path_of,
    socket_address,
    socket_folder,
    socket_name,
)


@pytest.fixture(params=[0o000, 0o022])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("before", [None, 0o755, 0o777])
def test_a_folder_for_sockets_is_its_owners_alone_whatever_it_was(tmp_path, umask, before):
    folder = tmp_path / "sockets"
    if before is not None:
        folder.mkdir()
        folder.chmod(before)
    assert socket_folder(folder) == folder
    assert mode(folder) == 0o700


def test_a_link_and_a_file_are_no_folder_for_sockets(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="no folder of this account"):
        socket_folder(tmp_path / "link")
    assert mode(tmp_path / "elsewhere") != 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_somebody_elses_folder_is_refused(tmp_path):
    folder = tmp_path / "sockets"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with pytest.raises(ConfigurationError, match="no folder of this account"):
        socket_folder(folder)


@pytest.fixture
def short():
    """A folder whose own path is short, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1, 180, 900])
def test_what_one_listens_on_another_reaches_however_long_the_path(short, length):
    folder = short
    while (left := length - len(os.fsencode(folder / "s"))) > 0:
        folder = folder / ("d" * min(left - 1, 200 if left != 202 else 100))
    folder.mkdir(parents=True)
    path = folder / "s"
    assert len(os.fsencode(path)) == length
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(socket_name(path))
        listening.listen()
        other.connect(socket_name(path))
        other.sendall(b"here")
        taken, _ = listening.accept()
        with taken:
            assert taken.recv(10) == b"here"
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_a_folder_that_was_made_anew_is_found_again(tmp_path):
    folder = tmp_path / ("f" * 120)
    for _ in range(2):
        folder.mkdir()
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(socket_name(folder / "s"))
        assert (folder / "s").exists()
        (folder / "s").unlink()
        folder.rmdir()


def test_a_sockets_file_is_its_owners_alone_and_made_anew(tmp_path, umask):
    path = tmp_path / "s"
    for _ in range(2):
        make_socket_file(path)
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert mode(path) == 0o600


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_an_address_says_which_socket_it_is(name):
    assert path_of(socket_address(Path("/run") / name)) == Path("/run") / name


@pytest.mark.parametrize("address", ["127.0.0.1:80", "[::1]:80", "localhost:80"])
def test_a_port_is_no_socket(address):
    assert path_of(address) is None
