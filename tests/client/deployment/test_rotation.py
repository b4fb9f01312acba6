"""A key names its successor; a lost one does not; the ledger goes on."""

import json

import pytest

from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.protocol.keys import fingerprint, new_key, public_text, read_private
from fgvc_core.protocol.kit import read_kit
from fgvc_core.protocol.rotation import sign_rotation
from fieldmark.client.deployment.contact import Contact
from fieldmark.client.deployment.joining import Answers, join
from fieldmark.client.deployment.rotation import NEXT, finish, prepare
from fieldmark.client.privacy.data_claims import Register
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.provisioning import add_site, init_server, rotate_key
from fieldmark.server.deployment.settings import DeploymentSettings


@pytest.fixture
def folder(tmp_path):
    init_server(tmp_path / "fed", DeploymentSettings(hosts=("gate",)))
    return tmp_path / "fed"


@pytest.fixture
def home(folder, tmp_path):
    _, kit = add_site(folder, "lyon")
    (tmp_path / "data").mkdir()
    site = join(read_kit(kit), tmp_path / "home", Answers(tmp_path / "data", 10, Policy()))
    Ledger(site.home, site.data_binding, site.name).note(
        "refused", {"run": "before", "round": 1, "what": "train", "reason": "for the test"}
    )
    return site.home


def reached(monkeypatch, **found):
    monkeypatch.setattr("fieldmark.client.deployment.rotation.look", lambda *args: Contact(**found))


def test_a_rotated_key_is_taken_and_the_ledger_goes_on(folder, home, monkeypatch):
    old = Site.open(home).public_key
    sent = prepare(home)
    assert "PRIVATE" not in sent.read_text()
    entry = rotate_key(folder, sent.read_text())
    reached(monkeypatch)
    assert finish(home) == entry.fingerprint
    site = Site.open(home)
    assert fingerprint(site.key.public_key()) == entry.fingerprint
    assert site.public_key != old
    kinds = [e.kind for e in Ledger(home, site.data_binding, site.name).entries()]
    assert kinds[-1] == "key"
    assert "refused" in kinds
    assert not (home / NEXT).exists()
    (claim,) = [c for c in Register().claims() if c.home == str(home.resolve())]
    assert claim.key == entry.fingerprint
    assert [e.why for e in AllowList(folder).entries() if e.removed] == ["rotated"]


def test_the_old_key_stays_until_the_coordinator_has_the_new_one(home, monkeypatch):
    before = (home / "key").read_bytes()
    prepare(home)
    reached(monkeypatch, key="the coordinator does not know this site's key")
    with pytest.raises(PeerError, match="cannot be put in place yet"):
        finish(home)
    assert (home / "key").read_bytes() == before
    with pytest.raises(ConfigurationError, match="has begun"):
        prepare(home)


def test_a_lost_key_vouches_for_nothing_and_the_way_back_keeps_the_ledger(
    folder, home, monkeypatch
):
    (home / "key").unlink()
    sent = prepare(home, lost=True)
    with pytest.raises(PeerError):
        rotate_key(folder, sent.read_text())
    AllowList(folder).replace("lyon", sent.read_text(), "lost")
    reached(monkeypatch)
    finish(home)
    site = Site.open(home)
    assert AllowList(folder).active()["lyon"].public_key == site.public_key
    kinds = [e.kind for e in Ledger(home, site.data_binding, site.name).entries()]
    assert kinds[-1] == "key"
    assert "refused" in kinds


def test_nobody_else_can_name_a_successor(folder, home):
    registered = Site.open(home)
    digest = fingerprint(registered.key.public_key())
    thief, new = new_key(), new_key()
    forged = sign_rotation("lyon", digest, thief, new)
    with pytest.raises(PeerError, match="old key"):
        rotate_key(folder, forged.to_text())
    unheld = json.loads(sign_rotation("lyon", digest, registered.key, new).to_text())
    unheld["by_new"] = "00" * 64
    with pytest.raises(PeerError, match="new key"):
        rotate_key(folder, json.dumps(unheld))
    other = sign_rotation("oslo", digest, registered.key, new)
    with pytest.raises(PeerError, match="not registered"):
        rotate_key(folder, other.to_text())
    for text in ("", "[]", "{}", '{"body": "{}", "by_old": "", "by_new": ""}'):
        with pytest.raises(PeerError, match="no rotation"):
            rotate_key(folder, text)
    assert AllowList(folder).active()["lyon"].fingerprint == digest


def test_a_rotation_cannot_be_played_twice(folder, home):
    sent = prepare(home).read_text()
    rotate_key(folder, sent)
    with pytest.raises(PeerError, match="not registered"):
        rotate_key(folder, sent)
    assert read_private(home / NEXT).public_key() is not None
    assert AllowList(folder).active()["lyon"].public_key == public_text(
        read_private(home / NEXT).public_key()
    )
