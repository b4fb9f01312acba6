"""Keys, certificates, kits: who is registered, and what is refused with its date."""

import datetime
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.protocol.keys import (
    fingerprint,
    new_key,
    parse_private,
    private_text,
    public_text,
    read_private,
    short_fingerprint,
)
from fgvc_core.protocol.kit import read_kit
from fieldmark.server.cli import server_app
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.certificates import check_dates, issue, read_certificate
from fieldmark.server.deployment.provisioning import (
    SECRETS,
    add_site,
    check_server,
    coordinator_key,
    init_server,
    remove_site,
    renew,
    replace_key,
)
from fieldmark.server.deployment.settings import DeploymentSettings
from fieldmark.server.ledger_memory import FOLDER, read_units

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def folder(tmp_path):
    settings = DeploymentSettings(hosts=("fl.example.org", "192.0.2.7", "::1"))
    init_server(tmp_path / "fed", settings)
    return tmp_path / "fed"


def public(key):
    return public_text(key.public_key())


def test_a_fresh_folder_can_be_put_into_service_and_its_secrets_are_its_owners(folder):
    assert check_server(folder) > 390
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for secret in SECRETS:
        assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600


def test_the_certificate_names_every_host_given(folder):
    names = read_certificate(folder / "server.pem").extensions.get_extension_for_class(
        __import__("cryptography.x509", fromlist=["x"]).SubjectAlternativeName
    )
    assert [str(name.value) for name in names.value] == ["fl.example.org", "192.0.2.7", "::1"]


@pytest.mark.parametrize("host", ["", "a b", "host:8443", "-x", "x" * 300, "a/../b"])
def test_a_host_that_is_none_is_refused_before_anything_is_made(tmp_path, host):
    with pytest.raises(ConfigurationError):
        init_server(tmp_path / "fed", DeploymentSettings(hosts=(host,)))
    assert not (tmp_path / "fed").exists()


def test_a_folder_is_never_made_over_another(folder):
    with pytest.raises(ConfigurationError, match="exists"):
        init_server(folder, DeploymentSettings(hosts=("a",)))


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_that_others_can_read_is_refused(folder, secret):
    os.chmod(folder / secret, 0o640)
    with pytest.raises(ConfigurationError, match="0640"):
        check_server(folder)


@pytest.mark.parametrize(
    ("starts", "days", "said"),
    [(NOW - 10 * DAY, 5, "expired on"), (NOW + 5 * DAY, 5, "valid from")],
    ids=["expired", "not yet"],
)
def test_a_certificate_that_is_not_valid_today_is_refused_with_its_date(folder, starts, days, said):
    issue(folder, "server", ["a"], starts=starts, days=days)
    with pytest.raises(PeerError, match=said) as caught:
        check_server(folder)
    issued = read_certificate(folder / "server.pem")
    day = issued.not_valid_after_utc if said == "expired on" else issued.not_valid_before_utc
    assert f"{day:%Y-%m-%d}" in caught.value.what
    assert caught.value.exit_code == 5


def test_renewing_keeps_the_authority_and_with_it_every_kit(folder):
    before = (folder / "ca.pem").read_bytes()
    old = read_certificate(folder / "server.pem").serial_number
    renew(folder, ("other.example.org",))
    assert (folder / "ca.pem").read_bytes() == before
    assert read_certificate(folder / "server.pem").serial_number != old
    assert check_dates(folder / "server.pem") > 390


def test_a_kit_for_their_key_holds_no_secret_and_all_that_a_site_needs(folder):
    key = new_key()
    entry, path = add_site(folder, "lyon", public(key) + " someone@somewhere")
    kit = read_kit(path)
    assert kit.site == "lyon"
    assert kit.address == "fl.example.org:8443"
    assert kit.key == ""
    assert "PRIVATE" not in path.read_text()
    assert kit.fingerprint == entry.fingerprint == fingerprint(key.public_key())
    assert "someone" not in path.read_text() + (folder / "sites.json").read_text()


