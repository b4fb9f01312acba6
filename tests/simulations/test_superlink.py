"""Real processes on loopback, with TLS and keys: parity, late joining, revocation, strangers."""

import datetime
import io
import json
import ssl
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from deployment_lab import Lab, models_inprocess

from fgvc_core.flower.internals import build_app
from fgvc_core.protocol.bundle import make_bundle
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import new_key
from fieldmark.client.deployment.flower_internals import node_headers
from fieldmark.client.site import Site
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.flower_internals import ControlApi
from fieldmark.server.home import read_allow_list

pytestmark = pytest.mark.deployment

RECIPE = """
name = "tiny"
seed = 3
[data]
name = "fieldmarks"
image_size = 32
fieldmarks_train = 120
fieldmarks_test = 48
[partition]
scheme = "iid"
sites = 4
[model]
backbone = "fieldmark_nano"
[train]
batch_size = 16
[federation]
rounds = 8
deadline_s = 120
[evaluate]
pixel_baseline = false
"""
FIRST = ["site-1", "site-2", "site-3"]
SCANNED = (
    "/v1/control/start-run",
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/v1/fleet/register-node",
    "/v1/fleet/pull-messages",
    "/v1/fleet/get-fab",
)
TYPE = {"content-type": "application/protobuf"}


def ask(lab, path, key=None, body=b""):
    """One request to the gateway as an outsider with the CA's certificate makes it."""
    port = lab.coordinator.ports["gateway"]
    context = ssl.create_default_context(cafile=lab.folder / "ca.pem")
    headers = {**TYPE, **(node_headers(key) if key else {})}
    with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
        return client.post(f"https://127.0.0.1:{port}{path}", content=body, headers=headers)


def with_code(path):
    """An app that would leave a file if a line of it were run, at the coordinator or a site."""
    left = f"open({str(path)!r}, 'w').close()\n".encode()
    described = zipfile.ZipFile(io.BytesIO(make_bundle())).read("pyproject.toml")
    return {"pyproject.toml": described, "server/__init__.py": left, "server/app.py": left,
            "client/__init__.py": left, "client/app.py": left}  # fmt: skip


def revoke_in_mid_round(lab, site, another):
    """Revoke a site that has been asked and cannot have answered: its runner stands still."""
    facts = {}
    with ExitStack() as held:
        with lab.busy(another):
            # No round ends without the other one: who has answered in it is not asked again.
            while True:
                answered = lab.until(lambda: answered_now(lab, site), f"{site} has answered")
                held.enter_context(lab.held(f"{site}.runner"))
                if lab.events("round_started")[-1]["round"] == answered:
                    break
                held.close()
        facts["revoked in"] = answered + 1
        received = f"ROUND {answered + 1}]"
        lab.until(lambda: received in lab.lines(f"{site}.supernode"), f"{site} is asked again")
        facts["removed at"] = datetime.datetime.now(datetime.UTC).isoformat()
        AllowList(lab.folder).remove(site)
        facts["revoked"] = ask(lab, "/v1/fleet/pull-messages", Site.open(lab.homes[site]).key)
        lab.until(lambda: site not in read_allow_list(lab.run_dir), "the run knows of it")
    return facts


