"""The privacy report: does it say what is true, about any ledger, in a page that needs nothing?"""

import json
import math
import re
import shutil
import subprocess
from html import unescape

import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.privacy.planning import plan_epsilon, plan_for
from fgvc_core.protocol.keys import fingerprint
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.report import verify_report, write_report
from fieldmark.client.site import Site, write_settings

from ...report_homes import (
    entries_of,
    home,
    open_round,
    private_round,
    private_run,
    recipe,
    roll_call,
    tear,
    with_policy,
    write_chain,
)

ADD_REMOVE = NeighboringRelation.ADD_OR_REMOVE_ONE


def report(site):
    """The statement and the page's visible text."""
    page = site.home / "privacy-report.html"
    statement = write_report(site.home, page)["statement"]
    seen = re.sub(r"<(script|style).*?</\1>", " ", page.read_text(), flags=re.S)
    text = unescape(re.sub(r"<[^>]+>", " ", seen)).replace("\N{NO-BREAK SPACE}", " ")
    return statement, re.sub(r"\s+", " ", text)


def by_hand(accountant, event, count):
    accountant.compose(event, count)
    return accountant.get_epsilon(1e-5)


def odometer_by_hand(event, count, orders, delta=1e-5):
    """At each recorded order the divergences' sum, converted at its share of delta; the least."""
    renyi = RdpAccountant(orders, ADD_REMOVE)
    renyi.compose(event, count)
    share = delta / len(orders)
    return min(
        divergence + math.log(1 - 1 / a) - math.log(share * a) / (a - 1)
        for a, divergence in zip(orders, renyi.rdp, strict=True)
    )


def pld():
    return PLDAccountant(ADD_REMOVE, value_discretization_interval=1e-4)


@pytest.fixture
def site(tmp_path):
    return home(tmp_path, epsilon_cap=5.0)


def test_figures_are_those_of_the_ledger_and_of_an_accountant_asked_by_hand(site):
    private_run(site, "a1", recipe())
    statement, text = report(site)
    facts, lines = statement["facts"], entries_of(site.home / "ledger.jsonl")
    (step,) = plan_for(recipe().privacy, 2)
    release, rule = GaussianDpEvent(step.noise_multiplier), lines[1]["rule"]
    epsilon = odometer_by_hand(release, 4, rule["orders"])
    assert facts["total"]["epsilon"] == pytest.approx(epsilon, rel=1e-6)
    assert facts["total"]["left"] == pytest.approx(5 - epsilon, rel=1e-6)
    assert (facts["total"]["how"], facts["total"]["rule"]) == ("Renyi odometer", rule)
    (run,) = facts["runs"]
    own = by_hand(pld(), release, 4)
    assert run["protection"]["epsilon"] == pytest.approx(own, rel=1e-6)
    assert own < epsilon < 1.15 * own
    assert (run["protection"]["planned"], run["protection"]["released"]) == (4, 4)
    assert facts["departures"]["by_charge"] == {"charged": 2, "public": 1}
    assert facts["departures"]["bytes"] == sum(x["bytes"] for x in lines if x["kind"] == "sent")
    assert facts["ledger"]["head"] == lines[-1]["hash"]
    assert facts["ledger"]["entries"] == len(lines) == 7
    assert statement["site"]["fingerprint"] == fingerprint(site.key.public_key())
    assert statement["policy_digest"] == site.settings.policy.digest == lines[1]["policy"]
    for told in (
        f"epsilon {epsilon:.3f} (cap 5, delta 1e-05) to each image",
        f"Spent, epsilon {epsilon:.3f}",
        f"Left {5 - epsilon:.3f}",
        "An image is not a person",
        "zero-out, accounted as add-or-remove-one",
        "cost about twice as much",
        "also at another site",
        "the trained tensors, with noise in every step (10 numbers)",
        "PLD of one plan",
        "1 in 100,000",
        "the total after one run is often a little above the run's own epsilon",
    ):
        assert told in text, told


def test_the_sampling_rate_that_was_used_is_accounted_for(site):
    private_run(site, "a1", recipe())
    entries = entries_of(site.home / "ledger.jsonl")
    for entry in entries:
        for event in [*entry.get("events", []), *filter(None, [entry.get("event")])]:
            event.update(noise_multiplier=1.25, sampling_rate=0.2)
    write_chain(site.home / "ledger.jsonl", entries)
    sampled = PoissonSampledDpEvent(0.2, GaussianDpEvent(1.25))
    statement, text = report(site)
    epsilon = statement["facts"]["total"]["epsilon"]
    orders = entries[1]["rule"]["orders"]
    assert epsilon == pytest.approx(odometer_by_hand(sampled, 4, orders), rel=1e-6)
    own = statement["facts"]["runs"][0]["protection"]["epsilon"]
    assert own == pytest.approx(by_hand(pld(), sampled, 4), rel=1e-6)
    assert "4 × step: noise multiplier 1.25, sampling rate 0.2" in text


