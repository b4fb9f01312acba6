"""Components from other distributions: found by name, loaded when named, and only examined ones."""

import sys
from typing import ClassVar, Literal

import pytest
from foreign import importable, write_distribution
from pydantic import Field

from fgvc_core.configuration import Settings, text
from fgvc_core.errors import ConfigurationError
from fgvc_core.registry import OpenSettings, Registry, Weighted

GOOD = """
from pydantic import Field
from fgvc_core.configuration import Settings
from test_kinds import GATES

class GoodSettings(Settings):
    width: int = Field(3, ge=1, description="Width.")

@GATES.register("good", settings=GoodSettings)
def good(settings):
    return settings.width
"""


@pytest.fixture
def gates(monkeypatch):
    module = type(sys)("test_kinds")
    module.GATES = Registry("gate", "fieldmark.test_gates", built_in={"plain": "no_such_module"})
    monkeypatch.setitem(sys.modules, "test_kinds", module)
    return module.GATES


@pytest.fixture
def installed(tmp_path, gates):
    write_distribution(
        tmp_path,
        "some-gates",
        {
            "good_gate": GOOD,
            "broken_gate": "raise RuntimeError('no such chip')",
            "leaving_gate": "raise SystemExit(3)",
            "silent_gate": "",
        },
        {
            "fieldmark.test_gates": {
                "good": "good_gate",
                "broken": "broken_gate",
                "leaving": "leaving_gate",
                "silent": "silent_gate",
            }
        },
    )
    with importable(tmp_path):
        yield gates


def test_names_are_listed_and_nothing_is_loaded(installed):
    assert installed.names() == ("plain", "broken", "good", "leaving", "silent")
    assert not {"good_gate", "broken_gate"} & set(sys.modules)


def test_a_component_is_loaded_when_it_is_named(installed):
    component = installed.get("good")
    assert component.make(component.settings()) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "some-gates 1.0 cannot be loaded: RuntimeError: no such chip"),
        ("leaving", "some-gates 1.0 cannot be loaded: SystemExit: 3"),
        ("silent", "some-gates 1.0 does not register itself"),
    ],
)
def test_a_broken_component_is_named_and_the_others_work(installed, name, said):
    with pytest.raises(ConfigurationError, match=said):
        installed.get(name)
    assert installed.get("good").name == "good"
    assert set(installed.failures()) == {"broken", "leaving", "silent"}


def test_an_unknown_name_is_told_the_nearest_and_all_that_are_installed(installed):
    with pytest.raises(ConfigurationError, match=r"mean 'good'\?.*plain, broken, good, leaving"):
        installed.get("godo")
    with pytest.raises(ValueError, match="no such gate is installed here"):
        installed.check("godo")
    assert installed.check("good") == "good"


def test_two_distributions_of_one_name_are_both_named(tmp_path, installed):
    other = tmp_path / "other"
    other.mkdir()
    points = {"fieldmark.test_gates": {"good": "other_gate", "plain": "other_gate"}}
    write_distribution(other, "other-gates", {"other_gate": ""}, points)
    with importable(other):
        with pytest.raises(ConfigurationError, match=r"other-gates 1.0, some-gates 1.0"):
            installed.get("good")
        assert "fieldmark, other-gates" in installed.failures()["plain"]


def test_a_name_is_registered_by_one_module(gates):
    gates.register("mine")(Settings)
    gates.register("mine")(Settings)
    with pytest.raises(ConfigurationError, match="There is a gate 'mine' already"):
        gates.register("mine")(Registry)
    with pytest.raises(ConfigurationError, match="There is a gate 'plain' already"):
        gates.register("plain")(Registry)
    with pytest.raises(ConfigurationError, match="no name for a gate"):
        gates.register("../mine")


class Nested(Settings):
    file: str = ""


class Inner(Settings):
    nested: Nested = Nested()


class Unsaid(Settings):
    file: str = ""


class Weights(Settings):
    file: str = Field("", json_schema_extra=text("weights"))


class Root(Settings):
    folder: str | None = Field(None, json_schema_extra=text("root"))


class Anything(Settings):
    value: object = None


class Thawed(Settings, frozen=False):
    value: int = 0


class Sound(Settings):
    kind: Literal["a", "b"] = "a"
    word: str | None = Field(None, json_schema_extra=text("word"))
    names: tuple[str, ...] = Field((), json_schema_extra=text("label"))
    shares: dict[str, float] = Field(default_factory=dict, json_schema_extra=text("label"))


@pytest.mark.parametrize("settings", [Inner, Unsaid, Weights, Root, Anything, Thawed])
def test_settings_that_a_site_could_not_examine_are_refused(gates, settings):
    with pytest.raises(ConfigurationError):
        gates.register("mine", settings=settings)


def test_settings_whose_texts_say_what_they_are_are_taken(gates):
    gates.register("mine", settings=Sound)(Registry)
    assert gates.get("mine").settings is Sound


def test_settings_of_a_loss_have_a_weight():
    losses = Registry("loss", "fieldmark.test_losses", base=Weighted)
    with pytest.raises(ConfigurationError, match="no frozen Weighted"):
        losses.register("mine", settings=Sound)


@pytest.fixture
def section(installed):
    installed.built_in["plain"] = __name__

    class Section(OpenSettings):
        gate: str = "plain"
        depth: int = Field(1, ge=1)

        chosen: ClassVar = {"gate": installed}

    class Whole(Settings):
        model: Section = Section()

    return Whole


def test_the_table_of_a_chosen_component_is_read_completed_and_written_back(section):
    plain = section.read({"model": {"depth": 2}})
    assert plain.model_dump() == {"model": {"gate": "plain", "depth": 2}}
    whole = section.read({"model": {"gate": "good"}})
    assert whole.model_dump(mode="json")["model"]["good"] == {"width": 3}
    assert section.read(whole.model_dump(mode="json")) == whole
    other = section.read({"model": {"gate": "good", "good": {"width": 5}}})
    assert other != whole
    assert other.model_copy().model_dump()["model"]["good"] == {"width": 5}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gate": "good", "good": {"widht": 5}}, r"nknown key 'model.good.widht'.*'width'"),
        ({"gate": "good", "good": {"width": 0}, "depth": 0}, r"model.depth.*model.good.width"),
        ({"gate": "plain", "good": {"width": 5}}, r"nknown key 'model.good'"),
        ({"gate": "good", "godo": {}}, r"nknown key 'model.godo'"),
        ({"gate": "good", "good": 3}, r"model.good"),
    ],
)
def test_wrong_tables_are_named_in_full(section, values, said):
    with pytest.raises(ConfigurationError, match=said):
        section.read({"model": values})
