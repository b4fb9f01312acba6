"""A coordinator that asks a site's home directly, without a grid between them."""

from fgvc_core.data.fieldmarks.species import CLASS_NAMES
from fgvc_core.protocol.keys import new_key, read_public
from fgvc_core.protocol.messages import Reply, Request, new_nonce, seal, unseal
from fgvc_core.wire.arrays import pack_all
from fieldmark.client.job import Incoming, answer
from fieldmark.client.site import Site

COORDINATOR = new_key()


def request(recipe, kind, **changes):
    """The body of a request to site-1."""
    values = {"kind": kind, "run": "run-1", "round": 0 if kind == "roll_call" else 1,
              "site": "site-1", "nonce": new_nonce(), "recipe_digest": recipe.digest}  # fmt: skip
    if kind == "roll_call":
        values |= {"recipe": recipe.announced.to_toml(), "class_names": CLASS_NAMES, "site": ""}
    return Request(**{**values, **changes})


def ask(home, body, tensors=None):
    """What leaves a site's home in answer to a request with these tensors."""
    packed = pack_all(tensors or {})
    body = body.model_copy(update={"tensors": {n: t.digest() for n, t in packed.items()}})
    return answer(home, Incoming(seal(COORDINATOR, body), packed))


def reply_of(home, departure):
    """The signed body of an answer, its signature and tensors checked."""
    digests = {name: tensor.digest() for name, tensor in departure.tensors.items()}
    return unseal(Reply, departure.sealed, read_public(Site.open(home).public_key), digests)
