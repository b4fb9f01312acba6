import json
import logging
import sys

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from PIL import Image

import fieldmark.client.app
from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.experiment import make_learner, make_table
from fgvc_core.flower.internals import enter_run
from fgvc_core.flower.records import to_content
from fgvc_core.protocol.keys import new_key, public_text, read_public
from fgvc_core.protocol.messages import Reply, Request, new_nonce, seal, unseal
from fgvc_core.recipe import parse_recipe
from fgvc_core.wire.arrays import pack_all
from fieldmark.client.job import Incoming, answer
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings
from fieldmark.client.stages import HANDLERS

SECRET = "Mrs-Miller-left-arm"
COORDINATOR = new_key()


@pytest.fixture
def home(tmp_path, tiny, monkeypatch):
    cache = tmp_path / "cache"
    coordinator = public_text(COORDINATOR.public_key())
    made = make_home(
        tmp_path / "home", name="site-1", coordinator=coordinator, cache=cache, split_key=b"k" * 32
    )
    (made.home / "rows.json").write_text(json.dumps(list(range(60))))
    assert make_table(tiny, cache).num_classes == 12
    return made.home


def request(recipe, kind, site="site-1", **changes):
    values = {"kind": kind, "run": "run-1", "round": 0 if kind == "roll_call" else 1, "site": site,
              "nonce": new_nonce(), "recipe_digest": recipe.digest}  # fmt: skip
    if kind == "roll_call":
        values |= {"recipe": recipe.announced.to_toml(), "class_names": CLASS_NAMES, "site": ""}
    return Request(**{**values, **changes})


def ask(home, body, tensors=None, key=COORDINATOR):
    packed = pack_all(tensors or {})
    body = body.model_copy(update={"tensors": {n: t.digest() for n, t in packed.items()}})
    return answer(home, Incoming(seal(key, body), packed))


def reply_of(home, departure):
    digests = {name: tensor.digest() for name, tensor in departure.tensors.items()}
    return unseal(Reply, departure.sealed, read_public(Site.open(home).public_key), digests)


def test_a_site_answers_the_roll_call_then_trains_what_it_was_announced(home, tiny):
    called = reply_of(home, ask(home, request(tiny, "roll_call")))
    assert (called.code, called.site) == ("ok", "site-1")
    tensors = make_learner(tiny, 12).tensors()
    departure = ask(home, request(tiny, "train"), tensors)
    reply = reply_of(home, departure)
    assert reply.code == "ok"
    assert reply.examples + reply.scores.examples == 60
    assert set(departure.tensors) == set(tensors)
    scored = ask(home, request(tiny, "score"), tensors)
    assert scored.tensors == {}
    assert reply_of(home, scored).scores == reply.scores


def test_the_same_request_gives_the_same_update(home, tiny):
    ask(home, request(tiny, "roll_call"))
    tensors = make_learner(tiny, 12).tensors()
    first = ask(home, request(tiny, "train"), tensors).tensors
    assert ask(home, request(tiny, "train"), tensors).tensors == first


SHARES = (0.1,) * 8 + (0.05,) * 4


@pytest.mark.parametrize("asked", ["loss.balance_prior=0.5", "loss.balance_shares=all"])
@pytest.mark.parametrize(
    "shares", [(), SHARES[:11], (0.5, 0.5), (0.0, 0.15, *SHARES[2:]), (0.9, *SHARES[1:])]
)
def test_shares_of_the_classes_must_fit_the_recipe(home, tiny, asked, shares):
    recipe = parse_recipe(tiny.to_toml(), ["loss.balance=logits", asked, "train.start=means"])
    ask(home, request(recipe, "roll_call"))
    tensors = make_learner(recipe, 12).tensors()
    good = reply_of(home, ask(home, request(recipe, "train", class_shares=SHARES), tensors))
    assert good.code == "ok"
    wrong = reply_of(home, ask(home, request(recipe, "train", class_shares=shares), tensors))
    assert wrong.code == "refused-request"
    assert f"has {len(shares)} shares of 12 classes" in wrong.reason


