"""Commands of a deployed site: key, join, reading, check, up, status, page, stop and new-key."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_core.commands.terminal import Json, Overrides, asking, print_result
from fieldmark.client.reading_cli import (
    Home,
    Said,
    reading,
    reading_said,
    settle_reading,
    takes_reading,
)

if TYPE_CHECKING:
    from fgvc_core.protocol.kit import StartKit
    from fieldmark.client.privacy.policy import Policy


def key(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; FILE.pub beside it.")],
    json_: Json = False,
) -> None:
    """Make this site's key and print the public half, which the coordinator registers.

    The private half stays here, readable by you alone.

    Example: fieldmark site key lyon.key
    """
    from fgvc_core.protocol.keys import read_public, short_fingerprint
    from fieldmark.client.deployment.joining import make_key

    text = make_key(file)
    own = short_fingerprint(read_public(text))
    typer.echo(f"The key's fingerprint: {own}", err=True)
    typer.echo(f"Send {file}.pub to the coordinator, or this line:", err=True)
    found = {"public_key": text, "fingerprint": own, "file": f"{file}.pub"}
    print_result(found, (text,), as_json=json_)


@takes_reading
def join(
    kit: Annotated[Path, typer.Argument(help="The start kit that the coordinator has sent.")],
    home: Annotated[Path, typer.Argument(help="The home to make.", metavar="DIR")],
    data: Annotated[Path | None, typer.Option(help="Root of the data set on this machine.")] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key", help="The private key that 'site key' has made.")
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(help="About how many images or subjects you say publicly that you hold."),
    ] = None,
    privacy: Annotated[
        str | None,
        typer.Option(help="required: only with differential privacy; optional: also without."),
    ] = None,
    epsilon_cap: Annotated[
        str | None,
        typer.Option(
            help="Most epsilon that all runs together may cost one unit, or 'none' for no limit; "
            "--privacy required needs it."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    *,
    said: Said,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe whose \\[data] proposes how to read the pictures.")
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(help="The coordinator's fingerprint, as it was read to you: 8 groups of 4."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing; what is not given has its default.")
    ] = False,
    json_: Json = False,
) -> None:
    """Make this site's home from a start kit; asks for what it needs.

    How the pictures are read is recognized, shown and confirmed: how many pictures of which
    classes, how many are left out and why. The answer is written to \\[data] of site.toml.

    Example: fieldmark site join lyon.kit lyon --key lyon.key --data /data/skin --yes
    """
    from fgvc_core.protocol.keys import short_fingerprint
    from fgvc_core.protocol.kit import read_kit
    from fieldmark.client.deployment.joining import Answers
    from fieldmark.client.deployment.joining import join as make

    found = read_kit(kit)
    _compare_keys(found, fingerprint, ask=not yes)
    if not yes:
        typer.echo(f"Site '{found.site}' of the coordinator at {found.address}.", err=True)
        if data is None:
            with asking("Give --data, or --yes to leave it out for now."):
                data = Path(typer.prompt("Root of your data set", err=True))
        if units is None:
            with asking("Give --units, or --yes to leave it out."):
                units = typer.prompt("Public number of images or subjects", type=int, err=True)
        privacy, epsilon_cap = _ask_privacy(privacy, epsilon_cap)
    policy = _policy(privacy or "optional", epsilon_cap)
    answers = Answers(data=data, units=units or 0, policy=policy, device=device)
    if data is not None:
        answers = settle_reading(found, answers, reading_said(said, recipe), ask=not yes)
    site = make(found, home, answers, key_file)
    own = short_fingerprint(site.key.public_key())
    lines = [
        f"this site's key: {own}",
        f"made {home} for site {site.name}; next: fieldmark site check {home}",
    ]
    if key_file is not None:
        lines.append(
            f"The key is in the home now; keep {key_file} as its only backup, or delete it."
        )
    print_result({"site": site.name, "home": str(home), "fingerprint": own}, lines, as_json=json_)


def _ask_privacy(privacy: str | None, epsilon_cap: str | None) -> tuple[str, str | None]:
    """Ask for policy settings that the command line does not give."""
    if privacy is None:
        with asking("Give --privacy required, or --privacy optional."):
            required = typer.confirm(
                "Take part only under differential privacy?", default=True, err=True
            )
        privacy = "required" if required else "optional"
    if privacy == "required" and epsilon_cap is None:
        with asking("Give --epsilon-cap 8.0, another number, or none."):
            epsilon_cap = typer.prompt(
                "Most epsilon that all runs together may cost one unit (or: none)",
                default="8.0",
                err=True,
            )
    return privacy, epsilon_cap


def _policy(privacy: str, epsilon_cap: str | None) -> "Policy":
    from fgvc_core.errors import ConfigurationError
    from fieldmark.client.privacy.policy import Policy, read_cap

    if privacy == "required" and epsilon_cap is None:
        raise ConfigurationError(
            "--privacy required needs --epsilon-cap.",
            why="Each run would be protected, and nothing would limit what all of them together "
            "tell about one unit.",
            remedy="Give the most that they may cost (--epsilon-cap 8.0), or --epsilon-cap none.",
        )
    return Policy.read({"privacy": privacy, "epsilon_cap": read_cap(epsilon_cap)}, "the policy")


def _compare_keys(kit: "StartKit", said: str | None, *, ask: bool) -> None:
    """Compare the coordinator's fingerprint with the one that a person got by telephone."""
    from fgvc_core.errors import PeerError
    from fgvc_core.protocol.keys import short_fingerprint
    from fieldmark.client.deployment.joining import check_coordinator

    if said is not None:
        check_coordinator(kit, said)
        return
    shown = short_fingerprint(kit.coordinator_key)
    if not ask:
        typer.echo(
            f"WARNING: the coordinator's key was not compared: {shown}. Compare it on the "
            "telephone, or join with --fingerprint.",
            err=True,
        )
        return
    typer.echo(f"The coordinator's key: {shown}", err=True)
    with asking("Call the coordinator, and give what they read to you: --fingerprint."):
        same = typer.confirm("Has the coordinator read the same to you?", default=False, err=True)
    if not same:
        raise PeerError(
            "The coordinator's key was not compared.",
            why="Whoever made this kit would get this site's replies.",
            remedy="Call the coordinator: 'fieldmark server status' shows its key. Then join.",
        )


