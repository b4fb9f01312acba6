"""A hostile text in every text field of every message, and in whatever a run has written down.

Which fields there are is asked of the models themselves, and what a run writes is planted in every
text of its files: a new field or a new event is in it from its first day. Then everything that
shows a run is made, and searched.
"""

import importlib
import io
import json
import pkgutil
import re
import shutil
from html.parser import HTMLParser

import pytest
from pydantic import BaseModel
from rich.console import Console
from test_hostile_words import HOSTILE, checked_terminal

import fgvc_core.protocol
from fgvc_core.console import PlainConsole
from fgvc_core.drawing.style import again_script
from fgvc_core.export.card import model_card
from fgvc_core.files import replace_private_json
from fgvc_core.inference.taxonomy import KEY as TAXONOMY
from fgvc_core.inference.trained import load_trained
from fgvc_core.protocol.keys import new_key, public_text
from fieldmark.server.deployment.allow_list import AllowList
from fieldmark.server.deployment.following import view_of
from fieldmark.server.deployment.pages import make_app, metrics_text
from fieldmark.server.deployment.provisioning import init_server
from fieldmark.server.deployment.run_request import RunRequest, write_run_request
from fieldmark.server.deployment.screen import site_table
from fieldmark.server.deployment.settings import DeploymentSettings
from fieldmark.server.deployment.status import read_status, show_status
from fieldmark.server.live import LiveView
from fieldmark.server.report.page import render
from fieldmark.server.tracking.tracker import final_figures, note_of
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.simulate import simulate

OWN = {"event", "kind", "phase", "time", "unit", "engine", "strategy", "code", "method", "format"}
"""Keys whose texts are ours or one of a few words; a message can hold no other there."""
TAGS = {"html", "head", "meta", "title", "style", "body", "main", "header", "section", "article",
        "h1", "h2", "h3", "p", "span", "strong", "em", "code", "pre", "a", "ul", "ol", "li", "dl",
        "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary",
        "figure", "figcaption", "div", "nav", "footer", "svg", "g", "line", "path", "rect", "text",
        "circle", "polyline", "small", "br", "time", "colgroup", "col", "b", "i", "img",
        "link"}  # fmt: skip
"""Elements that our pages are made of."""


