"""``fieldmark export read-reply``: what an outside site found."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fgvc_core.commands.terminal import Json
from fgvc_core.words import visible


def read_reply(
    kit: Annotated[Path, typer.Argument(help="The kit that was sent.")],
    reply: Annotated[Path, typer.Argument(help="The file that came back.")],
    signer: Annotated[
        str | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="Of the site's key, as it was told to you by another way than the file.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Check an outside site's answer to a kit, and print what it says.

    Exit code 5 if its signature does not hold, is another key's than --signer, or it answers
    another kit.

    Example: fieldmark export read-reply model.kit clinic.reply --signer "9a31 ..."
    """
    from fgvc_core.export.kit_reply import read_kit_reply, reply_in_words
    from fgvc_core.protocol.keys import short_form

    found = read_kit_reply(kit, reply, signer)
    if json_:
        told = found.reply.model_dump(mode="json")
        typer.echo(
            json.dumps({"signer": found.signer, "expected": found.expected, **told}, indent=1)
        )
        return
    for line in reply_in_words(found.reply):
        typer.echo(visible(line))
    trust = "the expected key" if found.expected else "compare with what the site has told you"
    typer.echo(f"signed by {short_form(found.signer)} ({trust})")
