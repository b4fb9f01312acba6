"""A recipe that asks for more of a site's machine than its people lend."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgvc_core.errors import ConfigurationError, PolicyRefusal
from fgvc_core.protocol.keys import read_public
from fgvc_core.protocol.messages import Reply, seal, unseal
from fgvc_core.recipe import Recipe, parse_recipe
from fieldmark.client.job import Incoming, answer
from fieldmark.client.limits import SHARE_OF_MEMORY, Limits, machine_bytes
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.recipe_limits import LIBRARIES_GB, PICTURE_GB, _numbers, check_recipe
from fieldmark.client.site import Site, write_settings

from .protected_sites import COORDINATOR, make_site, request, steps

HUGE = "model.backbone=eva02_enormous_patch14_clip_224"
CLASSES = ("a", "b")


def limited(site, **limits):
    changed = site.settings.model_copy(update={"limits": Limits(**limits)})
    write_settings(site.home, changed)
    return Site.open(site.home)


def ask(site, body):
    departure = answer(site.home, Incoming(seal(COORDINATOR, body), {}))
    assert departure is not None
    return unseal(Reply, departure.sealed, read_public(site.public_key), {})


def roll_call(recipe):
    return request(recipe, "roll_call", "run-1", 0, recipe=recipe.to_toml(), class_names=CLASSES)


MANY = ("privacy.physical_batch=4096", "privacy.engine=opacus")

ASKED = [
    ("parameters_m", {"parameters_m": 0.1}, ()),
    ("parameters_m", {}, ("data.image_size=224", HUGE)),
    ("image_size", {"image_size": 32}, ()),
    ("batch_size", {"batch_size": 16}, ()),
    ("batch_size", {"batch_size": 200}, ("privacy.physical_batch=4096",)),
    ("batch_size", {"batch_size": 200}, ("evaluate.batch_size=8192",)),
    ("epochs", {"epochs": 5}, ("train.epochs=6",)),
    ("epochs", {"epochs": 5}, ("personal.epochs=6",)),
    ("rounds", {"rounds": 2}, ()),
    ("message_mb", {"message_mb": 10.0}, ("model.backbone=resnet18",)),
    ("memory_gb", {"memory_gb": 2.0, "batch_size": 65_536}, MANY),
]


@pytest.mark.parametrize(("name", "limits", "changes"), ASKED, ids=lambda v: str(v)[:60])
def test_it_is_refused_at_the_roll_call_by_the_settings_name_and_uncharged(
    tmp_path, name, limits, changes
):
    if changes == ("personal.epochs=6",):
        site, recipe = make_site(tmp_path, privacy="optional"), parse_recipe("", changes)
    else:
        site, recipe = make_site(tmp_path), steps(*changes)
    site = limited(site, **limits)
    reply = ask(site, roll_call(recipe))
    assert reply.code == "refused-policy"
    assert reply.reason.startswith(f"limits.{name} = ")
    ledger = Ledger(site.home, site.data_binding, site.name)
    assert ledger.plans() == []
    assert ledger.total(1e-5)[0] == 0.0
    assert not (site.home / "runs").exists()
    # It is no other thing that refuses it.
    assert ask(limited(site, parameters_m=1e5, batch_size=65_536, memory_gb=1e5, message_mb=1e5),
               roll_call(recipe)).code == "ok"  # fmt: skip


def test_the_limits_of_the_day_hold_for_a_run_that_was_announced_before(tmp_path):
    site, recipe = make_site(tmp_path), steps()
    assert ask(site, roll_call(recipe)).code == "ok"
    reply = ask(limited(site, rounds=2), request(recipe, "train", "run-1", 1))
    assert reply.reason.startswith("limits.rounds = 2")
    assert Ledger(site.home, site.data_binding, site.name).total(1e-5)[0] == 0.0


@pytest.mark.parametrize("pictures", [0, 1, 30])
def test_a_refusal_is_the_same_whatever_the_pictures_are(tmp_path, pictures):
    (tmp_path / "data").mkdir()
    for number in range(pictures):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "data" / f"{number}.png")
    site = make_site(tmp_path)
    data = site.settings.data.model_copy(update={"path": str(tmp_path / "data"), "kind": "folder"})
    write_settings(site.home, site.settings.model_copy(update={"data": data}))
    reply = ask(limited(Site.open(site.home), memory_gb=2.0, batch_size=65_536),
                roll_call(steps(*MANY)))  # fmt: skip
    assert reply.reason.startswith("limits.memory_gb = 2.0, and the recipe needs ")
    assert reply.reason == ask(limited(make_site(tmp_path / "empty"), memory_gb=2.0,
                                       batch_size=65_536),
                               roll_call(steps(*MANY))).reason  # fmt: skip


def test_a_model_that_cannot_be_built_is_refused_at_the_roll_call_in_words(tmp_path):
    reply = ask(make_site(tmp_path), roll_call(steps("model.backbone=resnet_of_nobody")))
    assert (reply.code, "is unknown" in reply.reason) == ("refused-policy", True)


def test_a_simulated_site_takes_what_its_own_simulation_asks_for(tmp_path):
    site = make_site(tmp_path)
    (site.home / "rows.json").write_text("[0, 1]")
    assert ask(limited(site, rounds=1), roll_call(steps())).code == "ok"


def test_pretraining_counts_with_its_projector_its_rounds_and_two_views(tmp_path):
    recipe = parse_recipe(
        "", ["pretrain.method=simclr", "pretrain.rounds=6", "pretrain.hidden=16384",
             "pretrain.projection=16384", "federation.rounds=5"],
    )  # fmt: skip
    for limits, said in (
        ({"rounds": 10}, "federation.rounds + pretrain.rounds = 11"),
        ({"parameters_m": 250.0}, "million"),
        ({"message_mb": 900.0}, "travels as"),
    ):
        with pytest.raises(PolicyRefusal, match=said.replace("+", r"\+")):
            check_recipe(Limits(**limits), recipe, 5)


def test_what_the_cache_would_keep_is_compared_by_the_declared_number_alone():
    limits = Limits(cache_gb=50.0, file_gb=40.0)
    large = parse_recipe("", ["data.image_size=512"])
    check_recipe(limits, large, 5, declared=50_000)
    with pytest.raises(PolicyRefusal, match=r"limits\.file_gb = 40, and 60,000 declared"):
        check_recipe(limits, large, 5, declared=60_000)
    with pytest.raises(PolicyRefusal, match=r"limits\.cache_gb"):
        check_recipe(limits, large, 5, declared=70_000)
    # Of a frozen backbone a vector is kept.
    check_recipe(limits, parse_recipe("", ["model.train=head"]), 5, declared=1_000_000)


@pytest.mark.parametrize(
    ("changes", "views"),
    [
        ((), 5),  # The picture, and four random views.
        (("augment.rotation=0", "augment.zoom=0", "augment.color=0"), 2),
        (("augment.cached_views=9", "model.mirrored=true"), 11),
    ],
)
def test_maps_in_front_of_a_stage_count_in_every_view_that_is_kept(changes, views):
    recipe = parse_recipe("", ["data.image_size=64", "model.train=stage4", *changes])
    map_kb = 128 * 8 * 8 * 2 / 1000
    fits = int(1e9 / (views * map_kb * 1000))
    check_recipe(Limits(cache_gb=1.0), recipe, 5, declared=fits)
    with pytest.raises(PolicyRefusal, match=r"limits\.cache_gb = 1"):
        check_recipe(Limits(cache_gb=1.0), recipe, 5, declared=fits + 100)


def test_a_stage_that_the_backbone_does_not_have_is_refused_with_the_nearest(tmp_path):
    reply = ask(make_site(tmp_path), roll_call(steps("model.train=stage44")))
    assert reply.code == "refused-policy"
    assert "model.train = 'stage44' names no stage of this backbone" in reply.reason


def test_a_gpu_takes_the_steps_memory_and_not_the_models_own():
    limits = Limits(memory_gb=3.0, batch_size=4096)
    recipe = parse_recipe("", ["train.batch_size=4096"])
    with pytest.raises(PolicyRefusal, match=r"limits\.memory_gb"):
        check_recipe(limits, recipe, 5)
    check_recipe(limits, recipe, 5, on_gpu=True)


def test_a_private_loop_takes_unit_after_unit_and_needs_no_more_for_a_large_batch():
    limits = Limits(memory_gb=2.0, batch_size=65_536)
    check_recipe(limits, steps("privacy.physical_batch=4096", "privacy.engine=loop"), 5)
    with pytest.raises(PolicyRefusal, match=r"limits\.memory_gb"):
        check_recipe(limits, steps(*MANY), 5)


@given(
    rounds=st.integers(1, 3000),
    epochs=st.integers(1, 200),
    batch=st.integers(1, 2000),
    size=st.integers(16, 1024),
    most=st.tuples(
        st.integers(1, 3000), st.integers(1, 200), st.integers(128, 2000), st.integers(16, 1024)
    ),
)
def test_a_recipe_is_refused_exactly_where_a_number_is_beyond_its_limit(
    rounds, epochs, batch, size, most
):
    values = {
        "data": {"image_size": size},
        "federation": {"rounds": rounds},
        "train": {"epochs": epochs, "batch_size": batch},
        "model": {"train": "head"},
    }
    recipe = Recipe.read(values)
    names = ("rounds", "epochs", "batch_size", "image_size")
    limits = Limits(memory_gb=1000.0, **dict(zip(names, most, strict=True)))
    beyond = {
        name
        for name, asked in zip(names, (rounds, epochs, max(batch, 128), size), strict=True)
        if asked > getattr(limits, name)
    }
    if beyond:
        with pytest.raises(PolicyRefusal) as refused:
            check_recipe(limits, recipe, 2)
        assert refused.value.what.split(" ")[0].removeprefix("limits.") in beyond
    else:
        assert list(beyond_numbers(limits, recipe)) == []


def beyond_numbers(limits, recipe):
    """What of a recipe's numbers is beyond a limit: without the model, which is counted above."""
    return [name for name, most, asked, _ in _numbers(limits, recipe) if asked > most]


