"""From a key and a kit to a home; whatever does not fit leaves nothing behind."""

import json
import stat

import pytest
from typer.testing import CliRunner

from fgvc_core.errors import ConfigurationError, DataError, PeerError
from fgvc_core.protocol.keys import (
    fingerprint,
    new_key,
    private_text,
    public_text,
    read_private,
    read_public,
    short_fingerprint,
)
from fgvc_core.protocol.kit import StartKit, read_kit, write_kit
from fieldmark.client.cli import site_app
from fieldmark.client.deployment.joining import Answers, check_coordinator, join, make_key
from fieldmark.client.deployment.link import CA, read_link
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site

COORDINATOR_KEY = new_key()
COORDINATOR = public_text(COORDINATOR_KEY.public_key())


def kit_for(public, key="", **changes):
    values = {
        "site": "lyon",
        "address": "fl.example.org:8443",
        "ca": "-----BEGIN CERTIFICATE-----\n",
        "coordinator": COORDINATOR,
        "fingerprint": fingerprint(read_public(public)),
        "key": key,
    }
    return StartKit(**{**values, **changes})


def answers(data=None):
    return Answers(data=data, units=100, policy=Policy())


def test_a_key_stays_with_its_owner_and_only_its_public_half_is_shown(tmp_path):
    text = make_key(tmp_path / "lyon.key")
    assert stat.S_IMODE((tmp_path / "lyon.key").stat().st_mode) == 0o600
    assert (tmp_path / "lyon.key.pub").read_text() == text + "\n"
    assert "PRIVATE" not in text
    with pytest.raises(ConfigurationError, match="exists"):
        make_key(tmp_path / "lyon.key")


def test_a_kit_and_the_key_it_was_made_for_become_a_home(tmp_path):
    public = make_key(tmp_path / "lyon.key")
    site = join(kit_for(public), tmp_path / "home", answers(tmp_path), tmp_path / "lyon.key")
    assert site.name == "lyon"
    assert site.public_key == public
    assert site.settings.data.units == 100
    assert site.settings.data.path == str(tmp_path)
    link = read_link(tmp_path / "home")
    assert (link.host, link.port) == ("fl.example.org", 8443)
    assert (tmp_path / "home" / CA).read_text().startswith("-----BEGIN")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_kit_with_a_key_needs_no_other(tmp_path):
    key = new_key()
    kit = kit_for(public_text(key.public_key()), private_text(key))
    join(kit, tmp_path / "home", answers())
    own = read_private(tmp_path / "home" / "key")
    assert fingerprint(own.public_key()) == kit.fingerprint


def test_without_the_key_of_the_kit_nothing_is_made(tmp_path):
    public = make_key(tmp_path / "lyon.key")
    make_key(tmp_path / "other.key")
    with pytest.raises(ConfigurationError, match="no key"):
        join(kit_for(public), tmp_path / "home", answers())
    with pytest.raises(PeerError, match="not the one") as caught:
        join(kit_for(public), tmp_path / "home", answers(), tmp_path / "other.key")
    assert caught.value.exit_code == 5
    with pytest.raises(DataError, match="no folder") as caught:
        join(kit_for(public), tmp_path / "home", answers(tmp_path / "no"), tmp_path / "lyon.key")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "home").exists()


def test_a_home_is_never_made_over_another(tmp_path):
    public = make_key(tmp_path / "lyon.key")
    (tmp_path / "home").mkdir()
    with pytest.raises(ConfigurationError, match="exists"):
        join(kit_for(public), tmp_path / "home", answers(), tmp_path / "lyon.key")


def test_a_damaged_kit_is_refused_at_the_place_that_is_wrong(tmp_path):
    path = tmp_path / "lyon.kit"
    write_kit(kit_for(COORDINATOR), path, COORDINATOR_KEY)
    assert read_kit(path) == kit_for(COORDINATOR)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(PeerError, match="damaged"):
        read_kit(path)
    body = kit_for(COORDINATOR).model_dump_json().replace(":8443", ":port")
    path.write_text(json.dumps({"body": body, "signature": "00" * 64}))
    with pytest.raises(PeerError, match="'address'"):
        read_kit(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_kit(tmp_path / "none")


@pytest.fixture
def join_with(tmp_path):
    """Run ``site join`` on a kit, answers on standard input."""
    public = make_key(tmp_path / "lyon.key")
    write_kit(kit_for(public), tmp_path / "lyon.kit", COORDINATOR_KEY)

    def command(*more, typed=None):
        words = ["join", tmp_path / "lyon.kit", tmp_path / "home", "--key", tmp_path / "lyon.key"]
        return CliRunner().invoke(site_app, [str(w) for w in (*words, *more)], input=typed)

    return command


def test_joining_with_privacy_required_needs_a_cap_and_says_what_to_give(join_with, tmp_path):
    done = join_with("--privacy", "required", "--units", "9", "--yes")
    assert isinstance(done.exception, ConfigurationError)
    assert "--privacy required needs --epsilon-cap" in done.exception.what
    assert "--epsilon-cap none" in done.exception.remedy
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("given", "cap"), [("6.5", 6.5), ("none", None)])
def test_a_cap_is_given_as_a_number_or_as_the_word_none(join_with, tmp_path, given, cap):
    done = join_with("--privacy", "required", "--units", "9", "--epsilon-cap", given, "--yes")
    assert done.exception is None, done.exception
    policy = Site.open(tmp_path / "home").settings.policy
    assert (policy.cap, policy.privacy) == (cap, "required")
    assert (
        f"epsilon_cap = {given if cap else chr(34) + given + chr(34)}"
        in (tmp_path / "home" / "site.toml").read_text()
    )


