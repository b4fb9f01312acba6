"""``client/`` has no exit but the gate: by what it imports, and by a canary in the data.

The canary is a patient's name, in file names, folders, subjects, further columns and pixels of
the site's data, and in what its log says. Whatever is asked, no byte of it leaves.
"""

import ast
import csv
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage
from PIL import Image

import fieldmark.client
from fgvc_core.experiment import make_learner
from fgvc_core.flower.internals import enter_run
from fgvc_core.flower.records import to_array_record, to_content
from fgvc_core.protocol.messages import Reply, Request, new_nonce, seal
from fgvc_core.recipe import parse_recipe
from fgvc_core.wire.arrays import pack_all
from fieldmark.client import workspace as works
from fieldmark.client.app import app
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings

from .protected_sites import COORDINATOR, ledger_of, public_text

PACKAGE = Path(fieldmark.client.__file__).parent
CANARY = "Mrs-Canary"
PIXELS = (CANARY * 4).encode()
CLASSES = ("naevus", "melanoma")
OPEN_DOORS = ("app.py", "deployment/")
"""Where Flower is: the app that hands on what the gate lets out, and the processes around it."""

NETWORK = {
    *("aiohttp", "asyncio", "flwr", "ftplib", "grpc", "http", "httpx", "imaplib", "paramiko"),
    *("poplib", "ray", "requests", "smtplib", "socket", "socketserver", "ssl", "starlette"),
    *("subprocess", "multiprocessing", "telnetlib", "urllib", "urllib3", "uvicorn", "websockets"),
    *("xmlrpc", "importlib", "runpy", "ctypes", "pickle", "webbrowser", "syslog"),
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # The core's room for Flower is as good as Flower itself.
            yield "flwr" if module.startswith("fgvc_core.flower") else module.split(".")[0]


def test_nothing_but_the_app_and_the_deployment_can_reach_a_network_or_a_process():
    found = {(name, module) for name, tree in modules() for module in imported(tree)}
    offenders = {
        (name, module)
        for name, module in found
        if module in NETWORK and not name.startswith(OPEN_DOORS)
    }
    assert offenders == set()
    # The test looks where it thinks that it looks.
    assert ("app.py", "flwr") in found
    assert ("privacy/gate.py", "fieldmark") in found


def test_nothing_in_the_package_goes_round_by_the_app():
    """The core below knows no Flower (import-linter); beside it only the app does."""
    for name, tree in modules():
        for node in ast.walk(tree):
            named = node.module if isinstance(node, ast.ImportFrom) else ""
            # The warm runner stands where Flower's own executor would: it calls the app.
            if name != "deployment/runner.py":
                assert not (named or "").startswith("fieldmark.client.app"), name


def test_what_speaks_to_the_network_reads_no_picture():
    """The deployment carries what the app answered; only the local check reads the data tree."""
    rooms = ("workspace", "stages", "recognition", "rehearsal")
    reading = (*(f"fieldmark.client.{room}" for room in rooms), "fgvc_core.experiment",
               "fgvc_core.training", "fgvc_core.data")  # fmt: skip
    found = {
        (name, module)
        for name, tree in modules()
        if name.startswith("deployment/")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for module in [node.module or ""]
        if module.startswith(reading)
    }
    assert found == {
        ("deployment/check_data.py", "fieldmark.client.recognition"),
        ("deployment/dry_run.py", "fieldmark.client.rehearsal"),
    }


def names_called(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "id", getattr(node.func, "attr", ""))


@pytest.mark.parametrize(
    ("call", "places"),
    [
        # A reply becomes something that can leave in one place.
        ("Departure", {"privacy/gate.py"}),
        ("seal", {"privacy/gate.py"}),
        # What Flower carries is made in one place, from what the gate has let out.
        ("Message", {"app.py"}),
        ("to_content", {"app.py"}),
        ("to_array_record", {"app.py"}),
        ("ArrayRecord", set()),
        ("ConfigRecord", {"app.py"}),
    ],
)
def test_each_step_of_the_way_out_is_taken_in_one_place(call, places):
    found = {name for name, tree in modules() if call in set(names_called(tree))}
    assert {name for name in found if not name.startswith("deployment/")} == places


def test_the_app_sends_what_the_gate_let_out_and_nothing_else(monkeypatch):
    tree = ast.parse((PACKAGE / "app.py").read_text(encoding="utf-8"))
    (handle,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_handle")
    sent = {
        node.value.id if isinstance(node.value, ast.Name) else ast.unparse(node.value)
        for node in ast.walk(handle)
        if isinstance(node, ast.Attribute)
    }
    # Everything that is read in there: what arrived, what the gate let out, and a logger.
    assert sent <= {"message", "logging", "outgoing", "outgoing.sealed", "outgoing.tensors",
                    "tensor", "logging.getLogger('fieldmark.site')"}  # fmt: skip


def test_what_stands_for_a_signature_is_drawn_from_the_system_alone():
    tree = ast.parse((PACKAGE / "app.py").read_text(encoding="utf-8"))
    (made,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_no_signature")
    assert ast.unparse(made.body[-1]) == "return secrets.token_bytes(UNSIGNED_BYTES)"
    assert not made.args.args


@pytest.fixture
def data(tmp_path):
    """Pictures of patients, some with several; the canary wherever a name can be."""
    root = tmp_path / CANARY / "data"
    (root / "images" / f"{CANARY}-ward").mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows = []
    for number in range(16):
        pixels = rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)
        pixels.ravel()[: len(PIXELS)] = np.frombuffer(PIXELS, np.uint8)
        name = f"{CANARY}-ward/{CANARY}-{number}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        patient = f"{CANARY}-{number // 2}"
        rows.append((name, CLASSES[number % 2], patient, "train", f"seen by Dr {CANARY}"))
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "patient", "split", "note"), *rows])
    return root


