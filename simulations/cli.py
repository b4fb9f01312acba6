"""The researcher's commands: simulate, compare, bench."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.terminal import Json, Overrides, names_for_help, progress
from fgvc_core.words import counted, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fieldmark.simulations.planning import Simulation

RecipeFile = Annotated[
    Path, typer.Argument(help="A recipe, for instance simulations/recipes/demo.toml.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="The run's folder. By default runs/NAME, or runs/NAME-2... if taken."),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=WHERE]",
        help="Events also to a tracker, repeatable: "
        + names_for_help("fieldmark.trackers", "tensorboard", "mlflow", "wandb"),
    ),
]
EngineName = Annotated[str, typer.Option(help="inprocess, ray or superlink.")]


def simulate(
    recipe: RecipeFile,
    set_: Overrides = None,
    engine: EngineName = "inprocess",
    out: Out = None,
    sites: Annotated[
        Path | None,
        typer.Option(help="Keep the sites' homes here between runs; by default in the run."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    track: Track = None,
    json_: Json = False,
) -> None:
    """Simulate a federation on this machine.

    Example: fieldmark simulate simulations/recipes/demo.toml --set federation.rounds=5
    """
    plan = _plan(recipe, set_, out, engine, sites, resume, track)
    from fgvc_core.importing import importing

    with importing():
        from fieldmark.simulations.simulate import simulate as run

    with progress("preparing pictures", ends=True) as tell:
        metrics = run(plan, tell, _say)
    from fgvc_core.contributions import contribution_lines
    from fieldmark.server.report.refusals import refusal_lines, run_refusals

    refusals = run_refusals(plan.out)
    if json_:
        told = {**metrics, "refusals": refusals, "run_dir": str(plan.out)}
        typer.echo(json.dumps(told, indent=1))
        return
    _show(metrics)
    for line in contribution_lines(metrics):
        _console().print(visible(line), style="bold", markup=False, soft_wrap=True)
    for line in refusal_lines(refusals, metrics["sites"]):
        _console().print(visible(line), style="bold", soft_wrap=True)
    if "trials" in metrics:
        from fieldmark.simulations.tables import trial_table

        _console().print(trial_table(metrics))
    if "backdoors" in metrics:
        from fieldmark.simulations.tables import backdoor_tables

        for table in backdoor_tables(metrics):
            _console().print(table)
    typer.echo(f"report: {plan.out / 'report.html'}")


def compare(
    recipe: RecipeFile,
    set_: Overrides = None,
    out: Out = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=100, help="Repetitions, from the recipe's seed on; 3 show what chance does."
        ),
    ] = 1,
    json_: Json = False,
) -> None:
    """Federated, pooled, each site alone, and a plain regression, on the same test pictures.

    All have the recipe's start, passes and choices. A difference has a 95 % interval (bootstrap
    over test subjects); "no difference" where that holds zero. The plain logistic regression needs
    a frozen backbone (model.train = "head").

    Example: fieldmark compare simulations/recipes/demo.toml --seeds 3
    """
    plan = _plan(recipe, set_, out)
    from fgvc_core.importing import importing

    with importing():
        from fieldmark.simulations.compare import compare as run

    with (
        progress("preparing pictures", ends=True) as tell,
        progress("other models", ends=True, waits=True) as beside,
    ):
        result = run(plan, tell, seeds, _say, beside)
    if json_:
        typer.echo(json.dumps({**result, "run_dir": str(plan.out)}, indent=1))
        return
    from fieldmark.simulations.comparing.showing import show_comparison

    show_comparison(result, _console())
    typer.echo(f"report: {plan.out / 'report.html'}")


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="Which: engine, dp, deploy, rounds, secure, wire, learner, selection, unknown, "
            "heads, features, gpu, scale, or all."
        ),
    ] = "all",
    rows: Annotated[
        str,
        typer.Option(
            help="For learner: some rows of the ablation; for heads: some sets. Commas between."
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="For learner and heads: folder of runs done already; runs/bench-NAME."),
    ] = None,
    json_: Json = False,
) -> None:
    """Benchmarks: each figure as a ratio to a reference measured in the same run.

    Example: fieldmark bench learner --rows triplet,parts
    """
    from rich.console import Console

    from fieldmark.simulations.bench import run_benches, show

    console = Console(stderr=True)
    named = [row.strip() for row in rows.split(",") if row.strip()]
    results = run_benches(name, named, out, lambda line: console.print(line, style="dim"))
    if json_:
        typer.echo(json.dumps(results[0] if len(results) == 1 else results, indent=1))
    else:
        show(results)


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(line, style="dim")


def _console() -> "Console":
    from fgvc_core.console import PlainConsole

    return PlainConsole()


def _plan(
    path: Path,
    overrides: list[str] | None,
    out: Path | None,
    engine: str = "inprocess",
    sites: Path | None = None,
    resume: bool = False,
    track: list[str] | None = None,
) -> "Simulation":
    from fgvc_core.recipe import load_recipe
    from fieldmark.simulations.planning import planned

    recipe = load_recipe(path, overrides or ())
    return planned(recipe, out, engine, sites, resume, track or ())


def _show(metrics: dict[str, Any]) -> None:
    console = _console()
    console.print(_scores(metrics))
    if metrics.get("personal"):
        personal = metrics["personal"]
        console.print(
            f"Fine-tuned at {counted(personal['sites'], 'site')}: "
            f"{_percent(personal['top1'])} on their "
            f"{personal['examples']} validation pictures, {100 * personal['gain']:+.1f} points."
        )
    if metrics.get("own_heads"):
        from fieldmark.simulations.own_heads import own_heads_line

        console.print(own_heads_line(metrics["own_heads"]))
    if not metrics.get("privacy"):
        console.print("Sites' scores are on their own validation pictures.", style="dim")
        return
    from fgvc_core.privacy.claims import read_claim

    _show_privacy(metrics["privacy"], console)
    for site, why in read_claim(metrics).open.items():
        console.print(
            visible(f"Differential privacy does not hold for {site}: {why}."), markup=False
        )
    if metrics.get("unit_price"):
        console.print(metrics["unit_price"]["in_words"])


def _scores(metrics: dict[str, Any]) -> "Table":
    """Scores of each site, of all on the test split, and of a linear model on pixels."""
    from rich.table import Table

    from fgvc_core.contributions import absent, who_learnt

    table = Table(
        title=f"{metrics['name']}: {counted(metrics['rounds'], 'round')}, "
        f"best {metrics['best_round']}"
    )
    # Without a round, all that a site sends is beside them: statistics, scores.
    sent = "kB up a round" if metrics["rounds"] else "kB up"
    for column in ("site", "rounds", "examples", "top-1", "macro-F1", sent):
        table.add_column(column, justify="left" if column == "site" else "right")
    for site, figures in metrics["sites"].items():
        rounds = max(figures["rounds"] + len(metrics.get("pretraining", [])), 1)
        table.add_row(
            site,
            str(figures["rounds"]),
            str(figures.get("examples", "-")),
            _percent(figures["top1"]),
            _percent(figures["macro_f1"]),
            f"{figures['bytes_up'] / rounds / 1000:.0f}",
        )
    table.add_section()
    if "top1" in metrics:
        table.add_row(
            f"{who_learnt(metrics) if absent(metrics) else 'all'}, held-out test",
            "",
            str(metrics["test_examples"]),
            _percent(metrics["top1"]),
            _percent(metrics["macro_f1"]),
            "",
        )
    baseline = metrics.get("pixel_baseline")
    if baseline:
        table.add_row(
            "linear model on pixels",
            "",
            "",
            _percent(baseline["top1"]),
            _percent(baseline["macro_f1"]),
            "",
        )
    return table


def _show_privacy(statements: dict[str, Any], console: "Console") -> None:
    from rich.table import Table

    table = Table(title="What it cost, as each site states it")
    shared = any("epsilon_alone" in stated for stated in statements.values())
    columns = ["site", "unit", "epsilon, this run", "epsilon, in all", "delta"]
    columns += ["if all others collude"] if shared else []
    for column in columns:
        table.add_column(column, justify="left" if column in ("site", "unit") else "right")
    for site, stated in statements.items():
        table.add_row(
            site,
            stated["unit"],
            f"{stated['epsilon']:.3f}",
            f"{stated['epsilon_total']:.3f}",
            f"{stated['delta']:g}",
            *([_alone(stated)] if shared else []),
        )
    console.print(table)


def _alone(stated: dict[str, Any]) -> str:
    """What a site's noise alone promises of the run."""
    alone = stated.get("epsilon_alone")
    return "no promise" if alone is None else f"{alone:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