def test_where_nobody_can_answer_the_option_that_answers_is_said(join_with, tmp_path):
    said = short_fingerprint(COORDINATOR_KEY.public_key())
    for words, instead in (
        ([], "--fingerprint"),
        (["--fingerprint", said], "--data"),
        (["--fingerprint", said, "--data", "x"], "--units"),
        (["--fingerprint", said, "--data", "x", "--units", "9"], "--privacy required"),
        (["--fingerprint", said, "--data", "x", "--units", "9", "--privacy", "required"],
         "--epsilon-cap 8.0"),
    ):  # fmt: skip
        done = join_with(*words)
        assert isinstance(done.exception, ConfigurationError), done.exception
        assert instead in done.exception.remedy
        assert not (tmp_path / "home").exists()


def test_a_cap_that_is_neither_is_refused_before_a_home_is_made(join_with, tmp_path):
    done = join_with("--privacy", "required", "--epsilon-cap", "lots", "--yes")
    assert isinstance(done.exception, ConfigurationError)


def changed(path, **changes):
    """The kit of a file with some lines changed, and the coordinator's signature left as it was."""
    values = json.loads(path.read_text())
    body = {**json.loads(values["body"]), **changes}
    path.write_text(json.dumps({**values, "body": json.dumps(body, separators=(",", ":"))}))


@pytest.mark.parametrize("line", ["address", "ca", "coordinator", "site", "fingerprint"])
def test_one_comparison_vouches_for_every_line_of_the_kit(tmp_path, line):
    path = tmp_path / "lyon.kit"
    write_kit(kit_for(COORDINATOR), path, COORDINATOR_KEY)
    other = public_text(new_key().public_key())
    changes = {
        "address": "evil.example.org:8443",
        "ca": "-----BEGIN CERTIFICATE-----\nanother",
        "coordinator": other,
        "site": "oslo",
        "fingerprint": "0" * 64,
    }
    changed(path, **{line: changes[line]})
    with pytest.raises(PeerError, match="not signed by the coordinator's key"):
        read_kit(path)


def test_a_kit_signed_by_its_forger_is_found_out_by_the_fingerprint(tmp_path):
    forger = new_key()
    path = tmp_path / "lyon.kit"
    forged = kit_for(COORDINATOR, coordinator=public_text(forger.public_key()))
    write_kit(forged, path, forger)
    kit = read_kit(path)
    check_coordinator(kit, short_fingerprint(forger.public_key()))
    with pytest.raises(PeerError, match="not from the coordinator") as caught:
        check_coordinator(kit, short_fingerprint(COORDINATOR_KEY.public_key()))
    assert caught.value.exit_code == 5


@pytest.fixture
def joining(tmp_path):
    """Runs 'site join' on a kit of the coordinator's with these options."""
    public = make_key(tmp_path / "lyon.key")
    write_kit(kit_for(public), tmp_path / "lyon.kit", COORDINATOR_KEY)

    def run(*options, answer=None):
        words = [tmp_path / "lyon.kit", tmp_path / "home", "--key", tmp_path / "lyon.key"]
        return CliRunner().invoke(
            site_app, ["join", *map(str, words), *options], input=answer, catch_exceptions=True
        )

    return run


def test_join_compares_the_coordinators_fingerprint(joining, tmp_path):
    said = short_fingerprint(COORDINATOR_KEY.public_key())
    wrong = joining("--yes", "--fingerprint", short_fingerprint(new_key().public_key()))
    assert isinstance(wrong.exception, PeerError)
    part = joining("--yes", "--fingerprint", said[:19])
    assert isinstance(part.exception, ConfigurationError)
    assert not (tmp_path / "home").exists()
    found = joining("--yes", "--fingerprint", said.upper().replace(" ", ":"))
    assert found.exit_code == 0
    assert "WARNING" not in found.output
    own = read_private(tmp_path / "home" / "key").public_key()
    assert short_fingerprint(own) in found.output


def test_join_without_the_comparison_says_so(joining):
    found = joining("--yes")
    assert found.exit_code == 0
    assert "WARNING: the coordinator's key was not compared" in found.output
    assert short_fingerprint(COORDINATOR_KEY.public_key()) in found.output


def test_join_asks_whether_the_keys_were_compared(joining, tmp_path):
    found = joining(answer="n\n")
    assert isinstance(found.exception, PeerError)
    assert short_fingerprint(COORDINATOR_KEY.public_key()) in found.output
    assert not (tmp_path / "home").exists()
