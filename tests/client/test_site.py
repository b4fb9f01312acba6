import json
import stat
from pathlib import Path

import pytest

from fgvc_core.errors import ConfigurationError, DataError, FieldmarkError, PeerError
from fgvc_core.protocol.keys import fingerprint, new_key, public_text
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site

COORDINATOR = new_key()


def made(folder, **changes):
    values = {"name": "site-1", "coordinator": public_text(COORDINATOR.public_key())}
    return make_home(folder, **{**values, "cache": folder.parent, **changes})


@pytest.fixture
def home(tmp_path):
    return made(tmp_path / "deep" / "home").home


def test_a_home_is_opened_as_it_was_made(home, tmp_path):
    again = made(tmp_path / "other", data_path="pictures", split_key=b"s" * 32)
    site = Site.open(again.home)
    assert (site.name, site.split_key) == ("site-1", b"s" * 32)
    assert site.settings.data.path == str(Path.cwd() / "pictures")
    assert fingerprint(site.coordinator) == fingerprint(COORDINATOR.public_key())
    assert site.public_key == again.public_key != Site.open(home).public_key
    assert site.rows is None
    assert len(Site.open(home).split_key) == 32


def test_only_the_owner_reads_a_homes_secrets(home):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    assert (modes["key"], modes["split.key"]) == (0o600, 0o600)
    assert set(modes) == {"key", "split.key", "site.toml", "coordinator.pub"}


def test_a_home_that_is_there_is_not_touched(home):
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(ConfigurationError, match="exists already"):
        made(home)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"name": "../evil"}, ConfigurationError), ({"coordinator": "no key"}, PeerError)],
)
def test_a_wrong_setting_leaves_no_half_made_home(tmp_path, changes, kind):
    with pytest.raises(kind):
        made(tmp_path / "home", **changes)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("threads", "thraeds", "'threads'"),
        ("[resources]", "[resuorces]", "'resources'"),
        ("threads = 1", "threads = 0", "resources.threads"),
        ("threads = 1", "threads =", "is not TOML"),
        ('name = "site-1"', 'name = "a/b"', "'name'"),
    ],
)
def test_a_wrong_line_in_site_toml_is_named_with_what_was_meant(home, old, new, said):
    path = home / "site.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigurationError) as caught:
        Site.open(home)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["site.toml", "key", "split.key", "coordinator.pub"])
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_home_that_is_not_whole_is_an_error_with_a_code(home, name, harm):
    (home / name).unlink()
    if harm == "damaged":
        (home / name).write_bytes(b"\xff\xfe\x00")
    if (name, harm) == ("split.key", "damaged"):
        # Any bytes are a key.
        assert Site.open(home).split_key == b"\xff\xfe\x00"
        return
    with pytest.raises(FieldmarkError) as caught:
        Site.open(home)
    assert caught.value.exit_code in (2, 5)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2",
        '{"rows": [1]}',
        "[1.5]",
        '["1"]',
        "[[1], [2]]",
        "[-1]",
        "[true]",
        "5",
        f"[{10**30}]",
    ],
)
def test_damaged_rows_are_bad_data(home, text):
    (home / "rows.json").write_text(text)
    with pytest.raises(DataError, match=r"rows\.json"):
        Site.open(home)


def test_rows_are_read_as_they_were_written(home):
    (home / "rows.json").write_text(json.dumps([4, 0, 9]))
    assert Site.open(home).rows.tolist() == [4, 0, 9]
    (home / "rows.json").write_text("[]")
    assert Site.open(home).rows.tolist() == []
