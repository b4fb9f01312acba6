"""``site check``: each failure, what it says, its remedy and its exit code; the gateway is real."""

import base64
import contextlib
import json
import os
import shutil
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import torch
from gateway_lab import Running
from httpx._utils import get_environment_proxies
from typer.testing import CliRunner

import fieldmark.client.deployment.check as checking
from fgvc_core import __version__
from fgvc_core.data.catalogue import load_table
from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.data.writing import write_tree
from fgvc_core.files import replace_private_json
from fgvc_core.protocol.announcement import Announcement, seal_announcement
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import fingerprint, new_key, private_text, read_private
from fgvc_core.protocol.kit import StartKit
from fgvc_core.protocol.messages import Reply, seal
from fgvc_core.recipe import parse_recipe
from fieldmark.client.cli import site_app
from fieldmark.client.deployment.check import check_site
from fieldmark.client.deployment.contact import Contact
from fieldmark.client.deployment.joining import Answers, join
from fieldmark.client.deployment.link import Link, write_link
from fieldmark.client.deployment.supervisor import environment
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.site import Site
from fieldmark.server.ledger_memory import LedgerMemory, link_memory

RECIPE = parse_recipe("", ["data.fieldmarks_train=24", "data.fieldmarks_test=10"])
PRIVATE = "[privacy]\nepsilon=6.0\ndelta=1e-5\nmethod='gradients'\n"
ORDER = ["data", "disk", "modes", "memory", "GPU", "clock", "DNS", "proxy", "TLS", "key", "version",
         "ledger", "limits", "policy", "cost", "first request"]  # fmt: skip
FAR = "fl.hospital.invalid"
"""A coordinator elsewhere: known to the proxy of these tests alone. Loopback needs no proxy."""
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check") / "fed"
    with Running(folder, hosts=("127.0.0.1", "localhost", FAR)) as running:
        yield running


@pytest.fixture
def home_for(gateway, tmp_path):
    def make(host="127.0.0.1", key=None, **answers):
        key = key or gateway.site
        kit = StartKit(
            site="lyon",
            address=f"{host}:{gateway.port}",
            ca=(gateway.folder / "ca.pem").read_text(),
            coordinator=(gateway.folder / "coordinator.pub").read_text().strip(),
            fingerprint=fingerprint(key.public_key()),
            key=private_text(key),
        )
        values = {"data": None, "units": 0, "policy": Policy(), "device": "cpu", **answers}
        return join(kit, tmp_path / "home", Answers(**values)).home

    return make


@pytest.fixture
def announce(gateway):
    path = gateway.folder / "state" / "announcement.json"

    def write(recipe=RECIPE, class_names=(), code="", version=__version__):
        said = Announcement(run="demo", recipe=recipe.to_toml(), recipe_digest=recipe.digest,
                            class_names=class_names, version=version, code=code)  # fmt: skip
        sealed = seal_announcement(read_private(gateway.folder / "coordinator.key"), said)
        replace_private_json(path, {"body": sealed.text, "signature": sealed.signature.hex()})

    yield write
    path.unlink(missing_ok=True)


def found(home, name, recipe=None):
    checked = check_site(home, recipe)
    assert [f.name for f in checked.findings] == ORDER
    (finding,) = [f for f in checked.findings if f.name == name]
    return finding, checked.exit_code


def refused(home, name, code, said, remedy, recipe=None):
    finding, exit_code = found(home, name, recipe)
    assert (finding.level, exit_code) == ("failed", code), finding
    assert said in finding.said, finding
    assert remedy in finding.remedy, finding


def edited(home, before, after):
    text = (home / "site.toml").read_text()
    assert before in text
    (home / "site.toml").write_text(text.replace(before, after, 1))


def test_a_site_of_the_real_gateway_passes_in_the_documented_order(home_for, announce):
    announce(code=code_digest())
    checked = check_site(home_for())
    assert checked.exit_code == 0
    assert [f.name for f in checked.findings] == ORDER
    assert {f.level for f in checked.findings} <= {"ok", "note"}, checked


def test_a_data_folder_that_is_not_there(home_for, tmp_path):
    (tmp_path / "pictures").mkdir()
    home = home_for(data=tmp_path / "pictures")
    (tmp_path / "pictures").rmdir()
    refused(home, "data", 3, "cannot be read as a folder", "Set [data] path in site.toml")


