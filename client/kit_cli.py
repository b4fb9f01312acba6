"""Commands for external validation: create a home from a validation kit, and evaluate its model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_core.commands.terminal import Json, busy, print_result
from fgvc_core.words import visible
from fieldmark.client.reading_cli import Home, Said, reading_said, takes_reading

if TYPE_CHECKING:
    from fgvc_core.protocol.messages import ValidationReply

KitFile = Annotated[Path, typer.Argument(help="The validation kit.", metavar="KIT")]
Issuer = Annotated[
    str | None,
    typer.Option(
        metavar="FINGERPRINT",
        help="Of the key that made the kit, as its maker told you by another way than the file.",
    ),
]


@takes_reading
def new(
    home: Annotated[Path, typer.Argument(help="The home to make.", metavar="DIR")],
    kit: KitFile,
    name: Annotated[str, typer.Option(help="This site's name.")],
    path: Annotated[Path, typer.Option(help="Root folder of this site's pictures.")],
    issuer: Issuer = None,
    units: Annotated[
        int, typer.Option(help="About how many images or subjects you say publicly that you hold.")
    ] = 0,
    privacy: Annotated[
        str, typer.Option(help="required: only with differential privacy; optional: also without.")
    ] = "optional",
    unit: Annotated[
        str | None, typer.Option(help="What must be protected at least: image or subject.")
    ] = None,
    epsilon_cap: Annotated[
        str | None,
        typer.Option(
            help="Most epsilon that all answers together may cost one unit, or 'none' for no "
            "limit; --privacy required and --unit need it."
        ),
    ] = None,
    *,
    said: Said,
    json_: Json = False,
) -> None:
    """Make a home for a site outside any federation, so that it can check models.

    The home has this site's own key, its policy and its ledger; site.toml says all that may
    leave. The kit's maker is the only one whose kits it takes without --issuer.

    Example: fieldmark site new clinic model.kit --name clinic --path /data/skin --issuer "4f0c ..."
    """
    from fgvc_core.data.cache import cache_folder
    from fgvc_core.errors import DataError
    from fgvc_core.protocol.keys import short_fingerprint
    from fieldmark.client.privacy.policy import Policy, read_cap
    from fieldmark.client.proposing import recognize
    from fieldmark.client.provision import make_home
    from fieldmark.client.recognition import passed_over, understand

    maker = _maker(kit, issuer)
    values = {"privacy": privacy, "unit": unit, "epsilon_cap": read_cap(epsilon_cap)}
    policy = Policy.read({k: v for k, v in values.items() if v is not None}, "site new")
    if not path.is_dir():
        raise DataError(f"There is no folder '{path}'.", remedy="Give the root of the data set.")
    reading = recognize(path, reading_said(said))
    site = make_home(
        home,
        name=name,
        coordinator=maker,
        cache=cache_folder(),
        data_path=str(path),
        units=units,
        reading=reading,
        policy=policy,
    )
    for line in [*understand(site).lines(), *passed_over(path, reading)]:
        typer.echo(line, err=True)
    own = short_fingerprint(site.key.public_key())
    lines = (
        f"home: {home}; read {home / 'site.toml'} before the first kit",
        f"its key: {own}: tell the kit's maker",
    )
    print_result({"site": name, "home": str(home), "fingerprint": own}, lines, as_json=json_)


def _maker(kit: Path, issuer: str | None) -> str:
    """Public key of a kit's maker, compared with the fingerprint that a person got.

    Raises:
        PeerError: if it is another one, or none was given.
    """
    from fgvc_core.errors import PeerError
    from fgvc_core.export.kit import read_body
    from fgvc_core.protocol.keys import has_fingerprint, read_public, short_fingerprint

    body, _ = read_body(kit)
    key = read_public(body.issuer)
    if issuer is None or not has_fingerprint(key, issuer):
        raise PeerError(
            f"The kit was made by the key {short_fingerprint(key)}, and "
            + ("no --issuer was given." if issuer is None else f"--issuer says {issuer}."),
            why="This home would take whatever that key has signed.",
            remedy="Ask its maker for the fingerprint by another way than the file.",
        )
    return body.issuer


def validate(
    home: Home,
    kit: KitFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The signed answer.")],
    issuer: Issuer = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Another kind than site.toml says, for this once: folder, manifest, cub..."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="data.KEY=VALUE",
            help="Read them differently than site.toml says, for this once; repeatable.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of them: all, test or train.")] = "all",
    weights: Annotated[
        str | None, typer.Option(help="Weights of the model's frozen part on this machine.")
    ] = None,
    json_: Json = False,
) -> None:
    """Judge somebody's model on this site's pictures; figures alone go back, signed.

    What the answer holds is the policy's to say (site.toml). Where it asks for differential
    privacy the answer is two noisy counts, and they are charged in the ledger before they are
    computed: exit code 4 if the budget does not hold them. The same kit again gives the same
    answer and costs nothing. Running this is a person's yes where the policy wants one
    (approval = "each-run").

    Example: fieldmark site validate clinic model.kit --out clinic.reply
    """
    from fgvc_core.inference.judging import read_part
    from fieldmark.client.kit_validation import validate_kit
    from fieldmark.client.site import Site

    with busy("Scoring"):
        found = validate_kit(
            Site.open(home),
            kit,
            issuer=issuer,
            data=data,
            overrides=tuple(set_ or ()),
            part=read_part(split),
            weights=weights,
        )
    found.write(out)
    if json_:
        typer.echo(json.dumps(_leaving(found.reply), indent=1))
        return
    from fgvc_core.export.kit_reply import reply_in_words

    typer.echo("This leaves the site once you send it:")
    for line in reply_in_words(found.reply):
        typer.echo(f"  {visible(line)}")
    typer.echo(f"answer: {out}")


def _leaving(reply: "ValidationReply") -> dict[str, object]:
    return reply.model_dump(mode="json", exclude={"tensors", "reason", "loss", "scores"})


def mount(site_app: typer.Typer) -> None:
    """Add the commands to ``fieldmark site``."""
    for command in (new, validate):
        site_app.command()(command)
