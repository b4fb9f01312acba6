import json
import os
import stat
import sys
from pathlib import Path

import pytest
from tests_broken import HOW, break_mechanism

import fieldmark.cli
from fgvc_core.errors import DataError
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.recipe import load_recipe, parse_recipe
from fieldmark.client.auditing import FOLDER, audit_site
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings

AUDIT = Path(__file__).parents[2] / "simulations" / "recipes" / "audit.toml"

# A head on cached features: seconds instead of the whole network's minute.
QUICK = """
name = "quick"
seed = 3
[data]
image_size = 32
fieldmarks_train = 120
fieldmarks_test = 48
[model]
backbone = "fieldmark_nano"
train = "head"
[train]
optimizer = "sgd"
lr = 0.1
[federation]
rounds = 1
[privacy]
epsilon = 2.0
method = "gradients"
sampling_rate = 0.25
steps = 24
[audit]
canaries = 2000
seed = 5
"""


def made(folder, units=120, **policy):
    return make_home(
        folder,
        name="site-1",
        coordinator=public_text(new_key().public_key()),
        cache=Path(os.environ["FIELDMARK_CACHE"]),
        units=units,
        policy=Policy(**policy),
    )


@pytest.fixture
def site(tmp_path):
    return made(tmp_path / "home", privacy="required", epsilon_cap=2.0)


@pytest.fixture
def command(site, tmp_path, monkeypatch, capsys):
    """Run ``fieldmark site audit`` here, so that what is broken here is broken there."""

    def run(*options, recipe=None, home=None):
        path = tmp_path / "quick.toml"
        path.write_text(QUICK)
        words = ["site", "audit", str(home or site.home), str(recipe or path), *options]
        monkeypatch.setattr(sys, "argv", ["fieldmark", *words])
        with pytest.raises(SystemExit) as left:
            fieldmark.cli.main()
        told = capsys.readouterr()
        return left.value.code, told.out, told.err

    return run


def test_claim_and_bound_stand_side_by_side_and_a_sound_site_passes(command, tmp_path):
    (tmp_path / "larger.toml").write_text(QUICK.replace("train = 120", "train = 360"))
    home = made(tmp_path / "larger", 360, privacy="required", epsilon_cap=2.0).home
    code, out, _ = command("--json", recipe=tmp_path / "larger.toml", home=home)
    found = json.loads(out)
    assert code == 0
    assert found["holds"] is found["can_refute"] is found["internal"] is True
    assert found["claimed"]["epsilon"] == pytest.approx(2.0, rel=2e-3)
    assert found["canaries"]["epsilon"] <= found["lower_bound"] <= found["claimed"]["epsilon"]
    assert found["canaries"]["count"] >= 1000
    assert found["canaries"]["engine"] == "closed-form"
    assert found["confidence"] == 0.95
    assert found["pictures"]["members"] + found["pictures"]["others"] == 360
    # Chance alone spreads by 0.031 over so many pictures; over 120 of them it once gave 0.71.
    assert 0.3 < found["pictures"]["auc"] < 0.7
    words = "\n".join(found["in_words"])
    for said in ("claimed:", "proven:", "holds:", "internal:", "factor of two", "95 %"):
        assert said in words


@pytest.mark.parametrize("how", HOW)
def test_a_broken_mechanism_ends_in_exit_code_4(command, monkeypatch, how):
    break_mechanism(monkeypatch, how)
    code, out, _ = command()
    assert code == 4
    assert "BROKEN" in out
    assert "let nothing leave" in out


def test_nothing_is_charged_and_the_ledger_holds_no_figure_of_what_came_out(site):
    found = audit_site(site, parse_recipe(QUICK))
    ledger = Ledger(site.home, site.data_binding, site.name)
    assert ledger.total(1e-5) == (0.0, "nothing was released")
    founded, note = ledger.entries()
    assert (founded.kind, note.kind) == ("founded", "audited")
    assert set(note.values) == {
        "name", "recipe_digest", "claimed_epsilon", "claimed_delta", "canaries", "confidence",
    }  # fmt: skip
    assert note.values["claimed_epsilon"] == found["claimed"]["epsilon"]
    (kept,) = (site.home / FOLDER).iterdir()
    assert json.loads(kept.read_text()) == found
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert not (site.home / "outbox").exists()