def test_damaged_pictures_fail_the_check_by_name_also_where_no_run_is_announced(home_for, tmp_path):
    small = RECIPE.data.model_copy(update={"image_size": 32})
    write_tree(load_table(small, tmp_path / "cache"), tmp_path / "birds", lambda *_: None)
    home = home_for(data=tmp_path / "birds", reading={"kind": "folder", "folders": "splits"})
    site = Site.open(home)
    entries = Ledger(home, site.data_binding, site.name).head()[0]
    finding, code = found(home, "data")
    assert (finding.level, code) == ("ok", 0), finding
    assert "no run is announced" in finding.said
    pictures = sorted((tmp_path / "birds" / "train").rglob("*.png"))
    for picture in pictures[:3]:
        picture.write_bytes(picture.read_bytes()[:40])
    calls = []
    checked = check_site(home, None, lambda done, total: calls.append((done, total)))
    (finding,) = [f for f in checked.findings if f.name == "data"]
    assert (finding.level, checked.exit_code) == ("failed", 3), finding
    assert "3 count as nothing" in finding.said
    for picture in pictures[:3]:
        assert picture.name in finding.said
    assert calls
    assert calls[-1][0] == calls[-1][1]
    assert Ledger(home, site.data_binding, site.name).head()[0] == entries
    text = (home / "site.toml").read_text()
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("faults ="))
    (home / "site.toml").write_text(kept.replace("[data]", '[data]\nfaults = "leave-out"'))
    assert found(home, "data")[0].level == "note"


def test_an_empty_data_folder(home_for, tmp_path):
    (tmp_path / "pictures").mkdir()
    home = home_for(data=tmp_path / "pictures")
    refused(home, "data", 3, "is empty", "fieldmark data check")


def test_a_data_folder_of_other_classes_than_were_announced(home_for, announce, tmp_path):
    small = RECIPE.data.model_copy(update={"image_size": 32})
    write_tree(load_table(small, tmp_path / "cache"), tmp_path / "birds", lambda *_: None)
    recipe = parse_recipe("", ["data.name=folder", "data.image_size=32"])
    reading = {"kind": "folder", "folders": "splits"}
    home = home_for(data=tmp_path / "birds", reading=reading)
    announce(recipe, tuple(sorted(CLASS_NAMES)))
    assert found(home, "data")[0].level == "ok", found(home, "data")
    announce(recipe, ("a sparrow", "a gull"))
    refused(home, "data", 3, "no picture to learn from", "data check")
    announce(recipe, CLASS_NAMES[:3])
    refused(home, "data", 3, "with a label that is no class of the run", "data.label_map")


def test_a_data_folder_without_a_picture_says_what_the_recipe_needs(home_for, tmp_path):
    (tmp_path / "birds" / "train" / "wren").mkdir(parents=True)
    home = home_for(data=tmp_path / "birds", reading={"kind": "folder", "folders": "splits"})
    recipe = parse_recipe("", ["data.name=folder", "data.image_size=32"])
    finding, code = found(home, "data", recipe)
    assert (finding.level, code) == ("failed", 3)
    assert finding.remedy


@pytest.mark.parametrize("which", ["home", "cache"])
def test_a_full_disk_under_the_home_or_the_cache(home_for, monkeypatch, tmp_path, which):
    home = home_for(cache=tmp_path / "elsewhere" / "cache")
    full = home if which == "home" else tmp_path / "elsewhere" / "cache"
    whole = shutil.disk_usage(tmp_path)

    def usage(path):
        small = str(path).startswith(str(home)) == (which == "home")
        return whole._replace(free=1_500_000_000 if small else 90_000_000_000)

    monkeypatch.setattr(checking.shutil, "disk_usage", usage)
    refused(home, "disk", 2, f"1.5 GB free for '{full}', 2 needed", "resources.cache")


