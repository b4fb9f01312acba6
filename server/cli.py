"""The coordinator's commands: a real federation, and the report of a finished run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fgvc_core.commands.terminal import Json, Overrides, names_for_help, print_result

server_app = typer.Typer(
    help="A real federation: a coordinator, its sites, and the runs they do together.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.", metavar="DIR")]
Name = Annotated[str, typer.Argument(help="The site's name.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="Name or address by which sites reach this machine; repeatable."),
]


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder, for instance runs/demo.")],
    json_: Json = False,
) -> None:
    """Write a run's self-contained HTML report again.

    Example: fieldmark report runs/demo
    """
    from fieldmark.server.report.page import render

    path = str(render(run_dir))
    print_result({"report": path}, (path,), as_json=json_)


@server_app.command()
def init(
    folder: Folder,
    host: Hosts = None,
    port: Annotated[int, typer.Option(help="Port that sites reach.")] = 8443,
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    name: Annotated[str, typer.Option(help="The federation's name.")] = "federation",
    data: Annotated[Path | None, typer.Option(help="Your own data set with a test split.")] = None,
    json_: Json = False,
) -> None:
    """Make a coordinator's folder: its keys, its certificate, its settings.

    Example: fieldmark server init federation --host fl.example.org
    """
    from fgvc_core.errors import ConfigurationError
    from fieldmark.server.deployment.provisioning import init_server
    from fieldmark.server.deployment.settings import DeploymentSettings

    if not host:
        raise ConfigurationError(
            "No --host is given.",
            why="The certificate has to name how sites reach this machine.",
            remedy="fieldmark server init DIR --host fl.example.org [--host 192.0.2.7]",
        )
    values = {
        "name": name,
        "hosts": tuple(host),
        "data_path": None if data is None else str(data.resolve()),
        "gateway": {"listen": listen, "port": port},
    }
    init_server(folder, DeploymentSettings.read(values, "server init"))
    own = _own_key(folder)
    told = f"made {folder}; next: fieldmark server add-site {folder} NAME --their-key FILE.pub"
    found = {"folder": str(folder), "fingerprint": own}
    print_result(found, (f"the coordinator's key: {own}", told), as_json=json_)


@server_app.command("add-site")
def add_site(
    folder: Folder,
    name: Name,
    their_key: Annotated[
        Path | None,
        typer.Option(help="The public half of the key that the site has made. Recommended."),
    ] = None,
    json_: Json = False,
) -> None:
    """Register a site and make its start kit, one file to send.

    Example: fieldmark server add-site federation lyon --their-key lyon.key.pub
    """
    from fgvc_core.protocol.keys import short_form
    from fieldmark.server.deployment.provisioning import add_site as add

    text = "" if their_key is None else _read(their_key)
    entry, kit = add(folder, name, text)
    if json_:
        typer.echo(json.dumps({"site": name, "fingerprint": entry.fingerprint, "kit": str(kit)}))
        return
    typer.echo(f"registered {name}; its key: {short_form(entry.fingerprint)}")
    typer.echo(f"the coordinator's key: {_own_key(folder)}")
    typer.echo("Compare both with the site on the telephone.")
    if their_key is None:
        typer.echo("The kit holds the site's private key: send it only where nobody else reads.")
    typer.echo(f"kit: {kit}")


@server_app.command("accept-units")
def accept_units(
    folder: Folder,
    name: Name,
    units: Annotated[int, typer.Argument(min=1, max=10_000_000, help="Its new public number.")],
    json_: Json = False,
) -> None:
    """Accept another public number of units from a site; runs take no other number from it.

    Example: fieldmark server accept-units federation lyon 1200
    """
    from fieldmark.server.deployment.allow_list import AllowList
    from fieldmark.server.deployment.settings import read_settings
    from fieldmark.server.ledger_memory import FOLDER, read_units, write_units

    read_settings(folder)
    AllowList(folder).known(name)
    before = read_units(folder / FOLDER, name)
    write_units(folder / FOLDER, name, units)
    told = f"{name} may declare {units:,} units" + (f"; before: {before:,}" if before else "")
    print_result({"site": name, "units": units, "before": before}, (told,), as_json=json_)


@server_app.command("remove-site")
def remove_site(folder: Folder, name: Name, json_: Json = False) -> None:
    """Revoke a site's key, at once and for good.

    Example: fieldmark server remove-site federation lyon
    """
    from fgvc_core.protocol.keys import short_form
    from fieldmark.server.deployment.provisioning import remove_site as remove

    entry = remove(folder, name)
    told = f"removed {name}; refused from now on: the key {short_form(entry.fingerprint)}"
    found = {"site": name, "removed": entry.fingerprint}
    print_result(found, (told, "Its start kit is deleted."), as_json=json_)


@server_app.command("rotate-key")
def rotate_key(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="new-key.json, as 'site new-key' has made it.")],
    json_: Json = False,
) -> None:
    """Take a site's new key, which its old one vouches for.

    Example: fieldmark server rotate-key federation new-key.json
    """
    from fgvc_core.protocol.keys import short_form
    from fieldmark.server.deployment.provisioning import rotate_key as rotate

    entry = rotate(folder, _read(file))
    told = f"{entry.name} has from now on the key {short_form(entry.fingerprint)}"
    found = {"site": entry.name, "fingerprint": entry.fingerprint}
    print_result(found, (told,), as_json=json_)


@server_app.command("replace-key")
def replace_key(
    folder: Folder,
    name: Name,
    their_key: Annotated[Path, typer.Option(help="The public half of the site's new key.")],
    json_: Json = False,
) -> None:
    """Give a site that has lost its key another, on your own word.

    Make sure by another way (a call, in person) that it is the site that asks.

    Example: fieldmark server replace-key federation lyon --their-key new-key.pub
    """
    from fgvc_core.protocol.keys import short_form
    from fieldmark.server.deployment.provisioning import replace_key as replace

    entry = replace(folder, name, _read(their_key))
    told = f"{name} has from now on the key {short_form(entry.fingerprint)}"
    then = "The old one is void. Compare the new one with the site on the telephone."
    found = {"site": name, "fingerprint": entry.fingerprint}
    print_result(found, (told, then), as_json=json_)


@server_app.command("ledger-statement")
def ledger_statement(
    folder: Folder,
    name: Name,
    out: Annotated[Path, typer.Option(help="The file to send; NAME.statement by default.")] = Path(
        ""
    ),
    json_: Json = False,
) -> None:
    """Write what was seen of a site's ledger, for a site that has lost its newest copy.

    The site charges what its restored ledger lacks with: fieldmark site ledger recover.

    Example: fieldmark server ledger-statement federation lyon --out lyon.statement
    """
    from fgvc_core.errors import ConfigurationError
    from fgvc_core.protocol.keys import read_private
    from fieldmark.server.deployment.allow_list import AllowList
    from fieldmark.server.deployment.settings import read_settings
    from fieldmark.server.ledger_memory import statement_of

    read_settings(folder)
    AllowList(folder).known(name)
    text = statement_of(folder, name, read_private(folder / "coordinator.key"))
    path = Path(f"{name}.statement") if out == Path("") else out
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"'{path}' cannot be written: {error.strerror}.") from None
    told = f"send {path} to {name}; there: fieldmark site ledger recover DIR {path.name}"
    print_result({"site": name, "statement": str(path)}, (told,), as_json=json_)


@server_app.command()
def renew(folder: Folder, host: Hosts = None, json_: Json = False) -> None:
    """Renew the server's certificate; kits and sites stay as they are.

    Example: fieldmark server renew federation
    """
    from fieldmark.server.deployment.certificates import check_dates
    from fieldmark.server.deployment.provisioning import renew as renew_certificate

    renew_certificate(folder, tuple(host or ()))
    days = check_dates(folder / "server.pem")
    told = f"the certificate is valid for {days} days"
    print_result({"folder": str(folder), "days": days}, (told,), as_json=json_)


@server_app.command()
def up(
    folder: Folder,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is up.")] = False,
    json_: Json = False,
) -> None:
    """Keep the coordinator up: the open port, Flower's SuperLink behind it, the runs.

    Ends with Ctrl-C, SIGTERM or 'fieldmark server stop'.

    Example: fieldmark server up federation
    """
    from fieldmark.server.deployment.processes import up as keep_up
    from fieldmark.server.deployment.processes import up_detached

    if detach:
        up_detached(folder, lambda text: typer.echo(text, err=True))
    else:
        keep_up(folder, lambda text: typer.echo(text, err=True))
    print_result({"folder": str(folder), "up": detach}, (), as_json=json_)


@server_app.command()
def stop(folder: Folder, json_: Json = False) -> None:
    """End 'server up' in good order; a run goes on when it is up again.

    Example: fieldmark server stop federation
    """
    from fgvc_core.supervision import stop_holder
    from fieldmark.server.deployment.settings import read_settings

    read_settings(folder)
    stopped = bool(stop_holder(folder.resolve()))
    told = "stopped" if stopped else "it was not up"
    print_result({"folder": str(folder), "stopped": stopped}, (told,), as_json=json_)


@server_app.command()
def run(
    folder: Folder,
    recipe: Annotated[Path, typer.Argument(help="A recipe.")],
    set_: Overrides = None,
    name: Annotated[str, typer.Option(help="Name of the run; by default the recipe's.")] = "",
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WHERE]",
            help="Also to a tracker, repeatable: "
            + names_for_help("fieldmark.trackers", "tensorboard", "mlflow", "wandb"),
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return.")] = False,
    json_: Json = False,
) -> None:
    """Run a recipe with the sites that are registered; Ctrl-C leaves it running.

    Example: fieldmark server run federation recipe.toml
    """
    from fieldmark.server.deployment.run_request import check_idle

    # Before the imports below, which take seconds.
    check_idle(folder.resolve())
    from fgvc_core.models.weight_names import kind_of
    from fgvc_core.recipe import load_recipe
    from fieldmark.server.deployment.launching import launch

    run_dir = launch(folder, load_recipe(recipe, set_ or []), name, _tracked(track))
    weights = load_recipe(run_dir / "recipe.toml").model.weights
    if kind_of(weights) == "digest":
        typer.echo(f"weights: {weights}; a site that lacks the file brings it with: "
                   "fieldmark site weights add FILE DIR", err=True)  # fmt: skip
    _follow(folder, run_dir, detach, json_)


@server_app.command()
def resume(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The run's name.")],
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return.")] = False,
    json_: Json = False,
) -> None:
    """Go on with a run that has ended, from its last checkpoint.

    Example: fieldmark server resume federation demo
    """
    from fieldmark.server.deployment.launching import resume as go_on

    _follow(folder, go_on(folder, name), detach, json_)


@server_app.command()
def attach(folder: Folder, json_: Json = False) -> None:
    """Watch the run that is on; Ctrl-C leaves it running.

    Example: fieldmark server attach federation
    """
    from fgvc_core.errors import ConfigurationError
    from fieldmark.server.deployment.run_request import active_run
    from fieldmark.server.deployment.settings import read_settings

    # In a folder that is no coordinator's no run is on, either, and that would be no answer.
    read_settings(folder)
    run_dir = active_run(folder.resolve())
    if run_dir is None:
        raise ConfigurationError(
            "No run is on.", remedy=f"fieldmark server run {folder} RECIPE starts one."
        )
    _follow(folder, run_dir, False, json_)


@server_app.command()
def cancel(folder: Folder, json_: Json = False) -> None:
    """End the run that is on; its last checkpoint is whole.

    Example: fieldmark server cancel federation
    """
    from fieldmark.server.deployment.launching import stop_run

    run_dir = stop_run(folder)
    name = None if run_dir is None else run_dir.name
    told = "no run is on" if name is None else f"stopping {name}"
    print_result({"run": name}, (told,), as_json=json_)


@server_app.command()
def status(folder: Folder, json_: Json = False) -> None:
    """Show what is up, which sites are online, and how far the run is.

    Example: fieldmark server status federation
    """
    from fieldmark.server.deployment.status import read_status, show_status

    found = read_status(folder)
    if json_:
        typer.echo(json.dumps(found, indent=1))
    else:
        show_status(found)


def _own_key(folder: Path) -> str:
    from fgvc_core.protocol.keys import short_fingerprint
    from fieldmark.server.deployment.provisioning import coordinator_key

    return short_fingerprint(coordinator_key(folder))


def _follow(folder: Path, run_dir: Path, detach: bool, json_: bool) -> None:
    from fieldmark.server.deployment.screen import watch

    if detach:
        typer.echo(json.dumps({"run_dir": str(run_dir)}) if json_ else f"started {run_dir}")
        return
    metrics = watch(folder, run_dir)
    if metrics is None:
        typer.echo(f"left running: fieldmark server attach {folder}", err=True)
    elif json_:
        typer.echo(json.dumps({**metrics, "run_dir": str(run_dir)}, indent=1))
    else:
        from fgvc_core.contributions import contribution_lines

        for line in contribution_lines(metrics):
            typer.echo(line)
        typer.echo(f"report: {run_dir / 'report.html'}")


def _tracked(texts: list[str] | None) -> tuple[str, ...] | None:
    from fieldmark.server.tracking.choices import check_installed, read_track, settled

    if texts is None:
        return None
    choices = read_track(texts)
    check_installed(choices)
    return settled(choices, Path.cwd())


def _read(path: Path) -> str:
    from fgvc_core.errors import ConfigurationError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"'{path}' cannot be read: {error}.") from None
