"""The site's page: the figures of ``site status``, and a decision only by the home's token."""

import os
import re
import sys
from contextlib import nullcontext

import httpx
import pytest
from imports_lab import loaded
from site_page_lab import served_site
from starlette.testclient import TestClient
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.unused import NO_CLASS, Unused
from fgvc_core.errors import ConfigurationError, PeerError, PolicyRefusal, RunFailed
from fgvc_core.files import private_folder, replace_private_json
from fgvc_core.local_pages import LocalPage
from fieldmark.client.announced import remember
from fieldmark.client.deployment import page, page_view
from fieldmark.client.deployment.page_token import FILE, PAGE_NOTE, read_token
from fieldmark.client.deployment.status import read_site_status
from fieldmark.client.deployment.supervisor import page_service
from fieldmark.client.left_out import keep_left_out
from fieldmark.client.privacy.approval import approve_run, decline_run, waiting_in_words
from fieldmark.client.privacy.report import write_report
from fieldmark.client.site import PageSettings, Site, write_settings

from ..protected_sites import announce, answer, ledger_of, make_site, request, sums, with_policy

SUMS = sums()
HOST = "http://127.0.0.1:8766"
PATIENT = "Mrs-Canary.png"


def decide_here(home, what, run, digest):
    """What the command does, in this process."""
    {"approve": approve_run, "decline": decline_run}[what](Site.open(home), run, digest)


@pytest.fixture
def site(tmp_path):
    """A site that has answered one run, and where another one waits for a person."""
    made = make_site(tmp_path, epsilon_cap=8.0)
    announce(made, SUMS, "run-1")
    for phase in ("centre", "class-sums"):
        answer(made, SUMS, request(SUMS, "release", "run-1", phase=phase))
    made = with_policy(made, approval="each-run", epsilon_cap=8.0)
    values = {"recipe": SUMS.to_toml(), "class_names": ("jay", "wren"), "site": ""}
    remember(made.home, request(SUMS, "roll_call", "run-7", 0, **values), lambda run: False)
    gone, unused = LeftOut(), Unused()
    gone.add("that cannot be read", PATIENT)
    unused.add(NO_CLASS, f"stray/{PATIENT}")
    keep_left_out(made, "sums", gone, unused)
    return made


@pytest.fixture
def client(site, monkeypatch):
    monkeypatch.setattr(page_view, "WaitingRuns", lambda: waiting_in_words)
    monkeypatch.setattr(page_view, "decide", decide_here)
    return TestClient(page.make_app(site.home), base_url=HOST, follow_redirects=False)


def form(site, decision="approve", run="run-7", **changes):
    asked = {"run": run, "digest": SUMS.digest, "decision": decision,
             "token": read_token(site.home)}  # fmt: skip
    return {**asked, **changes}


def post(client, data, path="/decide", **headers):
    return client.post(path, data=data, headers={"origin": HOST, **headers})


def test_it_shows_what_the_status_says(site, client):
    found, text = read_site_status(site.home), client.get("/").text
    budget = found["budget"]
    for said in (found["name"], found["key"], f"spent {budget['spent']:.3g}",
                 f"left {budget['left']:.3g}", "run-7", "the total would be",
                 *found["awaiting_approval"][0]["in_words"][1:]):  # fmt: skip
        assert said in text, said
    assert f'<td role="cell" data-label="Replies with results">{found["today"]["replies"]}<' in text


def test_a_run_that_the_policy_refuses_can_only_be_declined(site, client):
    assert 'value="approve"' in client.get("/").text
    with_policy(site, approval="each-run", epsilon_cap=0.1)
    text = client.get("/").text
    assert 'value="approve"' not in text
    assert 'value="decline"' in text
    assert "policy refuses it, whoever approves" in text


def test_words_from_outside_are_no_markup(site, client):
    values = {
        "run": "run-6",
        "round": 2,
        "what": "train",
        "reason": "<script>alert(1)</script>\x1b",
    }
    ledger_of(site).note("refused", values)
    text = client.get("/").text
    assert "alert(1)" in text
    assert "<script>" not in text
    assert "\x1b" not in text


