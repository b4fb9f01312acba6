"""Commands of ``fieldmark site``: budget, peers, approve, decline, report, audit, weights, ledger.

The commands of :mod:`.deployment.cli` and :mod:`.kit_cli` are mounted here.
"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_core.commands.terminal import Json, Overrides, asking, print_result, progress
from fgvc_core.words import visible
from fieldmark.client.deployment.cli import mount
from fieldmark.client.kit_cli import mount as mount_validation
from fieldmark.client.reading_cli import Home

if TYPE_CHECKING:
    from fieldmark.client.privacy.approval import Pending
    from fieldmark.client.privacy.budget import Budget
    from fieldmark.client.privacy.peers import Peers
    from fieldmark.client.privacy.recovery import Recovery
    from fieldmark.client.site import Site

site_app = typer.Typer(
    help="One site: what it allows, what has left it, and what it has cost.", no_args_is_help=True
)

mount(site_app)
mount_validation(site_app)
weights_app = typer.Typer(
    help="The public weights files that this site starts from.", no_args_is_help=True
)
ledger_app = typer.Typer(
    help="This site's ledger: what to do when its newest entries were lost.", no_args_is_help=True
)
site_app.add_typer(ledger_app, name="ledger")
site_app.add_typer(weights_app, name="weights")


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
    from fgvc_core.recipe import load_recipe
    from fieldmark.client.privacy.budget import read_budget
    from fieldmark.client.site import Site

    recipe = None if plan is None else load_recipe(plan, set_ or []).announced
    found = read_budget(Site.open(home), recipe)
    if json_:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        _show_budget(found)
    if found.plan is not None and not found.plan["allowed"]:
        raise typer.Exit(4)


@site_app.command()
def peers(
    home: Home,
    accept: Annotated[
        str | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="All 64 digits, as they were read at another site: the keys are then pinned.",
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Who has compared them; your login by default.")] = "",
    forget: Annotated[str | None, typer.Option(metavar="NAME", help="Drop one name.")] = None,
    json_: Json = False,
) -> None:
    """The other sites of masked sums, and one fingerprint over all of them to compare by telephone.

    It is the same at every site that was told of the same sites and keys; read the names, too. Who
    accepts it vouches that these sites exist. Exit code 2 if it is another one.

    Example: fieldmark site peers sites/site-1
    """
    import getpass

    from fieldmark.client.privacy.peers import Peers
    from fieldmark.client.site import Site

    found = Peers(Site.open(home))
    if forget is not None:
        found.forget(forget)
    if accept is not None:
        found.accept(accept, by or getpass.getuser())
    if json_:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        _show_peers(found)


def _show_peers(found: "Peers") -> None:
    from fgvc_core.protocol.keys import short_form
    from fieldmark.client.privacy.peers import grouped

    pins = found.pins()
    if not pins:
        typer.echo("No other site is known here: none was named for a masked sum yet.")
        return
    for name, pin in pins.items():
        state = f"compared by {pin.by} on {pin.compared[:10]}" if pin.compared else "NOT compared"
        if pin.named is not None:
            state = f"NOW NAMED WITH ANOTHER KEY, {short_form(pin.named)}; this one {state}"
        typer.echo(visible(f"{name}  {short_form(pin.fingerprint)}  {state}"))
    typer.echo(f"all {len(pins) + 1} sites, this one included:")
    typer.echo(grouped(found.fingerprint(pins)))


@site_app.command()
def approve(
    home: Home,
    run: Annotated[
        str | None,
        typer.Argument(help="The run's id. Without it the last one that waits is shown and asked."),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(help="Only if the recipe's digest begins so (16 digits at least)."),
    ] = None,
    json_: Json = False,
) -> None:
    """Approve a run before it begins, where the policy asks a person (approval = "each-run").

    The coordinator asks again by itself: nothing needs to be restarted. Exit code 4 if the policy
    refuses such a run whoever approves it, or if the digest is another recipe's.

    Example: fieldmark site approve sites/site-1
    """
    from fieldmark.client.privacy.approval import approve_run
    from fieldmark.client.site import Site

    site = Site.open(home)
    shown = None
    if run is None:
        shown = _chosen(site, ask=digest is None)
        run = shown.run
    approved = approve_run(site, run, digest, shown)
    typer.echo(json.dumps(approved.as_json(), indent=1) if json_ else visible(approved.in_words))


@site_app.command()
def decline(
    home: Home,
    run: Annotated[str, typer.Argument(help="The run's id, as 'site status' shows it.")],
    digest: Annotated[
        str | None,
        typer.Option(help="Only if the recipe's digest begins so (16 digits at least)."),
    ] = None,
    json_: Json = False,
) -> None:
    """Decline a run, where the policy asks a person; a run that was approved ends here, too.

    From the next request on this site refuses the run, and says that a person has declined it.
    'site approve' takes it back.

    Example: fieldmark site decline sites/site-1 RUN
    """
    from fieldmark.client.privacy.approval import decline_run
    from fieldmark.client.site import Site

    recipe = decline_run(Site.open(home), run, digest)
    values = {"run": run, "recipe": recipe.name, "recipe_digest": recipe.digest}
    told = f"declined: run {run}, recipe '{recipe.name}'"
    typer.echo(json.dumps(values, indent=1) if json_ else visible(told))


def _chosen(site: "Site", *, ask: bool) -> "Pending":
    """The last announced run that waits here, shown; with ``ask`` a person is asked."""
    from fgvc_core.errors import ConfigurationError, PolicyRefusal
    from fieldmark.client.privacy.approval import pending_runs, waiting_runs

    pending = pending_runs(site)
    if not pending:
        raise ConfigurationError(
            "No run waits for approval here.",
            why="policy.approval = 'none' asks nobody."
            if site.settings.policy.approval == "none"
            else "Every run that was announced is decided, or was refused by the policy.",
            remedy="A run waits here once its coordinator has announced it (server run).",
        )
    for line in pending[0].in_words(site):
        typer.echo(visible(line), err=True)
    for other in pending[1:]:
        typer.echo(f"also waits: run {other.run} ({visible(other.recipe.name)})", err=True)
    more = len(waiting_runs(site)) - len(pending)
    if more > 0:
        typer.echo(f"and {more} earlier ones wait", err=True)
    if ask:
        home = shlex.quote(str(site.home))
        arguments = f"{home} {pending[0].run} --digest {pending[0].recipe.digest[:32]}"
        with asking(f"If that is what you want: fieldmark site approve {arguments}"):
            approved = typer.confirm("Approve this run?", default=False, err=True)
        if not approved:
            raise PolicyRefusal(f"Run '{pending[0].run}' is not approved.")
    return pending[0]


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
        typer.Option(
            metavar="FILE LEDGER", help="Check a report (page or JSON) against a ledger instead."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="With --verify: the site's public key, as you know it from elsewhere."),
    ] = None,
    json_: Json = False,
) -> None:
    """A page that says what has left, what it cost and what that means, signed by the site.

    With --verify: exit code 5 if the report is not what its ledger and its key say (it cannot
    be trusted), 3 if a file is damaged: no report, or a ledger whose chain is broken.

    Example: fieldmark site report sites/site-1

    Example: fieldmark site report --verify privacy-report.html ledger.jsonl
    """
    from fgvc_core.errors import ConfigurationError
    from fieldmark.client.privacy.report import verify_report, write_report

    if verify is not None:
        found = verify_report(*verify, key)
        typer.echo(json.dumps(found, indent=1) if json_ else found["in_words"])
        if not found["holds"]:
            raise typer.Exit(5)
        return
    if home is None:
        raise ConfigurationError(
            "No site's home was named.",
            remedy="fieldmark site report DIR, or --verify FILE LEDGER.",
        )
    page = out or home / "privacy-report.html"
    made = write_report(home, page)
    typer.echo(json.dumps(made, indent=1) if json_ else f"report: {page}")
    if not json_:
        typer.echo(made["statement"]["words"]["headline"])


@site_app.command()
def audit(
    home: Home,
    recipe: Annotated[Path, typer.Argument(help="A recipe with sections privacy and audit.")],
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Attack this site's own mechanism: a lower bound on epsilon beside the claimed one.

    Planted canaries go through the installed mechanism (Steinke et al. 2023, arXiv 2305.08846),
    and membership is inferred on the site's own pictures. It works where the claim is
    small: at epsilon 8 no practical number of canaries proves more than the claim, even with the
    noise off (at most 5.2 with 1,000 canaries, 6.5 with 10,000, at delta 1e-5). An error of a
    factor of two is not found this way.

    Nothing leaves the site and nothing is charged; the figures are internal to it: showing them
    to others would be a release. Exit code 4 if more is proven than claimed.

    Example: fieldmark site audit sites/site-1 simulations/recipes/audit.toml
    """
    from fgvc_core.recipe import load_recipe
    from fieldmark.client.auditing import audit_site
    from fieldmark.client.site import Site

    site, loaded = Site.open(home), load_recipe(recipe, set_ or []).announced
    with progress("attacking") as tell:
        found = audit_site(site, loaded, tell)
    if json_:
        typer.echo(json.dumps(found, indent=1))
    else:
        _show_audit(found)
    if not found["holds"]:
        raise typer.Exit(4)