def test_a_refused_recipe_without_privacy_is_no_reached_cap(site):
    reason = "policy.epsilon_cap = 8, and the recipe has no [privacy]."
    refusal = {"run": "a1", "round": 0, "what": "roll_call", "reason": reason}
    Ledger(site.home, site.data_binding, site.name).note("refused", refusal)
    statement, text = report(site)
    refusals = statement["facts"]["refusals"]
    assert (refusals["count"], refusals["by_cap"]) == (1, 0)
    assert "The cap was reached" not in text
    assert "The cap has stopped" not in text


def test_several_runs_cost_what_the_odometer_gives_and_the_cap_stops_the_next(site):
    small = recipe("privacy.epsilon=1.5")
    for run in ("a1", "b2"):
        private_run(site, run, small)
    roll_call(site, "c3", recipe())
    statement, text = report(site)
    facts = statement["facts"]
    (step,) = plan_for(small.privacy, 2)
    orders = facts["total"]["rule"]["orders"]
    epsilon = odometer_by_hand(GaussianDpEvent(step.noise_multiplier), 8, orders)
    assert facts["total"]["epsilon"] == pytest.approx(epsilon, rel=1e-6)
    assert facts["total"]["how"] == "Renyi odometer"
    assert facts["refusals"]["by_cap"] == 1
    (refusal,) = facts["refusals"]["rows"]
    assert (refusal["run"], refusal["line"]) == ("c3", "policy.epsilon_cap")
    assert facts["runs"][2]["protection"] is None
    assert "The cap was reached: 1 request was stopped here at the site." in text
    assert "would bring the total to" in text
    assert "A Renyi odometer" in text


def test_an_unfinished_run_and_a_charge_without_reply_are_named_and_stay_charged(site):
    roll_call(site, "a1", recipe())
    private_round(site, "a1", recipe(), 1, fails=True)
    statement, text = report(site)
    facts = statement["facts"]
    assert facts["crashes"]["charged_unanswered"] == 1
    assert facts["departures"]["by_charge"] == {"public": 1}
    assert facts["runs"][0]["protection"]["released"] == 2
    assert facts["total"]["epsilon"] > 1
    assert "unfinished" in text
    assert "1 charge has no reply" in text


def test_a_torn_line_is_owned_up_to_and_charged_by_making_the_report(site):
    private_run(site, "done", recipe("privacy.epsilon=1.0"))
    roll_call(site, "open", recipe("privacy.epsilon=2.0"))
    before = report(site)[0]["facts"]["total"]["epsilon"]
    tear(site)
    statement, text = report(site)
    assert statement["facts"]["crashes"]["torn"] == 1
    assert statement["facts"]["crashes"]["charged_for_torn"] == 2
    assert statement["facts"]["total"]["epsilon"] > before
    assert "1 line was cut short by a crash" in text
    assert verify_report(site.home / "privacy-report.html", site.home / "ledger.jsonl")["holds"]


def test_what_left_without_protection_is_said_first_and_loudly(tmp_path):
    site = home(tmp_path)
    roll_call(site, "bare", recipe().model_copy(update={"privacy": None}))
    open_round(site, "bare", 1)
    statement, text = report(site)
    assert statement["words"]["headline"].startswith("Nothing was protected: 1 reply")
    assert statement["facts"]["departures"]["by_charge"] == {"public": 1, "unprotected": 1}
    assert text.index("Nothing bounds what can be told") < text.index("Spent, epsilon")
    assert "NOT PROTECTED" in text
    assert "number of training pictures (120)" in text
    assert "noise of known size" not in text
    assert "Spent, epsilon no bound" in text
    assert "epsilon 0.000" not in text, text[text.index("0.000") - 99 :][:150]
    assert "This policy lets replies about the pictures leave without" in text
    site = with_policy(site, epsilon_cap=5.0)
    private_run(site, "a1", recipe())
    statement, text = report(site)
    assert "policy.epsilon_cap = 5: nothing about the pictures leaves without" in text
    assert "1 more left without it" in statement["words"]["headline"]
    assert "Nothing bounds what can be told" in text


