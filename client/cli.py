"""The site's commands: budget, approve, report, audit; those of client.deployment besides."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.deployment.cli import mount

if TYPE_CHECKING:
    from client.privacy.budget import Budget

site_app = typer.Typer(
    help="One site: what it allows, what has left it, and what it has cost.", no_args_is_help=True
)

mount(site_app)

Home = Annotated[Path, typer.Argument(help="The site's home, the folder with site.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
]


@site_app.command()
def budget(
    home: Home,
    plan: Annotated[
        Path | None, typer.Option(help="A recipe: what would its run cost here?")
    ] = None,
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """What is spent, what is left, and what a run would cost before anything is spent.

    Exit code 4 if the policy would refuse the planned run.

    Example: fieldmark site budget sites/site-1 --plan simulations/recipes/demo-dp.toml
    """
    from client.privacy.budget import read_budget
    from client.site import Site
    from fgvc_core.recipe import load_recipe

    recipe = None if plan is None else load_recipe(plan, set_ or [])
    found = read_budget(Site.open(home), recipe)
    if json_:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        _show_budget(found)
    if found.plan is not None and not found.plan["allowed"]:
        raise typer.Exit(4)


@site_app.command()
def approve(
    home: Home, run: Annotated[str, typer.Argument(help="The run's id, as site.log names it.")]
) -> None:
    """Say yes to a run, where the policy asks a person (approval = "each-run").

    Example: fieldmark site approve sites/site-1 4f0c2a
    """
    from client.privacy.approval import approve_run
    from client.site import Site

    typer.echo(approve_run(Site.open(home), run))


@site_app.command()
def report(
    home: Annotated[
        Path | None, typer.Argument(help="The site's home, the folder with site.toml.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page; by default privacy-report.html in the home.")
    ] = None,
    verify: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="FILE LEDGER", help="Check a report against a ledger instead."),
    ] = None,
    json_: Json = False,
) -> None:
    """A page that says what has left, what it cost and what that means, signed by the site.

    Example: fieldmark site report sites/site-1
    """
    from client.privacy.report import verify_report, write_report
    from fgvc_core.errors import ConfigurationError

    if verify is not None:
        found = verify_report(*verify)
        typer.echo(json.dumps(found, indent=1) if json_ else found["in_words"])
        return
    if home is None:
        raise ConfigurationError(
            "No site's home was named.",
            remedy="fieldmark site report DIR, or --verify FILE LEDGER.",
        )
    page = out or home / "privacy-report.html"
    made = write_report(home, page)
    typer.echo(json.dumps(made, indent=1) if json_ else f"report: {page}")


@site_app.command()
def audit(
    home: Home,
    recipe: Annotated[Path, typer.Argument(help="A recipe with [privacy] and [audit].")],
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Attack this site's own mechanism: a lower bound on epsilon beside the claimed one.

    Nothing leaves the site. Exit code 4 if the bound is above the claim.

    Example: fieldmark site audit sites/site-1 simulations/recipes/audit.toml
    """
    from client.auditing import audit_site
    from client.site import Site
    from fgvc_core.recipe import load_recipe

    found = audit_site(Site.open(home), load_recipe(recipe, set_ or []))
    if json_:
        typer.echo(json.dumps(found, indent=1))
    else:
        _show_audit(found)
    if not found["holds"]:
        raise typer.Exit(4)


def _show_budget(found: "Budget") -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"spent:  epsilon {found.spent:.4g} at delta {found.delta:g} "
        f"by {found.runs} runs ({found.how})"
    )
    if found.cap is None:
        console.print("cap:    none in the policy")
    else:
        console.print(f"cap:    epsilon {found.cap:g}; left: {found.left:.4g}")
    plan = found.plan
    if plan is None:
        return
    if plan["epsilon"] is None:
        console.print(f"plan:   {plan['why']}")
        return
    console.print(
        f"plan:   epsilon {plan['epsilon']:.4g} at delta {plan['delta']:g}, unit {plan['unit']}; "
        f"the total would be {plan['total_after']:.4g} ({plan['how_after']})"
    )
    if plan["more_runs"] is not None:
        console.print(f"allows: {plan['more_runs']} such runs")
    if not plan["allowed"]:
        console.print(f"refused: {plan['why']}")


def _show_audit(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for line in found["in_words"]:
        console.print(line)