def test_a_kit_with_a_key_is_for_one_reader(folder):
    _, path = add_site(folder, "lyon")
    kit = read_kit(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = parse_private(kit.key.encode(), "kit")
    assert fingerprint(key.public_key()) == kit.fingerprint
    assert "PRIVATE" not in (folder / "sites.json").read_text()


def test_a_private_key_is_not_taken_for_a_public_one(folder):
    with pytest.raises(ConfigurationError, match="private"):
        add_site(folder, "lyon", private_text(new_key()))
    assert AllowList(folder).active() == {}


@pytest.mark.parametrize("name", ["lyon", "LYON", "Lyon"])
def test_a_name_is_given_once_whatever_its_case(folder, name):
    add_site(folder, "lyon", public(new_key()))
    with pytest.raises(ConfigurationError, match="already"):
        add_site(folder, name, public(new_key()))


@pytest.mark.parametrize("name", ["", "../x", "a b", ".x", "x" * 200, "a/b"])
def test_a_name_that_could_be_a_path_is_refused(folder, name):
    with pytest.raises(ConfigurationError):
        add_site(folder, name, public(new_key()))


def test_a_key_stands_for_one_site_and_a_removed_one_never_comes_back(folder):
    key = new_key()
    add_site(folder, "lyon", public(key))
    with pytest.raises(ConfigurationError, match="registered as site 'lyon'"):
        add_site(folder, "oslo", public(key))
    allowed = AllowList(folder)
    allowed.remove("lyon")
    assert allowed.active() == {}
    with pytest.raises(ConfigurationError, match="removed"):
        add_site(folder, "lyon", public(key))
    add_site(folder, "lyon", public(new_key()))
    assert list(allowed.active()) == ["lyon"]


def test_a_list_that_another_process_changed_is_seen_at_once(folder):
    reader = AllowList(folder)
    key = new_key()
    digest = fingerprint(key.public_key())
    assert reader.by_fingerprint(digest) is None
    add_site(folder, "lyon", public(key))
    assert reader.by_fingerprint(digest).name == "lyon"
    AllowList(folder).remove("lyon")
    assert reader.by_fingerprint(digest) is None


def test_removing_a_site_that_is_none_names_those_there_are(folder):
    add_site(folder, "lyon", public(new_key()))
    with pytest.raises(ConfigurationError) as caught:
        AllowList(folder).remove("lion")
    assert "lyon" in caught.value.remedy


def test_the_coordinator_shows_both_keys_in_the_one_form(tmp_path):
    folder, key = tmp_path / "fed", new_key()
    (tmp_path / "lyon.pub").write_text(public(key))

    def run(*words):
        return CliRunner().invoke(server_app, [str(word) for word in words]).output

    made = run("init", folder, "--host", "fl.example.org")
    own = short_fingerprint(read_private(folder / "coordinator.key").public_key())
    assert own in made
    added = run("add-site", folder, "lyon", "--their-key", tmp_path / "lyon.pub")
    assert own in added
    assert short_fingerprint(key.public_key()) in added
    listed = run("status", folder)
    assert own in listed
    assert short_fingerprint(key.public_key()) in listed
    assert short_fingerprint(key.public_key()) in run("remove-site", folder, "lyon")


def test_another_number_of_units_is_accepted_for_a_registered_site_alone(folder):
    add_site(folder, "lyon", public(new_key()))

    def run(*words):
        return CliRunner().invoke(server_app, [str(word) for word in words])

    assert "1,200 units" in run("accept-units", folder, "lyon", 1200).output
    assert read_units(folder / FOLDER, "lyon") == 1200
    assert "before: 1,200" in run("accept-units", folder, "lyon", 900).output
    assert "no site 'oslo'" in str(run("accept-units", folder, "oslo", 5).exception)


def test_the_coordinators_key_has_signed_the_kit_with_its_certificate(folder):
    _, path = add_site(folder, "lyon", public(new_key()))
    kit = read_kit(path)
    assert fingerprint(kit.coordinator_key) == fingerprint(coordinator_key(folder))
    assert kit.ca == (folder / "ca.pem").read_text()


def test_the_kit_of_a_removed_site_or_a_lost_key_goes_with_the_key(folder):
    _, kit = add_site(folder, "lyon")
    _, other = add_site(folder, "turku")
    assert "PRIVATE KEY" in kit.read_text()
    said = CliRunner().invoke(server_app, ["remove-site", str(folder), "lyon"])
    assert said.exit_code == 0
    assert "start kit is deleted" in said.stdout
    assert not kit.exists()
    replace_key(folder, "turku", public(new_key()))
    assert not other.exists()
    # Neither makes one anew, and a site without a kit can be removed, too.
    assert remove_site(folder, "turku").name == "turku"
    assert list((folder / "kits").iterdir()) == []


@pytest.mark.parametrize("name", ["server.toml", "sites.json", "ca.pem"])
def test_what_everybody_can_change_keeps_the_coordinator_down(folder, name):
    add_site(folder, "lyon")
    (folder / name).chmod(0o666)
    with pytest.raises(ConfigurationError, match="others on this machine can change it"):
        check_server(folder)


def test_remedies_name_the_folder_and_not_a_placeholder(folder):
    late = NOW + 9999 * DAY
    with pytest.raises(PeerError) as caught:
        check_dates(folder / "server.pem", late)
    assert f"fieldmark server renew {folder}." in caught.value.remedy


def test_help_names_the_key_file_that_a_site_makes_and_the_guide_names():
    said = CliRunner().invoke(server_app, ["add-site", "--help"], env={"COLUMNS": "200"}).stdout
    assert "--their-key lyon.key.pub" in said
    guide = (Path(__file__).parents[3] / "docs" / "coordinator.md").read_text()
    assert "add-site federation lyon --their-key lyon.key.pub" in guide


def test_a_site_that_gets_no_kit_is_not_registered(tmp_path):
    folder = tmp_path / "fed"
    init_server(folder, DeploymentSettings.read({"hosts": ("h",), "gateway": {"port": 0}}, "test"))
    with pytest.raises(ConfigurationError, match="a kit has to name one"):
        add_site(folder, "lyon")
    assert AllowList(folder).entries() == []


def test_a_kit_that_cannot_be_written_leaves_name_and_key_free(folder):
    key = public_text(new_key().public_key())
    kits = folder / "kits"
    kits.rmdir()
    kits.write_text("a file where the folder was")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        add_site(folder, "lyon", key)
    kits.unlink()
    kits.mkdir(mode=0o700)
    entry, kit = add_site(folder, "lyon", key)
    assert (entry.name, kit.exists()) == ("lyon", True)