def up(
    home: Home,
    detach: Annotated[bool, typer.Option("--detach", help="Return once connected.")] = False,
    json_: Json = False,
) -> None:
    """Keep this site up: its node, which talks to the coordinator, and its runner.

    Ends with Ctrl-C, SIGTERM or 'fieldmark site stop'.

    Example: fieldmark site up lyon
    """
    from fieldmark.client.deployment.supervisor import up as keep_up
    from fieldmark.client.deployment.supervisor import up_detached

    if detach:
        up_detached(home, lambda text: typer.echo(text, err=True))
    else:
        keep_up(home, lambda text: typer.echo(text, err=True))
    print_result({"home": str(home), "up": detach}, (), as_json=json_)


def new_key(
    home: Home,
    lost: Annotated[
        bool, typer.Option("--lost", help="The old key is lost or stolen: it vouches for nothing.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="The coordinator has the new key: use it.")
    ] = False,
    json_: Json = False,
) -> None:
    """Change this site's key; kit, ledger and data stay as they are.

    First without --finish: it makes the file to send. Then, on the coordinator's word, with it.

    Example: fieldmark site new-key lyon
    """
    from fgvc_core.protocol.keys import read_private, short_fingerprint, short_form
    from fieldmark.client.deployment.rotation import NEXT, prepare
    from fieldmark.client.deployment.rotation import finish as put_in_place

    if finish:
        own = short_form(put_in_place(home))
        found = {"fingerprint": own, "in_place": True, "send": None}
        print_result(found, (f"in place: the key {own}",), as_json=json_)
        return
    made = prepare(home, lost=lost)
    own = short_fingerprint(read_private(home / NEXT).public_key())
    then = f"send {made} to the coordinator; on its word: site new-key {home} --finish"
    found = {"fingerprint": own, "in_place": False, "send": str(made)}
    print_result(found, (f"the new key: {own}", then), as_json=json_)


def stop(home: Home, json_: Json = False) -> None:
    """End 'site up' in good order.

    Example: fieldmark site stop lyon
    """
    from fgvc_core.supervision import stop_holder
    from fieldmark.client.site import Site

    Site.open(home)
    stopped = bool(stop_holder(home.resolve()))
    told = "stopped" if stopped else "it was not up"
    print_result({"home": str(home), "stopped": stopped}, (told,), as_json=json_)


def check(
    home: Home,
    recipe: Annotated[
        Path | None, typer.Option(help="Check this recipe in place of the announced one.")
    ] = None,
    set_: Overrides = None,
    rehearsal: Annotated[
        bool,
        typer.Option(help="Do the work of the run's first request, which takes as long."),
    ] = True,
    json_: Json = False,
) -> None:
    """Go through everything that can keep this site from taking part, with the remedies.

    Every picture is opened, as a run does; one that is known to be sound is not opened again. Of a
    run, the first request is rehearsed within the site's limits. Nothing leaves, nothing is
    charged, and the ledger is not touched.

    Exit code 0 if it can take part, else that of the first thing that is wrong.

    Example: fieldmark site check lyon
    """
    import json

    from fgvc_core.commands.terminal import progress
    from fgvc_core.recipe import load_recipe
    from fieldmark.client.deployment.check import check_site
    from fieldmark.client.deployment.dry_run import dry_run

    asked = None if recipe is None else load_recipe(recipe, set_ or []).announced
    with progress("opening pictures; then the first request") as tell:
        found = check_site(home, asked, tell, dry_run if rehearsal else None)
    if json_:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        for line in found.lines():
            typer.echo(line)
    raise typer.Exit(found.exit_code)


def status(
    home: Home,
    json_: Json = False,
) -> None:
    """Whether this site is up, what has left it, what it has cost, and what waits for approval.

    Read from the home alone: nobody is asked, nothing is written.

    Example: fieldmark site status lyon
    """
    import json

    from fieldmark.client.deployment.status import read_site_status, show_site_status

    found = read_site_status(home)
    if json_:
        typer.echo(json.dumps(found, indent=1))
    else:
        show_site_status(found, home)


def page(
    home: Home,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page here, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --serve: its port; 0: any free one.")
    ] = 0,
    json_: Json = False,
) -> None:
    """Where this site's own page is, and the token for decisions on it.

    'site up' serves it on loopback if site.toml has a port in \\[page]; --serve does it without.

    Example: fieldmark site page lyon
    """
    import json
    import shlex

    from fgvc_core.errors import ConfigurationError
    from fieldmark.client.deployment.page_token import FILE, read_token
    from fieldmark.client.deployment.status import page_address
    from fieldmark.client.site import Site

    site, token = Site.open(home), home.resolve() / FILE
    told = f"decisions there need the token of this home: cat {shlex.quote(str(token))}"
    if serve:
        from fieldmark.client.deployment.page import serve as serve_page

        typer.echo(told, err=True)
        serve_page(home, port, lambda text: typer.echo(text, err=True))
        return
    address = page_address(home)
    if address is None:
        off = site.settings.page.port is None
        raise ConfigurationError(
            "This site has no page now"
            + (": page.port is not set in site.toml." if off else ": 'site up' does not run."),
            remedy=(
                "Write 'port = 0' below '[page]' in site.toml (a new section where there is none), "
                "and start 'site up' again; "
                if off
                else "Start 'site up'; "
            )
            + f"or: fieldmark site page {shlex.quote(str(home))} --serve",
        )
    read_token(home)
    if json_:
        typer.echo(json.dumps({"address": address, "token_file": str(token)}, indent=1))
        return
    typer.echo(address)
    typer.echo(told)


def mount(app: typer.Typer) -> None:
    """Add these commands to ``fieldmark site``."""
    for command in (key, join, reading, check, up, status, page, stop):
        app.command()(command)
    app.command("new-key")(new_key)
