"""What a site sends under [wire], from the request to the bytes that leave."""

import json

import numpy as np
import pytest
from asking import COORDINATOR, ask, reply_of, request

from fgvc_core.errors import PolicyRefusal
from fgvc_core.experiment import make_learner
from fgvc_core.privacy.settings import PrivacySettings
from fgvc_core.protocol.keys import public_text
from fgvc_core.recipe import parse_recipe
from fgvc_core.wire.arrays import pack, spec_of
from fgvc_core.wire.codec import SMALL, decode_update, packed_bytes, update_parts
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings
from fieldmark.client.stages import HANDLERS

SPARSE = ("wire.precision=int8", "wire.delta=true", "wire.top_k=0.05")


@pytest.fixture
def home(tmp_path, tiny):
    made = make_home(
        tmp_path / "home",
        name="site-1",
        coordinator=public_text(COORDINATOR.public_key()),
        cache=tmp_path / "cache",
        split_key=b"k" * 32,
    )
    (made.home / "rows.json").write_text(json.dumps(list(range(60))))
    return made.home


def with_wire(recipe, *overrides):
    return parse_recipe(recipe.to_toml(), overrides)


def test_an_update_leaves_in_the_bytes_that_were_announced_and_can_be_read(home, tiny):
    recipe = with_wire(tiny, "wire.precision=int8", "wire.delta=true")
    ask(home, request(recipe, "roll_call"))
    tensors = make_learner(recipe, 12).tensors()
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    departure = ask(home, request(recipe, "train"), tensors)
    assert reply_of(home, departure).code == "ok"
    weight = sum(len(part.data) for part in departure.tensors.values())
    assert weight == packed_bytes(update_parts(specs, recipe.wire, specs))
    line = json.loads((home / "ledger.jsonl").read_text().splitlines()[-1])
    assert line["bytes"] == departure.nbytes
    plain = ask_plainly(home, tiny, tensors)
    read = decode_update(departure.tensors, specs, recipe.wire, tensors)
    for name in tensors:
        largest = np.abs(plain[name] - tensors[name]).max()
        np.testing.assert_allclose(read[name], plain[name], atol=largest / 250 + 1e-6)


def ask_plainly(home, tiny, tensors):
    ask(home, request(tiny, "roll_call", run="plain"))
    parts = ask(home, request(tiny, "train", run="plain"), tensors).tensors
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    return decode_update(parts, specs, tiny.wire, tensors)


def test_a_repeated_round_gives_equal_bytes_and_the_next_takes_up_what_was_left(home, tiny):
    recipe = with_wire(tiny, *SPARSE)
    ask(home, request(recipe, "roll_call"))
    tensors = make_learner(recipe, 12).tensors()
    first = ask(home, request(recipe, "train"), tensors).tensors
    second = ask(home, request(recipe, "train", round=2, base_round=1), tensors).tensors
    assert ask(home, request(recipe, "train", round=2, base_round=1), tensors).tensors == second
    assert ask(home, request(recipe, "train"), tensors).tensors == first
    assert ask(home, request(recipe, "train", round=2, base_round=1), tensors).tensors == second
    # Without the first round's rest the second sends something else: its reply did not count.
    assert ask(home, request(recipe, "train", round=2), tensors).tensors != second


def test_the_sites_own_cap_wins_before_anything_is_computed(home, tiny, monkeypatch):
    recipe = with_wire(tiny, "wire.max_update_mb=1000")
    settings = Site.open(home).settings
    write_settings(home, settings.model_copy(update={"policy": Policy(max_update_mb=0.05)}))
    ask(home, request(recipe, "roll_call"))
    monkeypatch.setitem(HANDLERS, "train", lambda job: 1 / 0)
    tensors = make_learner(recipe, 12).tensors()
    reply = reply_of(home, ask(home, request(recipe, "train"), tensors))
    assert (reply.code, "max_update_mb" in reply.reason) == ("refused-policy", True)


def test_the_same_cap_lets_the_encoded_update_pass(home, tiny):
    recipe = with_wire(tiny, *SPARSE)
    tensors = make_learner(recipe, 12).tensors()
    full_mb = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    settings = Site.open(home).settings
    write_settings(home, settings.model_copy(update={"policy": Policy(max_update_mb=full_mb / 4)}))
    ask(home, request(recipe, "roll_call"))
    assert reply_of(home, ask(home, request(recipe, "train"), tensors)).code == "ok"


def test_a_model_heavier_than_the_recipe_allows_is_not_read(home, tiny):
    recipe = with_wire(tiny, "wire.max_update_mb=0.001")
    ask(home, request(recipe, "roll_call"))
    reply = reply_of(home, ask(home, request(recipe, "train"), make_learner(recipe, 12).tensors()))
    assert (reply.code, "weighs" in reply.reason) == ("refused-request", True)


def test_a_model_in_other_bits_than_the_recipe_says_is_refused(home, tiny):
    recipe = with_wire(tiny, "wire.down=float16")
    ask(home, request(recipe, "roll_call"))
    tensors = make_learner(recipe, 12).tensors()
    assert reply_of(home, ask(home, request(recipe, "train"), tensors)).code == "refused-request"
    halves = {n: t.astype(np.float16) if t.size > SMALL else t for n, t in tensors.items()}
    assert pack(halves["head.weight"]).dtype == "float16"
    assert reply_of(home, ask(home, request(recipe, "train"), halves)).code == "ok"


def test_error_feedback_is_no_part_of_a_private_run(tiny):
    privacy = ("privacy.epsilon=4.0", "privacy.method=gradients")
    with pytest.raises(PolicyRefusal, match=r"wire\.top_k"):
        with_wire(tiny, *SPARSE, *privacy)
    assert with_wire(tiny, *SPARSE[:2], *privacy).privacy.epsilon == 4


def test_a_site_that_protects_itself_refuses_error_feedback_before_it_is_charged(home, tiny):
    recipe = with_wire(tiny, *SPARSE)
    own = PrivacySettings(epsilon=4.0, method="gradients")
    site = Site.open(home).settings
    data = site.data.model_copy(update={"units": 50, "pictures": 50})
    policy = Policy(privacy="required", epsilon_cap="none", own=own)
    write_settings(home, site.model_copy(update={"policy": policy, "data": data}))
    ask(home, request(recipe, "roll_call"))
    reply = reply_of(home, ask(home, request(recipe, "train"), make_learner(recipe, 12).tensors()))
    assert (reply.code, "wire.top_k" in reply.reason) == ("refused-policy", True)
    assert '"reserved"' not in (home / "ledger.jsonl").read_text()