def test_an_empty_ledger_has_a_page(site):
    statement, text = report(site)
    assert statement["words"]["headline"] == "Nothing has left site-1 yet."
    assert statement["facts"]["total"]["epsilon"] == 0
    assert "Once the cap of epsilon 5 is used up" in text
    assert not (site.home / "ledger.jsonl").exists()


def test_no_cap_is_said(tmp_path):
    _, text = report(home(tmp_path))
    assert "nothing at this site stops the spending" in text
    assert "there is no bound to explain" in text


def test_no_cap_by_the_sites_own_word_is_the_first_thing_that_the_report_says(tmp_path):
    site = home(tmp_path, privacy="required", epsilon_cap="none")
    private_run(site, "a1", recipe())
    statement, text = report(site)
    assert statement["words"]["headline"].startswith("This site has set no cap")
    assert "epsilon_cap = 'none'" in statement["words"]["headline"]
    assert "left under differential privacy" in statement["words"]["headline"]
    assert text.index("This site has set no cap") < text.index("Spent, epsilon")
    assert "The policy says epsilon_cap = 'none'" in text


def test_a_run_that_fits_only_as_one_plan_is_explained(tmp_path):
    private = plan_epsilon(recipe().privacy, 2)
    site = home(tmp_path, epsilon_cap=private)
    private_run(site, "a1", recipe())
    statement, text = report(site)
    assert statement["facts"]["total"]["epsilon"] == private
    assert statement["facts"]["total"]["rule"]["one_plan"] is True
    assert "fits under the cap only as one plan that was fixed beforehand" in text
    assert "twice delta" not in text
    site = with_policy(site, epsilon_cap=30.0)
    private_run(site, "b2", recipe())
    statement, text = report(site)
    assert statement["facts"]["total"]["how"] == "Renyi odometer, after one plan"
    assert "both together at twice delta" in text


def test_what_a_subject_is_comes_from_the_sites_records_and_is_no_patient(site):
    own = site.settings.data.model_copy(update={"kind": "manifest", "subject_column": "lesion_id"})
    write_settings(site.home, site.settings.model_copy(update={"data": own}))
    site = Site.open(site.home)
    private_run(site, "a1", recipe("privacy.unit=subject", "data.subject_column=path"))
    # The column as of the run: what site.toml names later changes nothing of it.
    later = own.model_copy(update={"subject_column": "patient"})
    write_settings(site.home, site.settings.model_copy(update={"data": later}))
    statement, text = report(Site.open(site.home))
    assert statement["site"]["subject_column"] == "patient"
    assert statement["facts"]["subject_columns"] == ["lesion_id"]
    assert "the same id in the column 'lesion_id'" in text
    assert "a lesion is not a patient" in text
    assert "A subject that is also at another site" in text


def test_a_repeated_reply_is_listed_and_not_charged_again(site):
    private_run(site, "a1", recipe())
    again = entries_of(site.home / "ledger.jsonl")[-1]
    assert again["kind"] == "sent"
    before = report(site)[0]["facts"]["total"]["epsilon"]
    values = {k: v for k, v in again.items() if k not in ("n", "time", "kind", "prev", "hash")}
    Ledger(site.home, site.data_binding, site.name).note("sent", values)
    statement, text = report(site)
    assert statement["facts"]["departures"]["by_charge"]["again"] == 1
    assert statement["facts"]["total"]["epsilon"] == before
    assert "the same bytes again, charged before" in text


def test_approvals_and_audits_are_told(site):
    ledger = Ledger(site.home, site.data_binding, site.name)
    ledger.note("approved", {"run": "a1", "recipe_digest": "0" * 64, "name": "steps"})
    ledger.note("audited", {"lower_bound": 1.25, "confidence": 0.95, "holds": True})
    _, text = report(site)
    assert re.search(r"Approved by a person at the site: [^.]*steps", text)
    assert "lower bound: 1.25" in text


def test_a_ledger_of_thousands_of_entries_and_hundreds_of_runs_is_one_short_page(site):
    private_run(site, "a1", recipe("privacy.epsilon=0.05"))
    founded, announced, called, reserved, sent, *_ = entries_of(site.home / "ledger.jsonl")
    entries = [founded]
    for run in range(300):
        own = {"run": f"{run:032x}"}
        entries += [{**announced, **own}, {**called, **own}]
        for round_ in range(1, 9):
            request = {"request": f"{run:032x}{round_:032x}", "round": round_, **own}
            entries += [{**reserved, **request}, {**sent, **request}]
    write_chain(site.home / "ledger.jsonl", entries)
    assert len(entries) > 5000
    statement, text = report(site)
    assert (site.home / "privacy-report.html").stat().st_size < 1_000_000
    facts = statement["facts"]
    assert len(facts["runs"]) == 100
    assert facts["earlier_runs"]["runs"] == 200
    assert facts["departures"]["replies"] == 300 * 9
    assert not facts["departures"]["one_by_one"]
    assert "200 earlier runs are not listed" in text
    assert "8 × the trained tensors" in text