def _show_budget(found: "Budget") -> None:
    from fgvc_core.console import PlainConsole

    # Policies and recipes contain names in brackets, which rich would read as styles.
    console = PlainConsole(highlight=False, soft_wrap=True)
    console.print(
        f"spent:  epsilon {found.spent:.4g} at delta {found.delta:g} "
        f"by {found.runs} run{'' if found.runs == 1 else 's'} ({found.how})"
    )
    if found.unprotected:
        console.print(
            "beside: replies that left without differential privacy, and that no epsilon bounds: "
            f"{found.unprotected}"
        )
    if found.left is None:
        chosen = " (policy.epsilon_cap = 'none'): no run is stopped for what it costs"
        console.print("cap:    none" + (chosen if found.uncapped else " in the policy"))
    else:
        console.print(f"cap:    epsilon {found.cap:g}; left: {found.left:.4g}")
    if found.alone is not None:
        cap = "none" if found.alone["cap"] is None else f"epsilon {found.alone['cap']:g}"
        console.print(
            f"alone:  epsilon {_promised(found.alone['spent'])} if all other sites work with the "
            f"coordinator; cap: {cap}"
        )
    plan = found.plan
    if plan is None:
        return
    if plan["epsilon"] is not None:
        console.print(
            f"plan:   epsilon {plan['epsilon']:.4g} at delta {plan['delta']:g}, "
            f"unit {plan['unit']}; "
            f"the total would be {plan['total_after']:.4g} ({plan['how_after']})"
        )
    elif plan["allowed"]:
        console.print(f"plan:   {plan['why']}")
    if "epsilon_alone" in plan:
        console.print(
            f"alone:  the plan is epsilon {_promised(plan['epsilon_alone'])} if all other sites "
            f"work with the coordinator; the total would be {_promised(plan['total_after_alone'])}"
        )
        if plan["epsilon_alone"] is not None:
            console.print(
                "trust:  a site that trusts no other gets that figure from noise of its own, and a "
                f"better model as a rule, with privacy.epsilon={plan['epsilon_alone']:.3g} and no "
                "[secure]"
            )
        if plan["unsettled"]:
            console.print(
                "most:   the recipe leaves secure.most open, so the largest sum is counted (100 "
                "sites); the coordinator announces the number of its sites"
            )
    if plan["more_runs"] is not None:
        console.print(f"allows: {plan['more_runs']} such runs")
    if not plan["allowed"]:
        console.print(f"refused: {plan['why']}")