def test_too_little_memory(home_for, monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 400000 kB\n")
    real = checking.Path
    monkeypatch.setattr(
        checking, "Path", lambda p: real(tmp_path / "meminfo" if p == "/proc/meminfo" else p)
    )
    refused(home_for(), "memory", 2, "0.4 GB free, 1 needed", "End other programs")


@pytest.mark.parametrize(
    ("device", "there", "said"),
    [("cuda", 0, "there is none"), ("cuda:2", 2, "2 are there"), ("gpu", 1, "is none of auto")],
)
def test_a_gpu_that_is_wanted_and_not_there(home_for, monkeypatch, device, there, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    remedy = "site.toml" if device == "gpu" else "resources.device = 'cpu'"
    refused(home_for(device=device), "GPU", 2, said, remedy)


def test_a_gpu_that_is_there_is_named_and_one_that_may_be_missing_is_a_note(home_for, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"card {number}")
    home = home_for(device="cuda:1")
    assert found(home, "GPU")[0].said == "card 1"
    edited(home, '"cuda:1"', '"auto"')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found(home, "GPU")[0].level == "note"


@pytest.mark.parametrize(("off", "said"), [(-90, "90 s behind"), (200, "200 s ahead")])
def test_a_clock_that_is_off(home_for, monkeypatch, off, said):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(seconds=off)

    # Our own clock moves, not the difference that is computed from it.
    monkeypatch.setattr("fieldmark.client.deployment.contact.datetime", Clock)
    finding, code = found(home_for(), "clock")
    assert (finding.level, code) == ("failed", 5)
    assert finding.said.split(" s ")[1].startswith(said.split(" s ")[1])
    assert abs(int(finding.said.split()[0]) - abs(off)) <= 2
    assert "NTP" in finding.remedy


def test_a_clock_too_far_off_is_not_taken_for_a_key_that_is_not_known(home_for, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(minutes=10)

    monkeypatch.setattr("fieldmark.client.deployment.contact.datetime", Clock)
    # The headers with which the node proves its key, too.
    monkeypatch.setattr("fieldmark.client.deployment.flower_internals.datetime", Clock)
    home = home_for()
    clock, code = found(home, "clock")
    assert (clock.level, code) == ("failed", 5)
    assert abs(int(clock.said.split()[0]) - 600) <= 2
    key = found(home, "key")[0]
    assert key.level == "not reached"
    assert "the clocks differ too much" in key.said


def test_a_name_that_is_not_known(home_for):
    home = home_for(host="no-such-host.invalid")
    refused(home, "DNS", 5, "'no-such-host.invalid' is not known", "start kit")
    assert found(home, "TLS")[0].level == "not reached"


def test_nobody_at_the_port(home_for):
    home = home_for()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{probe.getsockname()[1]}"
    write_link(home, Link(address=closed), (home / "coordinator-ca.pem").read_text())
    refused(home, "TLS", 5, "does not answer", f"Outbound TCP to {closed} has to be open")


class Proxy:
    """An HTTP proxy on loopback that opens tunnels (CONNECT), or says no."""

    def __init__(self, needs="", refuses=""):
        self.asked, self._needs, self._refuses = [], needs, refuses
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._one, args=self._listening.accept(),
                                 daemon=True).start()  # fmt: skip

    def _one(self, near, _):
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(4096)
        text = head.decode()
        target = text.split()[1]
        self.asked.append(target)
        if self._refuses or (self._needs and f"Basic {self._needs}" not in text):
            why = self._refuses or "407 Proxy Authentication Required"
            near.sendall(f"HTTP/1.1 {why}\r\n\r\n".encode())
            near.close()
            return
        host, port = target.rsplit(":", 1)
        far = socket.create_connection(("127.0.0.1" if host == FAR else host, int(port)))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=self._copy, args=(near, far), daemon=True).start()
        self._copy(far, near)

    @staticmethod
    def _copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self):
        self._listening.close()


@pytest.fixture
def proxy():
    made = []

    def make(**more):
        made.append(Proxy(**more))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_the_way_out_through_a_proxy_is_taken_and_said(
    home_for, gateway, proxy, monkeypatch, variable
):
    between = proxy()
    monkeypatch.setenv(variable, f"http://{between.address}")
    finding, code = found(home_for(host=FAR), "proxy")
    assert (finding.level, code) == ("note", 0)
    assert between.address in finding.said
    assert between.asked == [f"{FAR}:{gateway.port}"]


def test_a_proxy_that_asks_for_a_name_and_a_password_is_told_them(home_for, proxy, monkeypatch):
    between = proxy(needs=base64.b64encode(b"lyon:pass word").decode())
    monkeypatch.setenv("HTTPS_PROXY", f"http://lyon:pass%20word@{between.address}")
    finding, code = found(home_for(host=FAR), "proxy")
    assert (finding.level, code) == ("note", 0)
    assert "pass" not in finding.said


def test_a_proxy_that_refuses_is_named_with_what_has_to_be_open(home_for, proxy, monkeypatch):
    between = proxy(refuses="407 Proxy Authentication Required")
    monkeypatch.setenv("HTTPS_PROXY", between.address)
    home = home_for(host=FAR)
    said = f"does not answer through the proxy {between.address}"
    refused(home, "TLS", 5, said, "HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT")
    assert "407" in found(home, "TLS")[0].said


