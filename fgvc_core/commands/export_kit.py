"""``fieldmark export kit`` and ``read-reply``: have an outside site check a model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_core.commands.terminal import Checkpoint, Json, Weights
from fgvc_core.words import visible

if TYPE_CHECKING:
    from fgvc_core.protocol.keys import PrivateKey


def kit(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The kit.")],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The private key that signs it; by default the coordinator's in the run's folder.",
        ),
    ] = None,
    epsilon: Annotated[
        float,
        typer.Option(
            help="What the answer may cost where a site's policy wants privacy, 0 to 100."
        ),
    ] = 1.0,
    delta: Annotated[float, typer.Option(help="The delta of that cost, 0 to 0.01.")] = 1e-5,
    unit: Annotated[str, typer.Option(help="What it protects there: image or subject.")] = "image",
    weights: Weights = None,
    json_: Json = False,
) -> None:
    """Make one file by which an outside site checks a model without handing over a picture.

    The kit holds the trained tensors, the recipe and the class names, signed; no code. The
    outside site opens it with 'fieldmark site validate HOME KIT'; what comes back is a signed file
    of figures, read with 'fieldmark export read-reply KIT REPLY'.

    Example: fieldmark export kit runs/demo --out demo.kit
    """
    from pydantic import ValidationError

    from fgvc_core.errors import ConfigurationError
    from fgvc_core.export.kit import write_kit
    from fgvc_core.inference.calibration import read_calibration
    from fgvc_core.inference.internal import load_for_export
    from fgvc_core.protocol.keys import fingerprint, short_fingerprint
    from fgvc_core.protocol.messages import KitPrivacy

    try:
        privacy = KitPrivacy.model_validate({"epsilon": epsilon, "delta": delta, "unit": unit})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ConfigurationError(
            f"--{first['loc'][0]} cannot be: {first['msg']}.",
            remedy="For instance: --epsilon 1 --delta 1e-5 --unit subject",
        ) from None
    trained = load_for_export(checkpoint, weights)
    signer = _signer(trained.path, key)
    body = write_kit(trained, out, signer, privacy, read_calibration(trained.path))
    told = {
        "kit": str(out),
        "name": body.kit,
        "bytes": out.stat().st_size,
        "issuer": fingerprint(signer.public_key()),
    }
    if json_:
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(f"kit: {out} ({told['bytes']:,} bytes), {body.kit}")
    shown = short_fingerprint(signer.public_key())
    typer.echo(f"signed by {shown}: tell the outside site by another way than the file")


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


def _signer(checkpoint: Path, key: Path | None) -> "PrivateKey":
    from fgvc_core.errors import ConfigurationError
    from fgvc_core.protocol.keys import read_private

    if key is not None:
        return read_private(key)
    own = checkpoint.parent.parent / "coordinator" / "key"
    if not own.is_file():
        raise ConfigurationError(
            "No key was given to sign the kit with, and the checkpoint lies in no run's folder.",
            why="The outside site has to know whose model it checks.",
            remedy="Give --key FILE; make one with: ssh-keygen -t ecdsa -b 256",
        )
    return read_private(own)