RECIPE = """
name = "lesions"
seed = 3
[data]
name = "manifest"
image_size = 32
classes = ["naevus", "melanoma"]
path_template = "images/{path}"
val_fraction = 0.2
[model]
backbone = "fieldmark_nano"
[federation]
rounds = 2
"""
READING = {"kind": "manifest", "path_template": "images/{path}", "subject_column": "patient"}
PRIVATE = (
    "privacy.epsilon=4",
    "privacy.method=gradients",
    "privacy.unit=subject",
    "privacy.steps=1",
    "privacy.sampling_rate=0.4",
    "privacy.score_share=0.1",
)


@pytest.fixture(params=["private", "open"])
def recipe(request):
    return parse_recipe(RECIPE, PRIVATE if request.param == "private" else ())


@pytest.fixture
def site(data, tmp_path, recipe):
    policy = {} if recipe.privacy is None else {"unit": "subject", "epsilon_cap": 5.0}
    site = make_home(
        tmp_path / CANARY / "home",
        name="site-1",
        coordinator=public_text(COORDINATOR.public_key()),
        cache=tmp_path / "cache",
        data_path=str(data),
        units=8,
        reading=READING,
        policy=Policy(**policy),
    )
    works.WORKSPACE.forget_data()
    return Site.open(site.home)


class Wire:
    """Carries messages to the Flower app and keeps every byte that comes back."""

    def __init__(self, site, recipe):
        self.site, self.recipe, self.left = site, recipe, b""
        enter_run(1)

    def __call__(self, kind, tensors=None, **changes):
        values = {"kind": kind, "run": "run-1", "round": 1, "site": "site-1",
                  "nonce": new_nonce(), "recipe_digest": self.recipe.digest}  # fmt: skip
        if kind == "roll_call":
            text = self.recipe.to_toml()
            values |= {"recipe": text, "class_names": CLASSES, "site": "", "round": 0}
        packed = pack_all(tensors or {})
        values["tensors"] = {name: tensor.digest() for name, tensor in packed.items()}
        body = Request(**{**values, **changes})
        content = to_content(seal(COORDINATOR, body), to_array_record(packed))
        types = {"roll_call": "query.roll_call", "release": "query.release", "score": "evaluate"}
        message = FlowerMessage(content, dst_node_id=2, message_type=types.get(kind, kind))
        home = {"site-home": str(self.site.home)}
        reply = app(message, Context(1, 2, home, RecordDict(), {}))
        assert not reply.has_error()
        self.left += serialised(reply)
        text = reply.content.config_records["envelope"]["body"]
        return Reply.parse(text) if text else None


