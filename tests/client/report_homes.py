"""Homes with real ledgers, made by the gate, and ledgers written by hand."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.events import take
from fgvc_core.privacy.planning import plan_for
from fgvc_core.protocol.keys import new_key, public_text
from fgvc_core.protocol.messages import Reply, Request, Scores, new_nonce
from fgvc_core.recipe import Recipe, parse_recipe
from fieldmark.client.job import echo
from fieldmark.client.privacy.gate import Gate
from fieldmark.client.privacy.outbox import Payload
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site, write_settings

TENSORS = {"w": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}

RECIPE = """
name = "steps"
[federation]
rounds = 2
[privacy]
epsilon = 4.0
method = "gradients"
sampling_rate = 1.0
steps = 2
"""


def recipe(*changes: str) -> Recipe:
    """Two rounds of two private steps each, changed."""
    return parse_recipe(RECIPE, changes)


def home(folder: Path, name: str = "site-1", units: int = 40, **policy) -> Site:
    """A fresh home."""
    return make_home(
        folder / name,
        name=name,
        coordinator=public_text(new_key().public_key()),
        cache=folder,
        units=units,
        policy=Policy(**policy),
    )


def with_policy(site: Site, **policy) -> Site:
    write_settings(site.home, site.settings.model_copy(update={"policy": Policy(**policy)}))
    return Site.open(site.home)


def ask(site: Site, run: str, of: Recipe, round_: int = 0, kind: str = "train", phase: str = ""):
    return Request(
        kind=kind if round_ else "roll_call",
        run=run,
        round=round_,
        site=site.name,
        nonce=new_nonce(),
        recipe_digest=of.digest,
        phase=phase,
    )


def roll_call(site: Site, run: str, of: Recipe) -> None:
    """Announce a run; a refusal is written down and sent, as the site would."""
    gate, request = Gate(site), ask(site, run, of)
    same = {**echo(site, request), "public_key": site.public_key}
    try:
        protected = gate.announce(request, of) is not None
    except PolicyRefusal as error:
        gate.refuse(request, Reply(**same, code="refused-policy", reason=error.what), error)
        return
    units = site.settings.data.units if protected else 0
    gate.release(request, Reply(**same, code="ok", examples=units), {})


def private_round(site: Site, run: str, of: Recipe, round_: int, fails: bool = False) -> None:
    """One charged reply; or its charge alone, as if the work had died."""
    gate, request = Gate(site), ask(site, run, of, round_)
    (step,) = plan_for(of.privacy, of.federation.rounds)

    def work() -> Payload:
        if fails:
            raise RuntimeError("killed")
        return Payload({**echo(site, request), "code": "ok", "examples": 40}, TENSORS)

    try:
        gate.protected_round(request, of, take(step, of.privacy.steps), work)
    except RuntimeError:
        assert fails


def private_run(site: Site, run: str, of: Recipe) -> None:
    roll_call(site, run, of)
    for round_ in range(1, of.federation.rounds + 1):
        private_round(site, run, of, round_)


def open_round(site: Site, run: str, round_: int) -> None:
    """A reply without differential privacy, from before a policy asked for it."""
    of = parse_recipe("")
    site = replace(site, settings=site.settings.model_copy(update={"policy": Policy()}))
    request = ask(site, run, of, round_)
    scores = Scores(examples=9, correct=3, loss_sum=2.0, macro_f1=0.25)
    reply = Reply(**echo(site, request), code="ok", examples=120, loss=1.5, scores=scores)
    Gate(site).release(request, reply, TENSORS)


def tear(site: Site, text: bytes = b'{"n": 3, "kind": "reser') -> None:
    """Leave a line as a crash leaves it."""
    with (site.home / "ledger.jsonl").open("ab") as file:
        file.write(text)


def entries_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_chain(path: Path, entries: list[dict]) -> Path:
    """Chain entries by hand (kind and values; n, prev and hash are filled in) and write them."""
    lines, before = [], "0" * 64
    for number, entry in enumerate(entries):
        time = entry.get("time", "2026-01-02T03:04:05+00:00")
        values = {k: v for k, v in entry.items() if k not in ("n", "time", "prev", "hash")}
        hashed = {"n": number, "time": time, **values, "prev": before}
        text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
        before = hashlib.sha256(text.encode()).hexdigest()
        lines.append(json.dumps({**hashed, "hash": before}))
    path.write_text("".join(line + "\n" for line in lines))
    path.with_suffix(".head").write_text(f"{len(lines) - 1} {before}\n")
    return path
