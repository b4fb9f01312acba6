"""The first commands of a newcomer: new, recipes, explain-recipe."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.terminal import Json, Overrides, busy, fitted, progress
from fgvc_core.errors import ConfigurationError

if TYPE_CHECKING:
    from fgvc_core.recipe import Recipe
    from fieldmark.simulations.beginning.choosing import Choice
    from fieldmark.simulations.beginning.looking import Seen
    from fieldmark.simulations.beginning.trying import Trial


def new(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Where the recipe is written.", show_default=False),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Your pictures: a folder of classes, or of a CSV and pictures, or a "
            "published set.",
            show_default=False,
        ),
    ],
    sites: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Simulated sites. By default the table's own, or 5.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[
        float | None,
        typer.Option(
            metavar="EPSILON",
            help="With differential privacy at each site; nothing is then tried on the pictures.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Time for a run on this machine; more may be better.")
    ] = 20.0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="data.KEY=VALUE",
            help="How pictures are read, where that is told wrongly; repeatable.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Write a recipe that is right for your pictures, with a reason for every choice.

    Checks the pictures as 'data check' does, measures this machine, tries ways to learn on a sample
    of the training pictures where more than one may win, and writes DIR/recipe.toml.

    Example: fieldmark new mine --data birds --sites 5
    """  # fmt: skip
    _check_epsilon(private)
    from fieldmark.simulations.beginning.looking import look
    from fieldmark.simulations.beginning.reckoning import cost_of
    from fieldmark.simulations.beginning.writing import recipe_text, refuse_taken, write_recipe

    refuse_taken(folder)
    said = _said(set_ or [])
    root, said = _root(data, said)
    with progress("Checking pictures") as tell:
        seen = look(root, said, tell)
    name = _name(folder)
    choices, trials, run_minutes = _chosen(seen, name, private, sites, minutes)
    recipe = _read(choices)
    cost = cost_of(recipe, seen.table.num_classes)
    head = _head(seen, folder, recipe, private, run_minutes, cost.told_up())
    path, recipe = write_recipe(folder, recipe_text(choices, head))
    if json_:
        told = {"recipe": str(path), **_seen_as_json(seen), "minutes": round(run_minutes, 1)}
        told |= {"bytes_up": cost.up, "bytes_down": cost.down, "messages": cost.messages}
        told |= {"tried": [vars(one) for one in trials], "choices": [vars(one) for one in choices]}
        typer.echo(json.dumps(told, indent=1))
        return
    _show(path, head, choices, trials, seen.report.notes())


def _seen_as_json(seen: "Seen") -> dict[str, Any]:
    """What was seen of the pictures, as plain values."""
    report = seen.report
    return {
        "pictures": report.examples,
        "classes": seen.table.num_classes,
        "subjects": report.subjects if seen.has_subjects else None,
        "notes": report.notes(),
    }


def recipes(json_: Json = False) -> None:
    """List the shipped recipes: what each shows, what it needs, what it gives.

    Example: fieldmark recipes
    """
    from fieldmark.simulations.beginning.shelf import RECIPES, shipped

    found = shipped()
    if json_:
        typer.echo(json.dumps([one.as_json() for one in found], indent=1))
        return
    from fgvc_core.console import PlainConsole

    console = PlainConsole()
    for one in found:
        console.print(f"{one.name}.toml", style="bold", soft_wrap=True)
        for said in (
            one.shows,
            f"needs: {', '.join(one.needs) or 'nothing'}",
            f"gives: {one.gives}",
        ):
            console.print(fitted(said, "  "), highlight=False, soft_wrap=True)
    console.print(f"\nThey are in {RECIPES}", soft_wrap=True)
    console.print("In words: fieldmark explain-recipe FILE", soft_wrap=True)


def explain_recipe(
    recipe: Annotated[Path, typer.Argument(metavar="FILE", help="A recipe.", show_default=False)],
    classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="How many classes your pictures have, where the recipe does not say.",
            show_default=False,
        ),
    ] = None,
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Say in words what a recipe does: who learns what, what leaves a site, what it costs.

    Nothing is run, and no picture is opened.

    Example: fieldmark explain-recipe simulations/recipes/demo.toml
    """
    from fgvc_core.recipe import load_recipe
    from fgvc_core.words import visible_lines
    from fieldmark.simulations.beginning.telling import as_text, told

    parts = told(load_recipe(recipe, set_ or ()), classes)
    if json_:
        typer.echo(json.dumps(dict(parts), indent=1))
        return
    typer.echo(visible_lines(as_text(recipe, parts)))


def _check_epsilon(private: float | None) -> None:
    """Refuse a value of ``--private`` that is no useful epsilon."""
    if private is not None and not 0 < private <= 100:
        raise ConfigurationError(
            f"--private {private:g} is no epsilon above 0 and up to 100.",
            why="It is what a run may cost each site: 1 protects well, 8 is common, 100 hardly.",
            remedy="For instance --private 4",
        )


def _said(overrides: list[str]) -> dict[str, Any]:
    """Settings of ``[data]`` from ``--set``."""
    from fgvc_core.recipe import parse_recipe

    strange = next((each for each in overrides if not each.strip().startswith("data.")), None)
    if strange is not None:
        raise ConfigurationError(
            f"--set '{strange}' is no setting of [data].",
            why="All else is chosen here; the recipe is yours to edit afterwards.",
            remedy="For instance --set data.label_column=species",
        )
    data = parse_recipe("", overrides, "fieldmark new").data
    return data.model_dump(mode="json", include=data.model_fields_set, exclude={"path"})


def _root(data: Path, said: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder of the pictures; a CSV stands for the folder that it is in."""
    if data.is_file() and data.suffix.casefold() in (".csv", ".tsv"):
        return data.parent, {"name": "manifest", "manifest": data.name, **said}
    return data, said


