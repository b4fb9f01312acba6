"""Flower ClientApp of a site, the same in every engine.

Its handlers import heavy modules lazily, and no exception leaves them: Flower would send its text,
which may hold a patient's file name. Errors go to the site's own log; the reply carries a code.
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
    """Prints log records of sites whose home, and so log file, could not be opened."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print to the current ``sys.stderr``, which may have been replaced."""
        print(self.format(record), file=sys.stderr, flush=True)


_stray = _Stray()
_stray.setFormatter(OneRecord("%(message)s"))
logging.getLogger("fieldmark.site").addHandler(_stray)

UNSIGNED_BYTES = 64
"""Length of the placeholder for a signature, the same as a real signature's."""
HOMES_VARIABLE = "FIELDMARK_SITES"
"""Environment variable naming the folder of homes. In Flower's own simulation a node has only a
partition number, which indexes the sorted names there."""


@app.query("roll_call")
def roll_call(message: Message, context: Context) -> Message:
    """Answer the roll call, and store the announced recipe."""
    return _handle(message, context)


@app.query("release")
def release(message: Message, context: Context) -> Message:
    """Release noisy sums over this site's pictures."""
    return _handle(message, context)


@app.query("send")
def send(message: Message, context: Context) -> Message:
    """Send this site's part of a masked sum."""
    return _handle(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Score the received model and train it."""
    return _handle(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the received model."""
    return _handle(message, context)


def unavailable(message: Message, context: Context, limit: str) -> Message:
    """Reply for a message whose worker process hit a resource limit.

    Args:
        message: The message to answer.
        context: Its context.
        limit: The limit in words, for the site's own log.
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
        # Flower would send the exception's text.
        logging.getLogger("fieldmark.site").exception("a message was not answered")
        outgoing = None
    if outgoing is None:
        # Without a home there is no key to sign with.
        unsigned = ConfigRecord({"body": "", "signature": _no_signature()})
        return Message(RecordDict({"envelope": unsigned}), reply_to=message)
    content = to_content(outgoing.sealed, to_array_record(outgoing.tensors))
    return Message(content, reply_to=message)


def site_home(context: Context) -> Path:
    """Home of the site that this node is."""
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
    """Random bytes in place of a signature.

    The SuperLink identifies objects by their content. If two sites sent the same placeholder, the
    gateway would refuse the second as another site's object, and the coordinator would wait for
    that site until its deadline.
    """
    return secrets.token_bytes(UNSIGNED_BYTES)