def serialised(message):
    """Everything in a message as bytes, names included."""
    parts = [repr(message.metadata).encode()]
    for name, record in message.content.items():
        parts.append(name.encode())
        for key, value in record.items():
            parts.append(key.encode())
            parts.append(value.data if hasattr(value, "data") else repr(value).encode())
            if isinstance(value, bytes):
                parts.append(value)
    return b"\0".join(parts)


def check_no_canary(wire):
    # What is looked through does hold what was sent.
    assert b"site-1" in wire.left
    for word in (CANARY.encode(), b"Canary", PIXELS[:6], str(wire.site.home.parent).encode()):
        assert word not in wire.left
    cache = wire.site.cache
    assert [p for p in cache.rglob("*") if "canary" in p.name.lower()] == []


def test_a_whole_run_takes_nothing_of_it_along(site, recipe):
    wire = Wire(site, recipe)
    assert wire("roll_call").code == "ok"
    tensors = make_learner(recipe, 2).tensors()
    for round_ in (1, 2):
        assert wire("train", tensors, round=round_).code == "ok"
    assert wire("score", tensors, round=2).code == "ok"
    check_no_canary(wire)
    # It is there to be found: the ledger's home, the data and the table all hold it.
    table, _ = works.WORKSPACE.table(site, recipe, CLASSES, recipe.privacy is not None)
    assert all(CANARY in name for name in (*table.subjects, *table.ids, str(site.home)))
    assert len(set(table.subjects)) == 8


@pytest.mark.parametrize("harm", ["picture", "manifest", "extra class", "gone", "not a folder"])
def test_damaged_data_are_told_to_nobody(site, recipe, data, harm):
    if harm == "picture":
        for picture in (data / "images").rglob("*.png"):
            picture.write_bytes(picture.read_bytes()[:200])
    elif harm == "manifest":
        with (data / "manifest.csv").open("a") as file:
            file.write(f"{CANARY}-ward/{CANARY}-99.png,{CANARY}\n")
    elif harm == "extra class":
        text = (data / "manifest.csv").read_text()
        (data / "manifest.csv").write_text(text.replace(",melanoma,", f",{CANARY}-disease,", 1))
    else:
        data.rename(data.with_name("away"))
        if harm == "not a folder":
            data.write_text("")
    wire = Wire(site, recipe)
    assert wire("roll_call").code == "ok"
    reply = wire("train", make_learner(recipe, 2).tensors())
    if recipe.privacy is not None and harm in ("picture", "manifest", "extra class"):
        # What is wrong with single pictures does not show: they count as nothing.
        assert (reply.code, reply.reason, reply.examples) == ("ok", "", 8)
        assert "count as nothing" in (site.home / "site.log").read_text()
    else:
        assert (reply.code, reply.reason, reply.examples) == ("unavailable", "", 0)
    check_no_canary(wire)
    named = f"{CANARY}-" if harm in ("picture", "extra class") else "data"
    named = "damaged line" if harm == "manifest" and recipe.privacy is not None else named
    assert named in (site.home / "site.log").read_text()


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("fieldmark.client.workspace.Workspace.examples", RuntimeError),
        ("fieldmark.client.workspace.Workspace.examples", MemoryError),
        ("fieldmark.client.workspace.Workspace.examples", RecursionError),
        ("fgvc_core.training.learner.Learner.load", KeyError),
        ("fieldmark.client.privacy.gate.Gate._encoded", ValueError),
        ("fieldmark.client.privacy.gate.Gate.__init__", OSError),
        ("fieldmark.client.site.Site.open", RuntimeError),
        ("fieldmark.client.app.site_home", RuntimeError),
    ],
)
def test_no_exceptions_text_crosses(site, recipe, where, kind, monkeypatch):
    wire = Wire(site, recipe)
    assert wire("roll_call").code == "ok"
    tensors = make_learner(recipe, 2).tensors()

    def broken(*_, **__):
        raise kind(f"{CANARY}: CUDA out of memory in {site.home}")

    monkeypatch.setattr(where, broken)
    reply = wire("train", tensors)
    assert reply is None or (reply.code, reply.reason) == ("unavailable", "")
    monkeypatch.undo()
    check_no_canary(wire)
    if where != "fieldmark.client.app.site_home":
        assert CANARY in (site.home / "site.log").read_text()


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"expires": "2020-01-01"}, "policy.expires"),
        ({"min_units": 99}, "policy.min_units"),
        ({"approval": "each-run"}, "policy.approval"),
        ({"max_update_mb": 1e-4}, "max_update_mb"),
        ({"tensors": ["nothing"]}, "policy.tensors"),
        ({"epsilon_cap": 0.1}, "policy.epsilon_cap"),
    ],
)
def test_refusals_name_the_policys_line_and_nothing_of_the_data(site, recipe, policy, said):
    settings = site.settings.model_copy(update={"policy": Policy(**policy)})
    write_settings(site.home, settings)
    wire = Wire(site, recipe)
    tensors = make_learner(recipe, 2).tensors()
    replies = [wire("roll_call"), wire("train", tensors), wire("train", tensors, round=99)]
    assert any(said in reply.reason for reply in replies if reply.code == "refused-policy")
    if said in ("max_update_mb", "policy.tensors"):
        assert replies[0].code == "ok"
    assert all(reply.code != "ok" for reply in replies[1:])
    check_no_canary(wire)
    assert ledger_of(site).total(1e-5)[0] == 0.0


