"""``fieldmark export``: the group; each of its commands is in a file of its own."""

import typer

from fgvc_core.commands.export_browser import browser
from fgvc_core.commands.export_folder import folder
from fgvc_core.commands.export_kit import kit
from fgvc_core.commands.export_onnx import onnx
from fgvc_core.commands.export_reply import read_reply

export_app = typer.Typer(
    help="Hand a model on: to an outside site that checks it, to a phone, to a hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
export_app.command()(kit)
export_app.command()(read_reply)
export_app.command()(onnx)
export_app.command()(browser)
export_app.command()(folder)
