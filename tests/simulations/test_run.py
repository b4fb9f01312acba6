import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fgvc_core.errors import ConfigurationError, FieldmarkError
from fgvc_core.recipe import parse_recipe
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.simulations.planning import Simulation, held, latest, planned, reserve
from fieldmark.simulations.simulate import simulate

KEYS = (
    *("top1", "macro_f1", "macro_precision", "macro_recall", "rounds", "best_round", "wall_s"),
    *("bytes_up", "bytes_down", "sites", "history", "pixel_baseline", "classes", "stopped"),
)
FILES = (
    *("recipe.toml", "events.jsonl", "report.html", "partition.json", "evaluation.json"),
    *("checkpoints/last.safetensors", "checkpoints/best.safetensors", "checkpoints/last.json"),
)


def changed(recipe, *overrides):
    return parse_recipe(recipe.to_toml(), overrides)


def without_times(metrics):
    kept = {k: v for k, v in metrics.items() if k != "wall_s"}
    kept["history"] = [{k: v for k, v in h.items() if k != "seconds"} for h in metrics["history"]]
    return kept


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    from tests_recipe import TINY

    out = tmp_path_factory.mktemp("runs") / "tiny"
    plan = Simulation(parse_recipe(TINY), out)
    return plan, simulate(plan)


def test_a_run_leaves_what_people_and_checks_rely_on(done):
    plan, metrics = done
    assert json.loads((plan.out / "metrics.json").read_text()) == metrics
    assert [k for k in KEYS if k not in metrics] == []
    assert [h["round"] for h in metrics["history"]] == [1, 2]
    assert all(h["top1"] is not None and h["seconds"] > 0 for h in metrics["history"])
    assert len({h["model"] for h in metrics["history"]}) == 2
    assert set(metrics["sites"]) == {"site-1", "site-2", "site-3"}
    assert all(s["examples"] > 0 and s["rounds"] == 2 for s in metrics["sites"].values())
    assert [name for name in FILES if not (plan.out / name).is_file()] == []


def test_the_folders_recipe_gives_the_run_again(done):
    plan, _ = done
    assert parse_recipe((plan.out / "recipe.toml").read_text()) == plan.recipe


def test_every_byte_that_came_up_is_in_a_sites_own_book(done):
    plan, metrics = done
    for site, figures in metrics["sites"].items():
        lines = (plan.out / "sites" / site / "ledger.jsonl").read_text().splitlines()
        book = [json.loads(line) for line in lines[1:]]
        assert [b["what"] for b in book] == ["roll_call", "train", "train", "score"]
        assert sum(b["bytes"] for b in book[1:]) == figures["bytes_up"]


def test_no_picture_is_in_what_the_coordinator_received(done):
    plan, metrics = done
    update = metrics["model"]["update_bytes"]
    replies = [json.loads(line) for line in (plan.out / "events.jsonl").read_text().splitlines()]
    replies = [e for e in replies if e["event"] == "reply" and e["kind"] == "train"]
    assert len(replies) == 6
    assert all(update < e["bytes_up"] < update + 25_000 for e in replies)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(done, tmp_path):
    plan, metrics = done
    again = simulate(replace(plan, out=tmp_path / "again"))
    assert without_times(again) == without_times(metrics)
    first, _ = read_checkpoint(plan.out / "checkpoints" / "last.safetensors")
    second, _ = read_checkpoint(tmp_path / "again" / "checkpoints" / "last.safetensors")
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    other = simulate(replace(plan, recipe=changed(plan.recipe, "seed=4"), out=tmp_path / "other"))
    assert without_times(other)["history"] != without_times(metrics)["history"]


def test_homes_kept_with_sites_stay_the_same_sites(tiny, tmp_path):
    recipe = changed(tiny, "federation.rounds=1", "partition.sites=2")
    homes = tmp_path / "homes"
    simulate(Simulation(recipe, tmp_path / "a", sites=homes))
    key = (homes / "site-1" / "key").read_bytes()
    simulate(Simulation(recipe, tmp_path / "b", sites=homes))
    assert (homes / "site-1" / "key").read_bytes() == key
    assert len((homes / "site-1" / "ledger.jsonl").read_text().splitlines()) == 7
    with pytest.raises(ConfigurationError, match="exists already"):
        simulate(Simulation(recipe, tmp_path / "b", sites=homes))


@pytest.mark.parametrize(
    "overrides",
    [
        ["federation.strategy=fedprox", "federation.proximal_mu=0.1", "federation.fraction=0.5"],
        ["partition.scheme=column", "partition.column=site", "model.train=head"],
    ],
    ids=["fedprox on half of the sites", "sites by column, frozen features"],
)
def test_other_recipes_run_too(tiny, tmp_path, overrides):
    metrics = simulate(
        Simulation(changed(tiny, "federation.rounds=1", *overrides), tmp_path / "run")
    )
    assert metrics["rounds"] == 1
    assert 0 <= metrics["top1"] <= 1
    if "model.train=head" in overrides:
        assert set(metrics["sites"]) == {"marsh", "dunes", "pinewood", "orchard", "harbour"}
        assert metrics["model"]["travelling_parameters"] < metrics["model"]["parameters"] / 10
    else:
        assert sum(s["rounds"] for s in metrics["sites"].values()) == 2


def test_patience_stops_a_run_that_no_longer_improves(tiny, tmp_path):
    # A learning rate of almost nothing: no model is ever better than the first.
    recipe = changed(tiny, "federation.rounds=9", "federation.patience=2", "train.lr=1e-12")
    metrics = simulate(Simulation(recipe, tmp_path / "run"))
    assert metrics["stopped"] == "patience"
    assert metrics["rounds"] < 9


def test_free_names_count_up_and_resume_finds_the_last_that_began(tmp_path):
    assert [reserve(tmp_path / "demo").name for _ in range(3)] == ["demo", "demo-2", "demo-3"]
    assert latest(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name / "recipe.toml").touch()
    # demo-3 was made for a run that had not begun when it was killed.
    assert latest(tmp_path / "demo") == tmp_path / "demo-2"


def test_many_at_once_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: reserve(tmp_path / "demo"), range(40)))
    assert sorted(made) == sorted(
        {tmp_path / n for n in ("demo", *(f"demo-{i}" for i in range(2, 41)))}
    )


def test_a_run_that_fails_before_it_begins_leaves_no_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = planned(changed(tiny, "data.name=folder", "data.path=nowhere"))
    assert plan.out.is_dir()
    with pytest.raises(FieldmarkError, match="nowhere"):
        simulate(plan)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_is_not_resumed_while_another_process_works_on_it(tiny, tmp_path):
    recipe = changed(tiny, "federation.rounds=1")
    simulate(Simulation(recipe, tmp_path / "run"))
    with held(tmp_path / "run", "run"), pytest.raises(ConfigurationError, match="Another process"):
        simulate(Simulation(recipe, tmp_path / "run", resume=True))
    assert simulate(Simulation(recipe, tmp_path / "run", resume=True))["rounds"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_ray_and_the_workers_here_give_equal_bits_after_every_round(tiny, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    found = []
    for engine in ("inprocess", "ray"):
        out = tmp_path / engine
        metrics = simulate(Simulation(changed(tiny, "federation.rounds=3"), out, engine=engine))
        tensors, _ = read_checkpoint(out / "checkpoints" / "last.safetensors")
        found.append((without_times(metrics)["history"], tensors))
    (history_a, a), (history_b, b) = found
    # The history holds the digest of the model after every round.
    assert history_a == history_b
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