@pytest.mark.parametrize("recipe", ["private"], indirect=True)
def test_a_second_home_over_the_data_is_refused_without_naming_the_first(data, site, recipe):
    other = make_home(
        site.home.with_name("other"),
        name="site-1",
        coordinator=public_text(COORDINATOR.public_key()),
        cache=site.cache,
        units=8,
    )
    write_settings(other.home, site.settings)
    wire = Wire(Site.open(other.home), recipe)
    reply = wire("roll_call")
    assert (reply.code, reply.reason) == (
        "refused-policy",
        "These data have a ledger already, in another home.",
    )
    check_no_canary(wire)


@pytest.mark.parametrize("recipe", ["private"], indirect=True)
def test_who_is_a_subject_is_the_sites_to_say(site, recipe):
    """A recipe by which each picture is a subject changes nothing here."""
    for number, change in enumerate(["data.subject_column=path", "data.name=folder"]):
        each = parse_recipe(recipe.to_toml(), [change])
        assert Wire(site, each)("roll_call", run=f"run-{number}").code == "ok"
        table, _ = works.WORKSPACE.table(site, each, CLASSES, True)
        assert len(set(table.subjects)) == 8
    outside = parse_recipe(recipe.to_toml(), ["data.manifest=../../others/manifest.csv"])
    reply = Wire(site, outside)("roll_call", run="run-3")
    assert (reply.code, "leads out of" in reply.reason) == ("refused-policy", True)


@pytest.mark.parametrize("content", ["nothing", "a body that is no text", "no signature"])
def test_nonsense_is_answered_with_nothing(site, recipe, content):
    from flwr.app import ConfigRecord

    enter_run(1)
    record = {
        "nothing": {},
        "a body that is no text": {"envelope": ConfigRecord({"body": 5, "signature": b""})},
        "no signature": {"envelope": ConfigRecord({"body": "{}"})},
    }[content]
    message = FlowerMessage(RecordDict(record), dst_node_id=2, message_type="train")
    fillers = set()
    for config in ({"site-home": str(site.home)}, {"partition-id": "x"}, {}):
        reply = app(message, Context(1, 2, config, RecordDict(), {}))
        envelope = dict(reply.content.config_records["envelope"])
        # What stands in the signature's place is random, so that no two sites send one object.
        filler = envelope.pop("signature")
        assert envelope == {"body": ""}
        assert len(filler) == 64
        assert filler not in fillers
        fillers.add(filler)
        assert list(reply.content) == ["envelope"]
        assert CANARY.encode() not in serialised(reply)