def test_shares_of_the_classes_that_the_recipe_does_not_use_are_refused(home, tiny):
    ask(home, request(tiny, "roll_call"))
    body = request(tiny, "train", class_shares=SHARES)
    reply = reply_of(home, ask(home, body, make_learner(tiny, 12).tensors()))
    assert (reply.code, "does not use" in reply.reason) == ("refused-request", True)


def test_nobody_but_the_coordinator_is_answered(home, tiny):
    assert ask(home, request(tiny, "roll_call"), key=new_key()) is None
    assert ask(home, request(tiny, "train", site="site-2")) is None
    assert ask(home, request(tiny, "train", site="")) is None
    assert answer(home / "nowhere", Incoming(seal(COORDINATOR, request(tiny, "score")), {})) is None
    assert not (home / "ledger.jsonl").exists()


def test_a_run_that_was_not_announced_is_refused(home, tiny):
    reply = reply_of(home, ask(home, request(tiny, "train"), make_learner(tiny, 12).tensors()))
    assert (reply.code, reply.scores, reply.examples) == ("refused-request", None, 0)


@pytest.mark.parametrize("change", ["another recipe", "not finite", "another shape", "run name"])
def test_a_request_that_does_not_fit_is_refused(home, tiny, change):
    ask(home, request(tiny, "roll_call"))
    tensors, body = make_learner(tiny, 12).tensors(), request(tiny, "train")
    if change == "another recipe":
        body = body.model_copy(update={"recipe_digest": "f" * 64})
    elif change == "run name":
        body = body.model_copy(update={"run": "../../etc/passwd"})
    else:
        name = sorted(tensors)[0]
        wrong = np.zeros(tensors[name].size + 1, np.float32)
        tensors[name] = wrong if change == "another shape" else tensors[name] * np.nan
    departure = ask(home, body, tensors)
    assert reply_of(home, departure).code == "refused-request"
    assert departure.tensors == {}


def test_no_word_of_what_went_wrong_with_the_data_leaves_the_site(home, tiny, monkeypatch):
    ask(home, request(tiny, "roll_call"))

    def broken(*_):
        raise RuntimeError(f"cannot read {SECRET}.jpg")

    monkeypatch.setitem(HANDLERS, "train", broken)
    departure = ask(home, request(tiny, "train"), make_learner(tiny, 12).tensors())
    reply = reply_of(home, departure)
    assert (reply.code, reply.reason) == ("unavailable", "")
    assert SECRET not in departure.sealed.text
    assert SECRET in (home / "site.log").read_text()


def test_a_damaged_picture_is_told_to_nobody_outside(home, tiny, tmp_path):
    tree = tmp_path / "birds"
    for split in ("train", "test"):
        for name in ("jay", "wren"):
            (tree / split / name).mkdir(parents=True)
            for number in range(4):
                picture = tree / split / name / f"{SECRET}-{number}.jpg"
                Image.new("RGB", (40, 40), (number, 9, 9)).save(picture)
    broken = tree / "train" / "jay" / f"{SECRET}-0.jpg"
    broken.write_bytes(broken.read_bytes()[:150])
    recipe = parse_recipe(tiny.to_toml(), ["data.name=folder", f"data.path={tree}"])
    settings = Site.open(home).settings
    data = settings.data.model_copy(
        update={"path": str(tree), "kind": "folder", "folders": "splits"}
    )
    write_settings(home, settings.model_copy(update={"data": data}))
    (home / "rows.json").unlink()
    ask(home, request(recipe, "roll_call", class_names=("jay", "wren")))
    departure = ask(home, request(recipe, "train"), make_learner(recipe, 2).tensors())
    reply = reply_of(home, departure)
    assert (reply.code, reply.reason, reply.scores) == ("unavailable", "", None)
    assert departure.tensors == {}
    assert SECRET not in departure.sealed.text
    assert f"{SECRET}-0.jpg" in (home / "site.log").read_text()


def test_a_site_whose_labels_mean_other_classes_takes_no_part(home, tiny):
    swapped = CLASS_NAMES[::-1]
    ask(home, request(tiny, "roll_call", class_names=swapped))
    departure = ask(home, request(tiny, "train"), make_learner(tiny, 12).tensors())
    assert reply_of(home, departure).code == "unavailable"
    assert "in their order" in (home / "site.log").read_text()