def test_where_epsilon_is_large_it_says_that_nothing_could_have_been_refuted(command):
    code, out, _ = command("--set", "privacy.epsilon=8.0", "--set", "audit.canaries=100")
    assert code == 0
    assert "too few:" in out
    assert "epsilon 8 no practical number" in out


def test_without_a_claim_there_is_nothing_to_audit(tmp_path, command):
    home = made(tmp_path / "open").home
    recipe = tmp_path / "plain.toml"
    recipe.write_text(QUICK.partition("[privacy]")[0])
    code, _, err = command(recipe=recipe, home=home)
    assert code == 2
    assert "has no [privacy]" in err


def test_the_policys_own_protection_is_what_is_audited_where_the_recipe_has_none(tmp_path):
    own = {"epsilon": 1.0, "method": "gradients", "sampling_rate": 0.25, "steps": 24}
    site = made(tmp_path / "own", privacy="required", epsilon_cap="none", own=own)
    found = audit_site(site, parse_recipe(QUICK.partition("[privacy]")[0]))
    assert found["claimed"]["epsilon"] == pytest.approx(1.0, rel=2e-3)
    assert found["holds"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"unit": "subject"}, "policy.unit"), ({"delta": 1e-6}, "policy.delta")],
)
def test_a_run_that_the_policy_refuses_is_not_audited_either(tmp_path, command, changes, said):
    home = made(tmp_path / "strict", privacy="required", epsilon_cap="none", **changes).home
    code, _, err = command(home=home)
    assert code == 4
    assert said in err
    assert not (home / FOLDER).exists()


def test_no_home_is_wrong_usage(command, tmp_path):
    code, _, err = command(home=tmp_path / "nowhere")
    assert code == 2
    assert "site.toml" in err


@pytest.mark.parametrize(
    ("rows", "said"),
    [([0, 500], "row 500 of 168"), ([], "no picture"), ([180], "without a label")],
)
def test_a_simulated_sites_rows_must_be_of_the_recipes_data(site, rows, said):
    (site.home / "rows.json").write_text(json.dumps(rows))
    recipe = parse_recipe(QUICK, ["data.fieldmarks_pool=24"] if said.endswith("label") else [])
    with pytest.raises(DataError, match=said):
        audit_site(Site.open(site.home), recipe)


def test_a_simulated_site_attacks_its_own_rows_alone(site):
    (site.home / "rows.json").write_text(json.dumps(list(range(30, 70))))
    found = audit_site(Site.open(site.home), parse_recipe(QUICK, ["audit.canaries=100"]))
    assert found["pictures"]["members"] + found["pictures"]["others"] == 40
    assert not found["can_refute"] or found["holds"]


def test_the_validation_split_does_not_hide_pictures_from_the_attack(site):
    recipe = parse_recipe(QUICK, ["audit.canaries=100", "data.val_fraction=0.5"])
    found = audit_site(site, recipe)
    assert found["pictures"]["members"] + found["pictures"]["others"] == 120


def test_the_shipped_recipe_claims_little_enough_and_plants_enough_to_be_refutable():
    recipe = load_recipe(AUDIT)
    assert recipe.privacy.epsilon <= 2
    assert recipe.audit.canaries >= 1000
    assert recipe.audit.seed is not None


def small_site(tmp_path):
    """A home with 60 pictures of the shipped recipe's data: the rest takes its time."""
    site = made(tmp_path / "shipped")
    settings = site.settings.model_copy(
        update={"policy": Policy(privacy="required", epsilon_cap="none")}
    )
    write_settings(site.home, settings)
    (site.home / "rows.json").write_text(json.dumps(list(range(60))))
    return site.home


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", *HOW])
def test_the_shipped_recipe_finds_each_broken_mechanism(command, tmp_path, monkeypatch, how):
    if how != "none":
        break_mechanism(monkeypatch, how)
    code, out, _ = command("--json", recipe=AUDIT, home=small_site(tmp_path))
    found = json.loads(out)
    assert found["canaries"]["engine"] == "loop"
    assert code == (0 if how == "none" else 4)
    assert (found["canaries"]["epsilon"] > found["claimed"]["epsilon"]) == (how != "none")