def test_no_script_and_no_style_but_its_own(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r' (style|on\w+)="', answer.text)
    assert not re.search(r'(src|href)="(https?:)?//', answer.text)
    assert "set-cookie" not in answer.headers
    assert answer.headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("decision", ["approve", "decline"])
def test_a_person_with_the_token_decides_once_and_the_ledger_has_it(site, client, decision):
    done = post(client, form(site, decision))
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert ledger_of(site).is_approved("run-7", SUMS.digest) == (decision == "approve")
    assert ledger_of(site).is_declined("run-7", SUMS.digest) == (decision == "decline")
    text = client.get("/").text
    assert 'name="token"' not in text.split('data-part="out"')[0]
    assert f"{decision}d</td>" in text
    with pytest.raises(PolicyRefusal, match="declined") if decision == "decline" else nullcontext():
        announce(Site.open(site.home), SUMS, "run-7")


@pytest.mark.parametrize(
    ("changes", "headers", "status"),
    [
        ({"token": ""}, {}, 403),
        ({"token": "x" * 32}, {}, 403),
        ({"token": "é"}, {}, 403),
        ({}, {"origin": "http://127.0.0.1:9999"}, 403),
        ({}, {"origin": "http://localhost:8766"}, 403),
        ({}, {"origin": "https://evil.example"}, 403),
        ({}, {"origin": "null"}, 403),
        ({}, {"host": "evil.example"}, 400),
        ({}, {"host": "evil.example", "origin": "http://evil.example"}, 400),
        ({"decision": "report"}, {}, 400),
        ({"digest": "--help"}, {}, 400),
        ({"digest": "0" * 64}, {}, 409),
        ({"run": "--help"}, {}, 409),
        ({"filler": "x" * 5000}, {}, 413),
    ],
)
def test_nothing_else_decides(site, client, changes, headers, status):
    before = len(ledger_of(site).entries())
    found = post(client, form(site, **changes), **headers)
    assert found.status_code == status
    if status != 400 or "host" not in headers:
        assert 'role="alert"' in found.text
    assert len(ledger_of(site).entries()) == before


def test_a_form_without_an_origin_decides_nothing(site, client):
    assert client.post("/decide", data=form(site)).status_code == 403


@pytest.mark.parametrize("path", ["/decide", "/left-out"])
@pytest.mark.parametrize("method", ["get", "head", "put", "delete"])
def test_only_a_form_that_is_posted_is_one(client, path, method):
    assert getattr(client, method)(path).status_code == 405


@pytest.mark.parametrize("method", ["post", "put", "delete"])
@pytest.mark.parametrize("path", ["/", "/report"])
def test_what_is_for_reading_cannot_be_written(client, path, method):
    assert getattr(client, method)(path).status_code == 405


def test_names_and_numbers_of_pictures_need_the_token(site, client):
    text = client.get("/").text
    assert "that cannot be read" in text
    assert PATIENT not in text
    wrong = post(client, {"token": "wrong"}, "/left-out")
    assert (wrong.status_code, PATIENT in wrong.text) == (403, False)
    shown = post(client, {"token": read_token(site.home)}, "/left-out")
    assert (shown.status_code, shown.text.count(PATIENT)) == (200, 2)


def test_the_signed_report_is_there_once_it_was_made(site, client):
    assert client.get("/report").status_code == 404
    write_report(site.home, site.home / "privacy-report.html")
    found = client.get("/report")
    assert found.content == (site.home / "privacy-report.html").read_bytes()
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert client.get("/report.json").json()
    assert 'href="/report"' in client.get("/").text


def test_a_damaged_ledger_is_said_in_words(site, client):
    (site.home / "ledger.jsonl").write_text("{}\n")
    found = client.get("/")
    assert found.status_code == 500
    assert "ledger" in found.text


def test_the_token_is_a_secret_file_and_is_made_once(site):
    first = read_token(site.home)
    path = site.home / FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(site.home) == first
    assert len(first) >= 32
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="not a secret"):
        read_token(site.home)
    path.unlink()
    assert read_token(site.home) != first


def test_a_port_that_somebody_else_has_is_not_taken_over(site):
    with page._listener(0, 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match="taken"):
            page.serve(site.home, port, print)


