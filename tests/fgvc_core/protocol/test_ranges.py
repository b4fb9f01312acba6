"""Every number and text of a signed body has a bound, whichever field it is in."""

import json
import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fgvc_core.configuration import MAX_CHARACTERS
from fgvc_core.errors import ConfigurationError, PeerError
from fgvc_core.protocol.announcement import Announcement
from fgvc_core.protocol.messages import (
    Figures,
    KitBody,
    NoisyScores,
    PrivacyStatement,
    Reply,
    Request,
    Scores,
    ValidationReply,
    new_nonce,
)
from fgvc_core.recipe import parse_recipe

MODELS = [Reply, Request, Scores, NoisyScores, PrivacyStatement, KitBody, Figures, ValidationReply,
          Announcement]  # fmt: skip
HOSTILE = ["Infinity", "-Infinity", "NaN", "1.7e308", "-1.7e308", "1e999", "9" * 400, "9" * 4300]


def reply(**changes: Any) -> dict[str, Any]:
    values = {"kind": "train", "run": "r", "round": 1, "site": "s", "nonce": new_nonce(),
              "recipe_digest": "0" * 64, "code": "ok", "examples": 10, "loss": 1.5,
              "ledger_length": 3,
              "scores": {"examples": 5, "correct": 3, "loss_sum": 4.0, "macro_f1": 0.5},
              "noisy_scores": {"examples": "+1.000000000000000e+00",
                               "correct": "+1.000000000000000e+00"},
              "privacy": {"epsilon": 1.0, "how": "", "epsilon_total": 1.0, "how_total": "",
                          "delta": 1e-5, "delta_total": 1e-5, "unit": "image", "adjacency": "",
                          "events": [{"purpose": "step", "noise_multiplier": 1.5, "count": 1}],
                          "charged": []}}  # fmt: skip
    return {**values, **changes}


def numbers(values: Any, path: tuple[Any, ...] = ()):
    """Paths of all numbers in plain values."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from numbers(value, (*path, key))
        elif isinstance(value, int | float):
            yield (*path, key)


@pytest.mark.parametrize("path", list(numbers(reply())), ids=lambda p: ".".join(map(str, p)))
def test_no_number_of_a_reply_can_be_too_large_for_arithmetic(path):
    Reply.parse(json.dumps(reply()))
    for text in HOSTILE:
        values = reply()
        at = values
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = "HERE"
        with pytest.raises(PeerError, match="malformed"):
            Reply.parse(json.dumps(values).replace('"HERE"', text))


def bounded(field: dict[str, Any], definitions: dict[str, Any], where: str) -> list[str]:
    """Fields of a JSON schema that nothing bounds."""
    if "$ref" in field:
        field = definitions[field["$ref"].rsplit("/", 1)[1]]
    found = []
    for kind in ("anyOf", "oneOf", "allOf"):
        for option in field.get(kind, ()):
            found += bounded(option, definitions, where)
    kind = field.get("type")
    if kind in ("integer", "number"):
        low = field.get("minimum", field.get("exclusiveMinimum"))
        high = field.get("maximum", field.get("exclusiveMaximum"))
        if low is None or high is None or not math.isfinite(low) or not math.isfinite(high):
            found.append(where)
    elif kind == "string" and not {"maxLength", "enum", "const", "pattern"} & set(field):
        found.append(where)
    elif kind == "array":
        found += [] if "maxItems" in field else [where]
        found += bounded(field.get("items", {}), definitions, f"{where}[]")
    elif kind == "object":
        for name, inner in field.get("properties", {}).items():
            found += bounded(inner, definitions, f"{where}.{name}")
        more = field.get("additionalProperties")
        if isinstance(more, dict):
            found += [] if "maxProperties" in field else [where]
            found += bounded(more, definitions, f"{where}{{}}")
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_field_of_every_message_has_a_bound(model: type[BaseModel]):
    schema = model.model_json_schema()
    assert bounded(schema, schema.get("$defs", {}), model.__name__) == []


@pytest.mark.parametrize("key", ["deadline_s", "proximal_mu", "server_tau", "max_rms"])
def test_no_setting_of_a_recipe_is_infinite(key):
    with pytest.raises(ConfigurationError, match=key):
        parse_recipe(f"[federation]\n{key} = inf")


def test_a_recipe_in_a_message_has_a_length():
    with pytest.raises(ValidationError, match="recipe"):
        Request(kind="roll_call", run="r", round=0, site="", nonce=new_nonce(),
                recipe_digest="0" * 64, recipe="#" * (MAX_CHARACTERS + 1))  # fmt: skip
