"""A home whose keys others read, or whose settings others change, does not come up."""

import pytest

from fgvc_core.errors import ConfigurationError
from fgvc_core.protocol.keys import new_key, public_text
from fieldmark.client.deployment.home_modes import SECRETS, TRUSTED, check_modes
from fieldmark.client.deployment.link import Link, write_link
from fieldmark.client.deployment.supervisor import up, up_detached
from fieldmark.client.provision import make_home


@pytest.fixture
def home(tmp_path):
    coordinator = public_text(new_key().public_key())
    found = make_home(tmp_path / "home", name="lyon", coordinator=coordinator, cache=tmp_path).home
    write_link(found, Link(address="127.0.0.1:1"), "a CA")
    return found


def test_a_fresh_home_and_one_of_a_private_groups_umask_come_up(home):
    check_modes(home)
    (home / "site.toml").chmod(0o664)
    check_modes(home)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o666])
def test_a_secret_that_others_can_read_is_refused_by_both_ways_up(home, name, mode):
    (home / name).chmod(mode)
    for way in (up, up_detached):
        with pytest.raises(ConfigurationError, match=f"has mode {mode:04o}") as caught:
            way(home, print)
        assert f"chmod 600 {home / name}" in caught.value.remedy


@pytest.mark.parametrize("name", TRUSTED)
def test_what_everybody_can_change_is_refused(home, name):
    path = home / name
    path.touch()
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="others on this machine can change it") as caught:
        up(home, print)
    assert f"chmod o-w {path}" in caught.value.remedy


def test_a_folder_that_everybody_can_write_to_is_refused(home):
    home.chmod(0o777)
    with pytest.raises(ConfigurationError, match="mode 0777"):
        check_modes(home)


def test_a_folder_that_is_no_home_is_named_as_that_by_both_ways_up(tmp_path):
    # Not as a key that is to be restored from a backup.
    for way in (up, up_detached):
        with pytest.raises(ConfigurationError, match="settings") as caught:
            way(tmp_path / "lyno", print)
        assert "Name the folder that holds site.toml" in caught.value.remedy