def test_a_proxy_that_lets_the_address_not_through_is_no_firewall(home_for, proxy, monkeypatch):
    between = proxy(refuses="403 Forbidden")
    monkeypatch.setenv("HTTPS_PROXY", between.address)
    said = f"does not answer through the proxy {between.address}"
    refused(home_for(host=FAR), "TLS", 5, said, "administrator to let it through")


def test_a_proxy_whose_name_is_not_known(home_for, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://no-such-proxy.invalid:3128")
    refused(home_for(host=FAR), "DNS", 5, "'no-such-proxy.invalid' is not known", "administrator")


def test_a_proxy_that_does_not_take_connections(home_for, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed.getsockname()[1]}")
        home = home_for(host=FAR)
        refused(home, "TLS", 5, "through the proxy 127.0.0.1", "did not take the connection")


@pytest.mark.parametrize("named", ["http://proxy:port", "http://[::1", "nonsense.invalid"])
def test_a_proxy_that_is_no_address_is_named_with_how_to_write_one(home_for, monkeypatch, named):
    monkeypatch.setenv("HTTPS_PROXY", named)
    refused(home_for(host=FAR), "DNS", 5, "", "http://HOST:PORT")


@pytest.mark.parametrize("named", ["127.0.0.1", "", "hospital.lan"])
def test_no_proxy_and_loopback_leave_the_proxy_out_as_the_node_does(
    home_for, proxy, monkeypatch, named
):
    between = proxy()
    monkeypatch.setenv("HTTPS_PROXY", f"http://{between.address}")
    if named:
        monkeypatch.setenv("NO_PROXY", named)
    finding, code = found(home_for(), "proxy")
    assert (finding.level, code) == ("ok", 0)
    assert "NO_PROXY" in finding.said
    assert between.asked == []


@pytest.mark.parametrize("given", ["", "hospital.lan,10.0.0.0/8"])
def test_the_nodes_own_loopback_is_left_out_of_the_proxy_by_itself(monkeypatch, tmp_path, given):
    if given:
        monkeypatch.setenv("NO_PROXY", given)
    made = environment(tmp_path)
    for name in ("NO_PROXY", "no_proxy"):
        parts = made[name].split(",")
        assert {"127.0.0.1", "localhost"} <= set(parts)
        assert set(filter(None, given.split(","))) <= set(parts)
    # The client that Flower's node calls its loopback with finds it there.
    for name, value in {**made, "HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://p:1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    mounts = get_environment_proxies()
    assert mounts["all://127.0.0.1"] is None
    assert mounts["all://localhost"] is None


def test_a_certificate_that_ends_soon_is_a_note_with_its_date(home_for, monkeypatch):
    until = datetime.now(UTC) + timedelta(days=5, hours=1)
    monkeypatch.setattr(
        checking, "look", lambda *_: Contact(until=until, skew_s=0.0, version=__version__)
    )
    finding, code = found(home_for(), "TLS")
    assert (finding.level, code) == ("note", 0)
    assert f"{until:%Y-%m-%d} (5 days)" in finding.said


def test_a_key_that_is_not_registered(home_for):
    home = home_for(key=new_key())
    refused(home, "key", 5, "does not know this site's key", "Ask the coordinator whether 'lyon'")


def test_a_coordinator_of_another_version(home_for, monkeypatch):
    monkeypatch.setattr(checking, "__version__", "9.9.9")
    said = f"the coordinator has {__version__}, this site 9.9.9"
    refused(home_for(), "version", 2, said, "Install the same at both ends")


def test_the_same_version_with_other_code(home_for, announce):
    announce(code="0" * 64)
    said = "the code is not the same (the coordinator's is 000000000000"
    refused(home_for(), "version", 2, said, "Install the same at both ends")


def test_a_policy_that_the_announced_run_does_not_meet(home_for, announce):
    announce()
    home = home_for(policy=Policy(privacy="required", epsilon_cap="none"))
    refused(home, "policy", 4, "policy.privacy", "")
    assert found(home, "policy")[0].remedy
    assert found(home, "cost")[0].level == "not reached"


def invoked(home, *more):
    done = CliRunner().invoke(site_app, ["check", str(home), *more])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_a_recipes_file_is_checked_in_place_of_the_announced_run_and_nothing_is_charged(
    home_for, announce, gateway, tmp_path
):
    announce()
    gateway.upstream.reached.clear()
    home = home_for(policy=Policy(epsilon_cap=2.0), units=100)
    refused(home, "policy", 4, "the recipe has no [privacy]", "[policy] in site.toml")
    (tmp_path / "dear.toml").write_text(PRIVATE)
    dear = invoked(home, "--recipe", str(tmp_path / "dear.toml"), "--json")
    assert dear.exit_code == 4
    said = json.loads(dear.stdout)
    assert said["ok"] is False
    assert [c["name"] for c in said["checks"]] == ORDER
    policy, cost, first = said["checks"][-3:]
    assert (first["level"], "cost" in first["said"]) == ("not reached", True)
    assert policy["level"] == "ok"
    assert cost["level"] == "failed"
    assert "(cap 2)" in cost["said"]
    assert "raise policy.epsilon_cap" in cost["remedy"]
    ledger = home / "ledger.jsonl"
    assert not ledger.exists() or "reserve" not in ledger.read_text()
    assert gateway.upstream.reached == []


def test_every_failure_is_shown_with_its_remedy_and_the_first_gives_the_exit_code(home_for):
    home = home_for(device="gpu", key=new_key())
    done = invoked(home)
    assert done.exit_code == 2
    lines = done.stdout.splitlines()
    for name in ("GPU", "key"):
        (at,) = [i for i, line in enumerate(lines) if f"failed  {name}: " in line]
        assert lines[at + 1].startswith(" " * 13)


def remembered(gateway, site, **changes):
    """The coordinator remembers a reply of this site."""
    run_dir = gateway.folder / "runs" / "demo"
    (run_dir / "coordinator").mkdir(parents=True, exist_ok=True)
    link_memory(run_dir, gateway.folder)
    length, head = Ledger(site.home, site.data_binding, site.name).head()
    values = {
        "kind": "train", "run": "run-1", "round": 1, "site": "lyon", "nonce": "0" * 32,
        "recipe_digest": RECIPE.digest, "code": "ok", "ledger_length": length,
        "ledger_head": head, **changes,
    }  # fmt: skip
    body = Reply(**values)
    LedgerMemory(run_dir, RECIPE).saw(body, seal(site.key, body))


@pytest.fixture
def forgetful(gateway):
    yield
    shutil.rmtree(gateway.folder / "ledgers", ignore_errors=True)


def test_the_ledger_is_held_against_what_the_coordinator_remembers(home_for, gateway, forgetful):
    home = home_for()
    assert "has seen none of them yet" in found(home, "ledger")[0].said
    site = Site.open(home)
    Ledger(home, site.data_binding, site.name).note("refused", {"run": "x"})
    remembered(gateway, site)
    assert "2 entries; the coordinator has seen 2 of them" in found(home, "ledger")[0].said


def test_an_old_copy_is_said_with_the_way_back_also_where_no_run_is_on(
    home_for, gateway, forgetful
):
    home = home_for()
    remembered(gateway, Site.open(home), ledger_length=40, ledger_head="a" * 64)
    refused(home, "ledger", 4, "has seen 40 entries", "site ledger recover")


def test_what_another_key_has_signed_says_nothing_of_this_ledger(home_for, gateway, forgetful):
    home = home_for()
    site = Site.open(home)
    remembered(gateway, replace(site, key=new_key()), ledger_length=40, ledger_head="a" * 64)
    assert found(home, "ledger")[0].level == "ok"


def test_a_second_copy_of_a_home_is_said(home_for, tmp_path):
    (tmp_path / "pictures" / "wren").mkdir(parents=True)
    (tmp_path / "pictures" / "wren" / "1.png").write_bytes(b"x")
    home = home_for(data=tmp_path / "pictures")
    shutil.copytree(home, tmp_path / "copy")
    finding, _ = found(tmp_path / "copy", "ledger")
    assert (finding.level, finding.exit_code) == ("failed", 4)
    assert "have a ledger already" in finding.said
    assert "Use that home" in finding.remedy


def test_the_limits_are_shown_and_a_recipe_beyond_one_is_named(home_for):
    home = home_for()
    shown, _ = found(home, "limits")
    assert shown.level == "ok"
    assert "500 million parameters, 640 px" in shown.said
    fits, _ = found(home, "limits", RECIPE)
    assert (fits.level, fits.said.startswith("the run fits into them: ")) == ("ok", True)
    edited(home, "parameters_m = 500.0", "parameters_m = 0.1")
    refused(home, "limits", 4, "limits.parameters_m = 0.1, and its model", "in site.toml", RECIPE)
    unknown = parse_recipe("", ["model.backbone=resnet_of_nobody"])
    refused(home, "limits", 4, "is unknown", "Did you mean", unknown)