def answered_now(lab, site):
    """The round that is on, if a site has answered in it; else None."""
    now = lab.events("round_started")[-1]["round"]
    replied = [r["round"] for r in lab.events("reply") if r["site"] == site and r["accepted"]]
    return now if now in replied else None


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Three sites; after round 2 a fourth comes; then one is revoked in mid-round."""
    folder = tmp_path_factory.mktemp("superlink")
    facts = {}
    with Lab(folder, RECIPE, FIRST) as lab, ThreadPoolExecutor(1) as beside:
        # While the nodes start, and wait for their next look at what there is to do.
        reference = beside.submit(models_inprocess, RECIPE, folder / "reference", FIRST)
        stranger = new_key()
        facts["strangers"] = {
            (who, path): ask(lab, path, key)
            for path in SCANNED
            for who, key in (("no key", None), ("a key", stranger))
        }
        local = ControlApi(
            lab.coordinator.superlink,
            (lab.folder / "state" / "loopback" / "ca.pem").read_bytes(),
        )
        foreign = build_app(with_code(folder / "ran"))
        started = {"code": local.start_run(foreign, str(lab.run_dir)),
                   "ours": local.start_run(make_bundle(), str(lab.run_dir))}  # fmt: skip
        lab.until_round(2)
        for name, run in started.items():
            lab.until(lambda: local.run_status(run)[0] == "finished", f"{name} is over")  # noqa: B023
            facts[name] = local.run_status(run)
        facts["code ran"] = (folder / "ran").exists()
        with lab.busy("site-3"):
            # No round ends meanwhile: the fourth is there before the next one begins,
            fourth = Site.open(lab.homes["site-4"])
            AllowList(lab.folder).add("site-4", fourth.public_key)
            lab.federation.start_site(fourth)
            lab.until(lambda: "SuperNode ID" in lab.lines("site-4.supernode"), "it is connected")
        lab.until(lambda: "ROUND 0]" in lab.lines("site-4.supernode"), "the fourth is called")
        with lab.busy("site-3"):
            # and has said who it is before the one after.
            lab.until(lambda: "Sent succ" in lab.lines("site-4.supernode"), "it has answered")
        facts.update(revoke_in_mid_round(lab, "site-2", another="site-3"))
        facts["conduct"] = lab.until_over()
        facts["in process"] = reference.result()
        facts["models"] = lab.models()
        facts["replies"] = lab.events("reply")
        facts["left"] = lab.events("site_left")
        facts["view"] = lab.view()
        facts["node log"] = lab.lines("site-2.supernode")
        facts["metrics"] = json.loads((lab.run_dir / "metrics.json").read_text())
        facts["refusals"] = [
            json.loads(x) for x in (lab.folder / "logs/gateway.jsonl").read_text().splitlines()
        ]
    return facts


def test_after_each_round_the_model_is_the_in_process_engines_to_the_bit(story):
    assert story["models"][1] == story["in process"][0]
    assert story["models"][2] == story["in process"][1]


def test_the_run_ends_with_all_its_rounds(story):
    assert story["conduct"].state == "finished", story["conduct"]
    assert sorted(story["models"]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert story["conduct"].tries == 1


def test_a_site_that_comes_late_takes_part_from_a_later_round_on(story):
    rounds = [r["round"] for r in story["replies"] if r["site"] == "site-4" and r["accepted"]]
    assert rounds
    assert min(rounds) >= 3


def test_a_site_that_is_revoked_in_mid_round_is_out_at_once(story):
    assert story["revoked"].status_code == 401
    later = [r for r in story["replies"] if r["site"] == "site-2" and r["accepted"]
             and r["time"] > story["removed at"]]  # fmt: skip
    assert later == []
    refused = [r for r in story["replies"] if r["site"] == "site-2" and not r["accepted"]]
    assert any("removed from the allow-list" in r["reason"] for r in refused)
    assert [r["round"] for r in refused] == [story["revoked in"]]
    assert [(e["site"], e["why"]) for e in story["left"]] == [("site-2", "removed")]


def test_an_outsider_gets_nothing_and_is_recorded(story):
    for (who, path), answer in story["strangers"].items():
        served = path in ("/v1/fleet/pull-messages", "/v1/fleet/get-fab")
        assert answer.status_code == (401 if served else 404), (who, path)
        assert answer.headers["content-type"] == "application/json"
        assert len(answer.content) < 60
    recorded = {(r["status"], r["path"]) for r in story["refusals"]}
    assert (404, "/v1/control/start-run") in recorded
    assert (401, "/v1/fleet/pull-messages") in recorded


def test_somebody_on_the_coordinators_machine_can_start_no_code_and_no_run(story):
    assert story["code"][1] == "failed"
    assert "not Fieldmark's own" in story["code"][2]
    assert not story["code ran"]
    assert story["ours"][1] == "failed"
    assert "was not asked for" in story["ours"][2]


def test_every_site_says_which_code_it_runs(story):
    for name in ("site-1", "site-3", "site-4"):
        assert story["view"].sites[name].code == code_digest()