def _promised(epsilon: float | None) -> str:
    """An epsilon of this site's noise alone, in words."""
    return "without any promise" if epsilon is None else f"{epsilon:.4g}"


def _show_audit(found: dict[str, Any]) -> None:
    from fgvc_core.console import PlainConsole

    console = PlainConsole(highlight=False, soft_wrap=True)
    for line in found["in_words"]:
        console.print(line)


@weights_app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A .safetensors or .pth file of plain tensors.")],
    home: Home,
    json_: Json = False,
) -> None:
    """Put a public weights file into this site's home, and print how a recipe names it.

    Compare what is printed with the recipe's model.weights. Exit code 4 if the file holds a
    model that was fitted to this site's own pictures; add only files that none of them went into.

    Example: fieldmark site weights add backbone.safetensors lyon
    """
    from fieldmark.client.site import Site
    from fieldmark.client.weights import add_to_site

    named = add_to_site(Site.open(home), file)
    typer.echo("Every run that names it starts from it: it has to be public.", err=True)
    print_result({"weights": named}, (named,), as_json=json_)


@weights_app.command("list")
def list_(home: Home, json_: Json = False) -> None:
    """List the weights files that this site has, as a recipe names them.

    Example: fieldmark site weights list lyon
    """
    from fgvc_core.models.weight_names import listed_weights
    from fieldmark.client.site import Site
    from fieldmark.client.weights import weights_folder

    there = list(listed_weights(weights_folder(Site.open(home))))
    found = [{"weights": named, "bytes": size} for named, size in there]
    lines = [f"{named}  {size / 1e6:.1f} MB" for named, size in there]
    print_result({"files": found}, lines, as_json=json_)


