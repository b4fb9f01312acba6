"""Pins: what is recorded of other sites, what people compare, and what is refused until they do."""

import json
import re

import pytest
from secure_sites import Sites, given
from typer.testing import CliRunner

from fgvc_core.errors import ConfigurationError, DataError, PolicyRefusal
from fgvc_core.protocol.keys import short_form
from fieldmark.cli import app
from fieldmark.client.privacy.peers import FILE, MOST_PEERS, Peers
from fieldmark.client.privacy.report import write_report


@pytest.fixture
def sites(tmp_path):
    return Sites(tmp_path, pinned=False)


def keys_of(sites):
    return {member.name: member.fingerprint for member in sites.cohort}


def test_names_are_recorded_refused_compared_and_then_let_through(sites):
    peers, cohort = Peers(sites.site("site-0")), keys_of(sites)
    with pytest.raises(PolicyRefusal, match=r"compared the key of site 'site-1' \(and of 3 more\)"):
        peers.check(cohort)
    pins = peers.pins()
    assert list(pins) == ["site-1", "site-2", "site-3", "site-4"]
    assert {pin.compared for pin in pins.values()} == {None}
    with pytest.raises(ConfigurationError, match="is not the fingerprint"):
        peers.accept("0" * 64, "N.N.")
    with pytest.raises(ConfigurationError, match="is not the fingerprint"):
        # A part of it could be forged for two sites at once.
        peers.accept(peers.fingerprint(pins)[:32], "N.N.")
    peers.accept(peers.fingerprint(pins).upper(), "N.N.")
    peers.check(cohort)
    assert {pin.by for pin in peers.pins().values()} == {"N.N."}
    (entry,) = [e for e in sites.entries("site-0") if e.kind == "peers"]
    assert entry.values["names"] == list(pins)


def test_the_one_fingerprint_is_the_same_at_every_site(sites):
    found = set()
    for name in sites.names:
        peers = Peers(sites.site(name))
        with pytest.raises(PolicyRefusal):
            peers.check(keys_of(sites))
        found.add(peers.fingerprint(peers.pins()))
    assert len(found) == 1
    # A site that was told of one more, or of another key, has another one.
    with pytest.raises(PolicyRefusal):
        Peers(sites.site("site-0")).check({**keys_of(sites), "invented": "5" * 64})
    peers = Peers(sites.site("site-0"))
    assert peers.fingerprint(peers.pins()) not in found
    peers.forget("invented")
    assert peers.fingerprint(peers.pins()) in found


def test_a_key_that_changes_after_it_was_compared_is_refused_until_it_is_compared_again(sites):
    peers, cohort = Peers(sites.site("site-0")), keys_of(sites)
    peers.pin_all(cohort, "N.N.")
    changed = {**cohort, "site-2": "6" * 64}
    with pytest.raises(PolicyRefusal, match="key of site 'site-2' is another"):
        peers.check(changed)
    assert peers.pins()["site-2"].fingerprint == cohort["site-2"]
    shown = run(str(sites.homes["site-0"])).output
    old, new = (short_form(key["site-2"]) for key in (cohort, changed))
    assert f"site-2  {old}  NOW NAMED WITH ANOTHER KEY, {new}; this one compared by N.N." in shown
    peers.accept(peers.fingerprint(peers.pins()), "M.M.")
    noted = [e.values for e in sites.entries("site-0") if e.kind == "peers"][-1]
    assert (noted["by"], noted["changed"]) == ("M.M.", {"site-2": cohort["site-2"]})
    assert noted["keys"]["site-2"] == changed["site-2"]
    peers.check(changed)
    assert peers.pins()["site-2"].by == "M.M."
    assert peers.pins()["site-1"].by == "N.N."


def test_first_seen_takes_the_first_key_and_no_other(tmp_path):
    sites = Sites(tmp_path, pinned=False, peers="first-seen", epsilon_alone_cap=5.0)
    peers, cohort = Peers(sites.site("site-0")), keys_of(sites)
    peers.check(cohort)
    peers.check(cohort)
    with pytest.raises(PolicyRefusal, match="is another than this site has pinned"):
        peers.check({**cohort, "site-2": "6" * 64})
    with pytest.raises(PolicyRefusal, match=f"{MOST_PEERS:,} others"):
        peers.check(cohort | {f"more-{n:04d}": f"{n:064x}" for n in range(MOST_PEERS)})


def test_a_damaged_file_is_an_error_and_not_an_empty_list(sites):
    (sites.homes["site-0"] / FILE).write_text('{"peers": {"site-1": {}}}')
    with pytest.raises(DataError, match="compare the keys anew"):
        Peers(sites.site("site-0")).pins()


def run(*words):
    return CliRunner().invoke(app, ["site", "peers", *words])


def test_the_command_shows_accepts_and_forgets(sites, monkeypatch):
    home = str(sites.homes["site-0"])
    assert "No other site is known" in run(home).output
    given(monkeypatch, sites.values)
    sites.announce()
    reply = sites.ready("site-0")
    assert reply.code == "refused-policy"
    assert "fieldmark site peers" not in reply.reason
    shown = run(home)
    assert shown.exit_code == 0
    assert shown.output.count("NOT compared") == 4
    (digits,) = re.findall(r"^(?:[0-9a-f]{4} ){15}[0-9a-f]{4}$", shown.output, re.M)
    assert isinstance(run(home, "--accept", digits[::-1]).exception, ConfigurationError)
    done = run(home, "--accept", digits, "--by", "N.N.")
    assert done.exit_code == 0
    assert done.output.count("compared by N.N.") == 4
    assert sites.ready("site-0").code == "ok"
    found = json.loads(run(home, "--json").output)
    assert found["fingerprint"] == digits.replace(" ", "")
    assert isinstance(run(home, "--forget", "site-9").exception, ConfigurationError)
    assert "site-4" not in run(home, "--forget", "site-4").output


def test_the_signed_report_says_both_figures_and_who_has_compared(sites, monkeypatch, tmp_path):
    given(monkeypatch, sites.values)
    for name in sites.names:
        Peers(sites.site(name)).pin_all(keys_of(sites), "N.N.")
    sites.announce()
    for phase in ("centre", "class-sums"):
        ready = sites.all_ready(phase=phase)
        assert sites.send("site-0", ready, phase)[1] is not None
    write_report(sites.homes["site-0"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "sums over 5, 5 sites" in page
    assert "at most 1 of all sites of the federation (site-0, site-1" in page
    assert "compared by N.N. on 2" in page
    assert "not all compared" not in page
    assert "if all other sites worked with it, it is epsilon" in page
    assert "under masks: it shows in the sum alone" in page
    assert "part of a masked sum" in page
    assert "every charge has its reply" in page