def models():
    """Every model below ``fgvc_core.protocol``: whatever is read of another party."""
    found = {}
    for module in pkgutil.iter_modules(fgvc_core.protocol.__path__):
        loaded = importlib.import_module(f"fgvc_core.protocol.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, BaseModel):
                found[f"{value.__module__}.{value.__name__}"] = value
    return {n: m for n, m in found.items() if n.startswith("fgvc_core.protocol")}


def texts(schema, where=""):
    """(path, schema) of every text in a JSON schema, whose keys are texts too."""
    defs = schema.get("$defs", {})

    def walk(part, where, seen):
        if "$ref" in part:
            name = part["$ref"].rsplit("/", 1)[1]
            if name not in seen:
                yield from walk(defs[name], where, (*seen, name))
            return
        for name in ("anyOf", "allOf", "oneOf", "prefixItems"):
            for each in part.get(name, ()):
                yield from walk(each, where, seen)
        if part.get("type") == "string":
            yield where, part
        for name, each in part.get("properties", {}).items():
            yield from walk(each, f"{where}.{name}", seen)
        if isinstance(part.get("items"), dict):
            yield from walk(part["items"], f"{where}[]", seen)
        if isinstance(part.get("additionalProperties"), dict):
            yield f"{where} (names)", part.get("propertyNames", {})
            yield from walk(part["additionalProperties"], f"{where}{{}}", seen)

    yield from walk(schema, where, ())


MODELS = {n: m for n, m in models().items() if not n.endswith((".Body", "Settings"))}
TEXTS = [
    (f"{name.rsplit('.', 1)[1]}{path}", part)
    for name, model in sorted(MODELS.items())
    for path, part in texts(model.model_json_schema())
]


def test_the_models_are_found():
    names = {name.rsplit(".", 1)[1] for name in MODELS}
    assert {"Request", "Reply", "PrivacyStatement", "KitBody", "ValidationReply", "Announcement",
            "StartKit", "Rotation", "LedgerStatement"} <= names  # fmt: skip
    paths = {path for path, _ in TEXTS}
    assert {"Reply.reason", "Reply.version", "Reply.privacy.how", "Request.notice",
            "Request.class_names[]", "Reply.tensors (names)"} <= paths  # fmt: skip


@pytest.mark.parametrize(("path", "part"), TEXTS, ids=[path for path, _ in TEXTS])
def test_every_text_of_a_message_is_bounded(path, part):
    assert {"enum", "const", "maxLength", "pattern"} & part.keys(), part


def planted(value, key=""):
    """The same with the hostile text in every text, and as every name of a site."""
    if isinstance(value, dict):
        return {(f"{k}{HOSTILE}" if k.startswith("site-") else k): planted(v, k)
                for k, v in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [planted(each, key) for each in value]
    if not isinstance(value, str) or key in OWN:
        return value
    # A site keeps its name in front, so that all its figures stay together.
    return f"{value}{HOSTILE}"


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.shown = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.shown += data


OWN_PARTS = (
    f'<script type="module">{again_script()}</script>',
    '<noscript><meta http-equiv="refresh" content="60"></noscript>',
    '<button type="button" id="pause" aria-pressed="false" hidden>Pause</button>',
)
"""What a status page has of its own to look again by itself, letter for letter."""


def without_own(text):
    """A status page without those parts, each of which it has once: nothing else may be active."""
    for part in OWN_PARTS:
        assert text.count(part) == 1, part
        text = text.replace(part, "")
    return text


def checked_page(text):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    page = Page(text)
    assert page.tags <= TAGS, page.tags - TAGS
    for name, value in page.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("href", "src"):
            assert re.match(r"#|data:,$|data:image/(png|jpeg);base64,", value), value
    assert "alert(1)" in page.shown, "the text was planted, and is shown"


def checked_markdown(text):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    body = text.split("---\n", 2)[2]
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.S)
    found = re.search(r"(?s).{0,80}((?<!\\)<script|(?<!\\)\]\(http://evil)", outside)
    assert not found, found[0]


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A coordinator's folder with a finished run, every text of its records hostile."""
    from tests_recipe import TINY

    from fgvc_core.recipe import parse_recipe

    folder = tmp_path_factory.mktemp("hostile")
    recipe = parse_recipe(TINY, ["partition.sites=2", "federation.rounds=2"])
    simulate(Simulation(recipe, folder / "run"))
    fed = folder / "fed"
    init_server(fed, DeploymentSettings(hosts=("gate",)))
    AllowList(fed).add("site-1", public_text(new_key().public_key()))
    run_dir = fed / "runs" / "run"
    shutil.copytree(folder / "run", run_dir, symlinks=True)
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    events = [planted(json.loads(line)) for line in lines]
    name = f"site-1{HOSTILE}"
    refused = {"event": "reply", "time": "t", "round": 1, "kind": "train", "accepted": False,
               "site": name, "reason": HOSTILE, "bytes_up": 1, "bytes_down": 1}  # fmt: skip
    said = {"time": "t", "round": 1, "site": name, "reason": HOSTILE, "why": HOSTILE,
            "refused_in_row": 1, "accepted": 1, "needed": 2, "run": HOSTILE, "tracker": HOSTILE,
            "node": 3, "events_cut": 0, "claimed": 5, "weight": 3, "share": 0.5}  # fmt: skip
    kinds = ("site_set_aside", "site_left", "round_void", "tracker_failed", "failed",
             "start_refused", "weight_cut", "screening_reset")  # fmt: skip
    events += [refused, {**refused, "event": "late_reply"}]
    events += [{**said, "event": kind} for kind in kinds]
    (run_dir / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    for name in ("metrics.json", "checkpoints/last.json"):
        path = run_dir / name
        path.write_text(json.dumps(planted(json.loads(path.read_text()))))
    write_run_request(run_dir, RunRequest(state="failed", why=HOSTILE))
    replace_private_json(fed / "state" / "gateway.json", {"refusals": [[HOSTILE, 403, 3]]})
    return fed, run_dir, events


def test_the_report_and_its_figures(hostile_run):
    _, run_dir, _ = hostile_run
    checked_page(render(run_dir).read_text(encoding="utf-8"))


def test_the_status_page_and_the_metrics(hostile_run):
    from starlette.testclient import TestClient

    fed, _, _ = hostile_run
    client = TestClient(make_app(fed), base_url="http://127.0.0.1")
    checked_page(without_own(client.get("/").text))
    assert (
        HOSTILE
        in json.dumps(client.get("/status.json").json(), ensure_ascii=False)
        .encode()
        .decode("unicode_escape", "ignore")
        or "alert(1)" in client.get("/status.json").text
    )
    for line in metrics_text(read_status(fed)).splitlines():
        checked_terminal(line)


def test_the_terminal_of_status_and_of_a_run_that_is_followed(hostile_run, capsys, tiny):
    fed, run_dir, events = hostile_run
    show_status(read_status(fed))
    out = io.StringIO()
    PlainConsole(file=out, width=400).print(site_table(view_of(run_dir)))
    live = LiveView(tiny, Console(file=out, width=4000))
    for event in events:
        live(event)
    checked_terminal(capsys.readouterr().out)
    checked_terminal(out.getvalue())
    assert "alert(1)" in out.getvalue()


def test_what_trackers_are_told(hostile_run):
    _, run_dir, events = hostile_run
    told = [note for event in events if (note := note_of(event)) is not None]
    assert any("alert(1)" in note for note in told)
    for note in told:
        checked_terminal(note)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for name in final_figures(metrics):
        checked_terminal(name)


def test_the_model_card(hostile_run):
    _, run_dir, _ = hostile_run
    trained = load_trained(run_dir)
    names = tuple(f"{name}{HOSTILE}" for name in trained.class_names)
    object.__setattr__(trained, "class_names", names)
    # The checkpoint's own hierarchy names its own classes.
    trained.metadata.pop(TAXONOMY, None)
    checked_markdown(model_card(trained, HOSTILE, native=False))