def test_while_recipes_are_read_the_page_says_so(site, client, monkeypatch):
    monkeypatch.setattr(page_view, "WaitingRuns", lambda: lambda site: [])
    fresh = TestClient(page.make_app(site.home), base_url=HOST)
    assert "A run waits; what is asked is being read" in fresh.get("/").text


def test_a_recipe_that_cannot_be_read_is_an_answer_in_words(site, monkeypatch):
    def broken(site):
        raise RunFailed("The command ended with 1.")

    monkeypatch.setattr(page_view, "WaitingRuns", lambda: broken)
    found = TestClient(page.make_app(site.home), base_url=HOST).get("/")
    assert (found.status_code, found.text) == (500, "The command ended with 1.")


def test_the_policy_allows_exactly_the_style_and_the_script_of_the_page():
    local = LocalPage("fieldmark.client.deployment", "page.html.j2")
    assert local._policy.count("'sha256-") == 2


def test_the_process_is_small_until_somebody_opens_the_page_and_never_has_torch():
    assert loaded("fieldmark.client.deployment.page") == []
    assert "torch" not in loaded("fieldmark.client.deployment.page_view")


def test_a_site_without_a_port_has_no_page_and_one_with_it_has_a_process(site):
    assert site.settings.page.port is None
    settings = site.settings.model_copy(update={"page": PageSettings(port=8766)})
    write_settings(site.home, settings)
    said = []
    service = page_service(Site.open(site.home), said.append)
    assert service.command[-3:] == (page.__name__, str(site.home), "8766")
    service.on_line("Port 8766 of 127.0.0.1 is taken\x1b")
    assert said == ["Port 8766 of 127.0.0.1 is taken\\x1b"]


def test_the_command_says_where_the_page_is_and_where_its_token(site):
    ran = CliRunner().invoke(fieldmark.cli.app, ["site", "page", str(site.home)])
    assert isinstance(ran.exception, ConfigurationError)
    assert "'[page]'" in ran.exception.remedy
    note = {"port": 8766, "pid": os.getpid()}
    replace_private_json(private_folder(site.home / "state") / PAGE_NOTE, note)
    ran = CliRunner().invoke(fieldmark.cli.app, ["site", "page", str(site.home)])
    assert ran.exit_code == 0
    address, told = ran.output.splitlines()
    assert address == f"{HOST}/"
    assert str(site.home / FILE) in told
    assert read_token(site.home) not in ran.output
    status = CliRunner().invoke(fieldmark.cli.app, ["site", "status", str(site.home)]).output
    assert f"page:   {HOST}/" in status
    assert PATIENT in status


def test_of_two_decisions_the_later_counts(site):
    run = ["run-7", "--digest", SUMS.digest]
    for command, approved in (("decline", False), ("approve", True), ("decline", False)):
        ran = CliRunner().invoke(fieldmark.cli.app, ["site", command, str(site.home), *run])
        assert ran.exit_code == 0, ran.output
        assert ledger_of(site).is_approved("run-7", SUMS.digest) is approved
        assert ledger_of(site).is_declined("run-7", SUMS.digest) is not approved
    found = read_site_status(site.home)
    assert found["awaiting_approval"] == []
    assert [d["what"] for d in found["decisions"]] == ["declined", "approved", "declined"]


def test_a_declined_run_is_not_announced_anew_as_another(site):
    decline_run(site, "run-7")
    (site.home / "runs" / "run-7.json").unlink()
    values = {"recipe": SUMS.to_toml(), "class_names": ("jay",), "site": ""}
    body = request(SUMS, "roll_call", "run-7", 0, **values)
    ledger = ledger_of(site)
    with pytest.raises(PeerError, match="was declined here, and its announcement is gone"):
        remember(site.home, body, lambda run: False, ledger.was_approved, ledger.was_decided)


def test_the_command_serves_the_page_of_a_home_that_is_not_up_and_ends_it(site):
    command = (sys.executable, "-P", "-m", "fieldmark", "site", "page", str(site.home), "--serve")
    with served_site(site.home, command) as address:
        found = httpx.get(address, trust_env=False, timeout=60)
        assert (found.status_code, "site-1" in found.text) == (200, True)
        assert read_site_status(site.home)["page"] == address
    assert read_site_status(site.home)["page"] is None
    # The next one has the same address: people keep it.
    with served_site(site.home) as again:
        assert again == address