def test_page_and_json_hold_the_same_statement_and_ask_for_nothing_outside(site):
    private_run(site, "a1", recipe())
    made = write_report(site.home, site.home / "r.html")
    page = (site.home / "r.html").read_text()
    embedded = page.split('<script type="application/json" id="report">')[1].split("</script>")[0]
    assert json.loads(embedded) == json.loads((site.home / "r.json").read_text()) == made
    assert page.count("<script") == 1
    addresses = re.findall(r"""(?:src|href|url|action|srcset)\s*[=(]\s*["']?([^"'\s)>]+)""", page)
    assert addresses
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert not re.search(r"https?:|@import", page)
    assert "default-src 'none'" in page


def test_hostile_text_in_a_ledger_is_text_and_nothing_else(site):
    reason = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \u202etxet\x07"
    write_chain(
        site.home / "ledger.jsonl",
        [{"kind": "refused", "run": "a<b>1", "round": 0, "what": "roll_call", "reason": reason}],
    )
    write_report(site.home, site.home / "r.html")
    page = (site.home / "r.html").read_text()
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\\u202e" in page
    assert "&lt;/script&gt;" in page
    assert verify_report(site.home / "r.html", site.home / "ledger.jsonl")["holds"]


def test_a_ledger_that_does_not_verify_has_no_report(site):
    private_run(site, "a1", recipe())
    path = site.home / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"count": 2', b'"count": 1', 1))
    with pytest.raises(DataError, match="chain breaks"):
        write_report(site.home, site.home / "r.html")
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="remembers"):
        write_report(site.home, site.home / "r.html")
    assert not (site.home / "r.html").exists()


def test_entries_that_cannot_be_are_bad_data(site):
    write_chain(
        site.home / "ledger.jsonl", [{"kind": "reserved", "run": "never", "round": 1, "event": {}}]
    )
    with pytest.raises(DataError, match="cannot be"):
        write_report(site.home, site.home / "r.html")


@pytest.mark.parametrize("page", ["r.json", "nowhere/r.html", "report"])
def test_a_page_that_cannot_be_written_is_a_matter_of_configuration(site, page):
    with pytest.raises(ConfigurationError):
        write_report(site.home, site.home / page)


def test_other_data_than_the_ledgers_and_a_lowered_cap_are_said(site):
    private_run(site, "a1", recipe())
    site = with_policy(site, epsilon_cap=1.0)
    toml = site.home / "site.toml"
    toml.write_text(toml.read_text().replace("[data]\n", '[data]\npath = "elsewhere"\n'))
    statement, text = report(Site.open(site.home))
    assert "More is spent than today's cap allows" in text
    assert "begun for other data" in text
    assert "admitted under an earlier policy" in text
    assert statement["facts"]["total"]["left"] == 0


def _chromium() -> str | None:
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.skipif(_chromium() is None, reason="no Chromium on this machine")
def test_the_page_fits_phone_and_desk_without_sideways_scrolling(site, width):
    private_run(site, "a1", recipe())
    roll_call(site, "b2", recipe())
    open_round(site, "c3", 1)
    write_report(site.home, site.home / "r.html")
    page = (site.home / "r.html").read_text()
    # Headless Chromium will not make a window narrower than 500 px: a frame will.
    (site.home / "framed.html").write_text(
        f'<iframe id="f" src="r.html" width="{width}" height="900"></iframe><script>'
        "document.getElementById('f').onload = () => { const d ="
        " document.getElementById('f').contentDocument.documentElement;"
        " document.body.dataset.width = d.scrollWidth; document.body.dataset.seen ="
        " d.querySelectorAll('svg').length; }</script>"
    )
    done = subprocess.run(
        [_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--allow-file-access-from-files", f"--user-data-dir={site.home / 'profile'}",
         "--virtual-time-budget=3000", "--dump-dom", (site.home / "framed.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'data-width="(\d+)" data-seen="(\d+)"', done.stdout)
    assert found, done.stdout[:500]
    assert int(found[1]) <= width
    assert int(found[2]) == page.count("<svg") > 0