def test_what_is_needed_at_least_leaves_room_for_the_libraries_and_for_one_picture():
    # Otherwise one large picture would end the process, and an answer would turn on it.
    least = Limits.model_fields["memory_gb"].metadata[0].ge
    assert least >= LIBRARIES_GB + PICTURE_GB + 0.1


def test_memory_is_this_machines_where_nothing_is_said():
    assert Limits().memory_bytes == pytest.approx(machine_bytes() * 0.8, abs=1e9)
    assert Limits(memory_gb=5.0).memory_bytes == 5_000_000_000


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/", "memory.max"),
        ("0::/system.slice/site.service", "system.slice/site.service/memory.max"),
        ("0::/system.slice/site.service", "system.slice/site.service/memory.high"),
        ("0::/system.slice/site.service", "system.slice/memory.max"),
        # A container is told its path on the host, and sees its own group at the top.
        ("0::/docker/ab12", "memory.max"),
        ("9:cpu:/\n4:cpuset,memory:/docker/ab12\n0::/", "memory/docker/ab12/memory.limit_in_bytes"),
        ("4:memory:/docker/ab12", "memory/memory.limit_in_bytes"),
        ("4:memory:/a:b/c", "memory/a:b/memory.limit_in_bytes"),
        (None, "memory.max"),
    ],
)  # fmt: skip
def test_memory_is_its_control_groups_wherever_the_bound_is(tmp_path, monkeypatch, own, file):
    monkeypatch.setattr("fieldmark.client.limits._CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("fieldmark.client.limits._OWN", tmp_path / "own")
    monkeypatch.setattr("fieldmark.client.limits._MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal:       64000000 kB\n")
    if own is not None:
        (tmp_path / "own").write_text(own + "\n")
    path = tmp_path / "cgroup" / file
    path.parent.mkdir(parents=True)
    path.write_text("4000000000\n")
    assert Limits().memory_bytes == 3_200_000_000
    # What version 2 and version 1 say where there is no bound.
    for unbounded in ("max\n", "9223372036854771712\n", ""):
        path.write_text(unbounded)
        assert Limits().memory_bytes == 64_000_000 * 1024 * 8 // 10
    # A group of others says nothing about us.
    (tmp_path / "cgroup" / "others").mkdir()
    (tmp_path / "cgroup" / "others" / "memory.max").write_text("1\n")
    assert Limits().memory_bytes == 64_000_000 * 1024 * 8 // 10


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory_gb", 1.5), ("memory_gb", float("inf")), ("rounds", 0), ("image_size", 2000),
     ("message_mb", 1.0), ("request_hours", 0.0), ("ledger_mb", float("nan"))],
)  # fmt: skip
def test_a_limit_beyond_its_range_is_named(tmp_path, name, value):
    site = make_site(tmp_path)
    path = site.home / "site.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{name} =")]
    at = lines.index("[limits]") + 1
    path.write_text("\n".join([*lines[:at], f"{name} = {value}", *lines[at:]]))
    with pytest.raises(ConfigurationError, match=f"limits.{name}"):
        Site.open(site.home)


def test_the_page_for_site_engineers_lists_every_limit_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "site-engineer.md").read_text()
    table = page.split("## What a run may take of this machine")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()
            if line.startswith("| `")]  # fmt: skip
    listed = {name.strip("`"): default for name, default in rows}
    assert set(listed) == set(Limits.model_fields)
    assert listed.pop("memory_gb").startswith(f"{SHARE_OF_MEMORY:.0%}".replace("%", " %"))
    assert {name: float(value) for name, value in listed.items()} == {
        name: float(field.default)
        for name, field in Limits.model_fields.items()
        if name != "memory_gb"
    }