def _name(folder: Path) -> str:
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:64]
    return found or "mine"


def _chosen(
    seen: "Seen", name: str, private: float | None, sites: int | None, minutes: float
) -> "tuple[list[Choice], list[Trial], float]":
    """The choices, what was tried, and the minutes that the run will take."""
    from fieldmark.simulations.beginning.choosing import (
        Rung,
        at_once,
        choose,
        looking_minutes,
        looks_of,
        metric_of,
        rung_for,
        scratch_size,
        scratch_wins,
        worth_trying,
    )
    from fieldmark.simulations.beginning.choosing_private import DEARER, choose_private
    from fieldmark.simulations.beginning.trying import look_seconds, sample, try_frozen, try_scratch

    with busy("Measuring this machine"):
        speed = look_seconds()
    trials: list[Trial] = []
    if private is not None:
        choices = choose_private(seen, name, private, sites, speed, minutes)
        size = next(choice.value for choice in choices if choice.key == "image_size")
        both = any(choice.key == "backbones" for choice in choices)
        run_minutes = looking_minutes(seen, Rung(size, 1, False), speed)
        return choices, trials, run_minutes * (DEARER if both else 1.0)
    rung, metric = rung_for(seen, speed, minutes), metric_of(seen)
    if worth_trying(seen):
        tried = sample(seen.train)
        if seen.weights:
            side = min(rung.size, 224)
            with progress(f"Trying a frozen backbone on {len(tried)} pictures") as tell:
                trials.append(try_frozen(tried, side, metric, tell))
            with progress(f"Trying an earlier map of it on {len(tried)} pictures") as tell:
                trials.append(try_frozen(tried, side, metric, tell, "earlier"))
        with progress(f"Trying a small network on {len(tried)} pictures") as tell:
            trials.append(try_scratch(tried, scratch_size(seen), tell))
    choices = choose(seen, name, rung, trials, sites, minutes)
    if not scratch_wins(seen, trials, metric):
        return choices, trials, looking_minutes(seen, looks_of(rung, trials, metric), speed)
    rounds = next(choice.value for choice in choices if choice.key == "rounds")
    each = next((trial.seconds_a_pass for trial in trials if trial.way == "scratch"), 0.0)
    return choices, trials, rounds * len(seen.train) * each / at_once(seen) / 60


def _read(choices: "list[Choice]") -> "Recipe":
    from fgvc_core.recipe import Recipe

    values: dict[str, Any] = {}
    for choice in choices:
        at = values.setdefault(choice.section, {}) if choice.section else values
        at[choice.key] = choice.value
    return Recipe.read(values, "fieldmark new")


def _head(
    seen: "Seen", folder: Path, recipe: "Recipe", private: float | None, minutes: float, up: str
) -> list[str]:
    """What the recipe is for, how to run it, and what that costs."""
    from fgvc_core.words import counted

    report = seen.report
    held = f"{report.splits['train']:,} to learn from and {report.splits['test']:,} for the test"
    subjects = f", of {counted(report.subjects, 'subject')}" if seen.has_subjects else ""
    took = f"about {max(round(minutes), 1)} min on this machine" if minutes else "some minutes"
    lines = [
        f"{report.examples:,} pictures of {counted(seen.table.num_classes, 'class', 'classes')}"
        f"{subjects}: {held}.",
        f"Run: fieldmark simulate {folder / 'recipe.toml'}",
        f"Takes {took}, most of it once, and {up} that each site sends.",
        f"In words: fieldmark explain-recipe {folder / 'recipe.toml'} "
        f"--classes {seen.table.num_classes}",
    ]
    if private is not None:
        lines += [
            "",
            "Nothing was tried on the pictures: a choice by how well something works on private "
            "pictures is a release that no ledger counts. Only the table was looked at, and your "
            "site's own counts may be private too: then say here what is publicly known of them.",
        ]
    return [*lines, "Written by 'fieldmark new'; every choice is yours to change."]


def _show(
    path: Path,
    head: list[str],
    choices: "list[Choice]",
    trials: "list[Trial]",
    notes: list[str],
) -> None:
    from fgvc_core.console import PlainConsole

    console = PlainConsole()
    console.print(head[0], soft_wrap=True)
    for sentence in notes:
        console.print(f"Note: {sentence}", style="yellow", soft_wrap=True)
    if trials:
        why = next(choice.why for choice in choices if choice.key == "backbone")
        console.print(why, soft_wrap=True)
    console.print(f"Written: {path} ({len(choices)} settings, each with its reason)", style="bold",
                  soft_wrap=True)  # fmt: skip
    for line in head[1:4]:
        console.print(line, soft_wrap=True)
