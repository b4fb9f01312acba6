"""``fieldmark site ledger``: the way back for a ledger that was lost with a disk."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_core.words import visible

if TYPE_CHECKING:
    from fieldmark.client.privacy.recovery import Recovery

ledger_app = typer.Typer(
    help="This site's ledger: what to do when its newest entries were lost.", no_args_is_help=True
)


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
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
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
        _show(found, home)


def _show(found: "Recovery", home: Path) -> None:
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


def mount(app: typer.Typer) -> None:
    """Add this group of commands to the site's."""
    app.add_typer(ledger_app, name="ledger")