@ledger_app.command()
def recover(
    home: Annotated[Path, typer.Argument(help="The site's home, the folder with site.toml.")],
    statement: Annotated[
        Path,
        typer.Argument(help="The file that 'fieldmark server ledger-statement' has written."),
    ],
    old_key: Annotated[
        list[Path] | None,
        typer.Option(help="Public half of a key that this site had before; repeatable."),
    ] = None,
    answer: Annotated[
        list[Path] | None,
        typer.Option(help="An answer to a validation kit since the copy was made; repeatable."),
    ] = None,
    json_: Json = False,
) -> None:
    """Charge what a restored ledger lacks, as the dearest that it can have been, and go on.

    For a home that was restored from an older copy and is refused for it. The charges come from
    replies that this site has signed, never from the coordinator's word.

    Exit code 2 if nothing is missing, 4 if the statement leaves something out, 5 if it is not
    signed by the coordinator, or a reply in it not by this site.

    Example: fieldmark site ledger recover lyon lyon.statement
    """
    from fgvc_core.protocol.keys import read_public
    from fieldmark.client.privacy.recovery import recover_ledger

    found = recover_ledger(
        home.resolve(),
        _read(statement),
        [read_public(_read(path).strip()) for path in old_key or ()],
        [_read(path) for path in answer or ()],
    )
    if json_:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        _show_recovery(found, home)


def _show_recovery(found: "Recovery", home: Path) -> None:
    typer.echo(f"{found.missing} entries of the ledger were missing.")
    for run, events in found.charged.items():
        for event in events:
            typer.echo(f"charged: run {visible(run)}: {event.count} x {event.purpose}")
    typer.echo(
        f"spent:   epsilon {found.before:.4g} before, {found.after:.4g} now, at delta "
        f"{found.delta:g}"
    )
    typer.echo(f"Next: fieldmark site check {home}")


def _read(path: Path) -> str:
    from fgvc_core.errors import ConfigurationError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"'{path}' cannot be read: {error}.") from None
