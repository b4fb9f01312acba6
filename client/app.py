"""The Flower ClientApp of a site; the same in every engine.

Its handlers import nothing heavy until they are called, and no exception leaves
them: Flower would put its text, a patient's file name perhaps, into the reply. What
went wrong is written to the site's own log; the reply carries a code.
"""

import logging
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fgvc_core.flower.records import from_content, to_array_record, to_content
from fgvc_core.words import OneRecord
from fieldmark.client.job import Incoming, answer
from fieldmark.client.job import unavailable as answer_unavailable
from fieldmark.client.privacy.gate import Departure

app = ClientApp()


class _Stray(logging.Handler):
    """Prints words that belong to no site's own log: no home could be opened."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, whatever standard error is by now."""
        print(self.format(record), file=sys.stderr, flush=True)


_stray = _Stray()
_stray.setFormatter(OneRecord("%(message)s"))
logging.getLogger("fieldmark.site").addHandler(_stray)

UNSIGNED_BYTES = 64
"""Length of what stands in a signature's place where nothing was signed: a signature's own."""
HOMES_VARIABLE = "FIELDMARK_SITES"
"""In Flower's own simulation nodes carry only a partition's number: this names the
folder of homes, in which the number counts the names in order."""


@app.query("roll_call")
def roll_call(message: Message, context: Context) -> Message:
    """Say who we are, and remember what was announced."""
    return _handle(message, context)


@app.query("release")
def release(message: Message, context: Context) -> Message:
    """Release noisy sums about this site's pictures."""
    return _handle(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Score the received model, train it, answer both."""
    return _handle(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the received model."""
    return _handle(message, context)


def unavailable(message: Message, context: Context, limit: str) -> Message:
    """The answer in place of one whose process ran into a limit of the site's.

    Args:
        message: What was to be answered.
        context: Its context.
        limit: In words, for the site's own log.
    """
    return _handle(message, context, lambda home, held: answer_unavailable(home, held, limit))


def _handle(
    message: Message,
    context: Context,
    respond: Callable[[Path, Incoming], Departure | None] = answer,
) -> Message:
    try:
        outgoing = respond(site_home(context), Incoming(*from_content(message.content)))
    except Exception:
        # Flower would send the text of what went wrong.
        logging.getLogger("fieldmark.site").exception("a message was not answered")
        outgoing = None
    if outgoing is None:
        # Nothing can be signed.
        unsigned = ConfigRecord({"body": "", "signature": _no_signature()})
        return Message(RecordDict({"envelope": unsigned}), reply_to=message)
    content = to_content(outgoing.sealed, to_array_record(outgoing.tensors))
    return Message(content, reply_to=message)


def site_home(context: Context) -> Path:
    """The home of the site that this node is."""
    named = context.node_config.get("site-home")
    if named:
        return Path(str(named))
    root = Path(os.environ.get(HOMES_VARIABLE, "."))
    homes = sorted(path.parent for path in root.glob("*/site.toml"))
    number = int(context.node_config.get("partition-id", -1))
    if 0 <= number < len(homes):
        return homes[number]
    logging.getLogger("fieldmark.site").error("no site's home for node %s", context.node_id)
    return root


def _no_signature() -> bytes:
    """Random bytes in a signature's place, drawn from nothing but the system.

    The SuperLink knows an object by its content: two sites that send the same one look as if one
    had taken the other's, and the gateway refuses the second, for which the coordinator would
    wait until its deadline.
    """
    return secrets.token_bytes(UNSIGNED_BYTES)