def test_not_even_a_broken_installation_makes_it_raise(home, tiny, monkeypatch):
    ask(home, request(tiny, "roll_call"))
    monkeypatch.setitem(sys.modules, "fieldmark.client.stages", None)
    assert reply_of(home, ask(home, request(tiny, "train"))).code == "unavailable"
    monkeypatch.setattr("fieldmark.client.job.Reply", None)
    assert ask(home, request(tiny, "train")) is None
    assert "could not even be refused" in (home / "site.log").read_text()


def test_the_sites_policy_is_the_reason_that_is_given(home, tiny):
    settings = Site.open(home).settings
    write_settings(home, settings.model_copy(update={"policy": Policy(max_update_mb=1e-3)}))
    ask(home, request(tiny, "roll_call"))
    departure = ask(home, request(tiny, "train"), make_learner(tiny, 12).tensors())
    reply = reply_of(home, departure)
    assert reply.code == "refused-policy"
    assert "max_update_mb" in reply.reason
    assert departure.tensors == {}


@pytest.mark.parametrize("how", ["node config", "partition number"])
def test_the_flower_app_finds_its_home_in_every_engine(home, tiny, monkeypatch, how):
    from fieldmark.client.app import app

    config = {"site-home": str(home)} if how == "node config" else {"partition-id": 0}
    monkeypatch.setenv("FIELDMARK_SITES", str(home.parent))
    enter_run(1)
    content = to_content(seal(COORDINATOR, request(tiny, "roll_call")), None)
    message = FlowerMessage(content, dst_node_id=2, message_type="query.roll_call")
    reply = app(message, Context(1, 2, config, RecordDict(), {}))
    body = Reply.parse(reply.content.config_records["envelope"]["body"])
    assert (body.code, body.site) == ("ok", "site-1")


def test_the_flower_app_answers_nonsense_with_nothing(home):
    from fieldmark.client.app import app

    enter_run(1)
    message = FlowerMessage(
        RecordDict({"tensors": ArrayRecord()}), dst_node_id=2, message_type="train"
    )
    reply = app(message, Context(1, 2, {"site-home": str(home)}, RecordDict(), {}))
    assert reply.content.config_records["envelope"]["body"] == ""


def test_statistics_are_answered_once_they_are_in_the_recipe_and_the_policy_allows_counts(
    home, tiny
):
    plain = request(tiny, "release", phase="statistics")
    ask(home, request(tiny, "roll_call"))
    refused = reply_of(home, ask(home, plain, make_learner(tiny, 12).tensors()))
    assert refused.code == "refused-request"
    assert "statistics are not part of this run" in refused.reason
    starting = parse_recipe(tiny.to_toml(), ["train.start=means"])
    ask(home, request(starting, "roll_call", run="run-2"))
    body = request(starting, "release", phase="statistics", run="run-2")
    departure = ask(home, body, make_learner(starting, 12).tensors())
    assert set(departure.tensors) == {"statistics.counts", "statistics.sums"}
    site = Site.open(home)
    policy = site.settings.policy.model_copy(update={"share_counts": False})
    write_settings(home, site.settings.model_copy(update={"policy": policy}))
    departure = ask(
        home,
        request(starting, "release", phase="statistics", run="run-2"),
        make_learner(starting, 12).tensors(),
    )
    assert reply_of(home, departure).code == "refused-policy"
    assert departure.tensors == {}


HEADS = {
    **{"heads/weight": np.zeros((2, 12, 256), np.float32), "heads/fold": np.float32([0, -1])},
    **{name: np.ones((2, 1, 12), np.float32) for name in ("heads/scale", "heads/bias")},
}


def test_a_site_answers_about_heads_what_the_recipe_announced_and_its_policy_allows(home, tiny):
    made = ["train.start=auto", "model.train=head", "wire.down=bfloat16"]
    searching = parse_recipe(tiny.to_toml(), made)
    ask(home, request(searching, "roll_call"))
    site = Site.open(home)

    def answered(phase, heads=HEADS, **policy):
        changed = site.settings.policy.model_copy(update=policy)
        write_settings(home, site.settings.model_copy(update={"policy": changed}))
        departure = ask(home, request(searching, "release", phase=phase), heads)
        return departure, reply_of(home, departure)

    departure, reply = answered("gradients")
    assert departure.tensors["gradients.weight"].shape == (2, 12, 256)
    assert reply.code == "ok"
    assert answered("fold-counts")[0].tensors["fold-counts"].shape == (2, 1, 3, 12)
    for phase in ("gradients", "fold-counts"):
        departure, reply = answered(phase, share_counts=False)
        assert (reply.code, departure.tensors) == ("refused-policy", {})
    assert answered("gradients", share_scores=False)[1].code == "ok"
    assert answered("fold-counts", share_scores=False)[1].code == "refused-policy"


@pytest.mark.parametrize(
    "broken",
    [
        {"heads/fold": np.float32([0, 3])},
        {"heads/weight": np.full((2, 12, 256), np.nan, np.float32)},
        {"heads/weight": np.zeros((2, 11, 256), np.float32)},
        {"heads/bias": np.zeros((2, 12), np.float32)},
        {"heads/bias": np.zeros((0, 1, 12), np.float32)},
        {"heads/bias": np.zeros((2, 17, 12), np.float32)},
    ],
)
def test_a_site_refuses_what_are_no_heads_of_this_run(home, tiny, broken):
    searching = parse_recipe(tiny.to_toml(), ["train.start=auto", "model.train=head"])
    ask(home, request(searching, "roll_call"))
    departure = ask(home, request(searching, "release", phase="gradients"), HEADS | broken)
    assert reply_of(home, departure).code == "refused-request"
    assert departure.tensors == {}


@pytest.mark.parametrize(
    ("start", "phase"),
    [("lda", "gradients"), ("lda", "fold-counts"), ("regression", "fold-counts")],
)
def test_a_site_tells_no_more_about_heads_than_was_announced(home, tiny, start, phase):
    other = parse_recipe(tiny.to_toml(), [f"train.start={start}", "model.train=head"])
    ask(home, request(other, "roll_call"))
    departure = ask(home, request(other, "release", phase=phase), HEADS)
    assert reply_of(home, departure).code == "refused-request"
    assert departure.tensors == {}


def test_no_word_of_the_coordinator_forges_a_line_of_the_sites_log(home, tiny):
    ask(home, request(tiny, "roll_call"))
    forged = "late\n2026-01-01 00:00:00,000 ERROR round 7 refused: all is lost\x1b[2J\u202e"
    ask(home, request(tiny, "train", notice=forged))
    ask(home, request(tiny, "train", site="site-1\n2026-01-01 ERROR forged", notice=forged))
    lines = (home / "site.log").read_text(encoding="utf-8").split("\n")
    records = [line for line in lines if line and not line.startswith("  | ")]
    assert any(r"late\n2026-01-01" in line for line in records)
    assert not any(line.startswith("2026-01-01") for line in records)
    assert not any(set("\x1b\u202e\r") & set(line) for line in lines)


def test_no_word_of_an_error_forges_a_line_where_no_home_can_be_opened(capfd):
    log = logging.getLogger("fieldmark.site")
    try:
        raise ValueError("no\nready\x1b[2J")
    except ValueError:
        log.exception("a message was not answered")
    told = capfd.readouterr().err
    assert told.startswith("a message was not answered\n  | Traceback")
    assert "\nready" not in told
    assert "\x1b" not in told


def test_replies_that_nobody_could_sign_share_no_object_across_sites(tmp_path):
    enter_run(1)
    question = FlowerMessage(RecordDict(), dst_node_id=1, message_type="train")
    question.metadata.__dict__["_message_id"] = "ab" * 32
    ids = []
    for site in ("a", "b"):
        context = Context(1, 1, {"site-home": str(tmp_path / site)}, RecordDict(), {})
        reply = fieldmark.client.app.app(question, context)
        envelope = reply.content.config_records["envelope"]
        # The same size whoever answers, and no word of why.
        assert (envelope["body"], len(envelope["signature"])) == (
            "",
            fieldmark.client.app.UNSIGNED_BYTES,
        )
        ids.append(set(get_all_nested_objects(reply)))
    assert not ids[0] & ids[1]
