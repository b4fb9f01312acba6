"""What sites have released, from their own outboxes, and the head that these releases make."""

import json

from safetensors import safe_open

from fieldmark.client.privacy.chain import read_chain
from fieldmark.client.site import Site
from fieldmark.server.rounds.closed_form import HEAD, ClosedForm
from fieldmark.server.run_log.checkpoint import read_checkpoint
from fieldmark.server.strategies import SoundReply

SUMS = ("privacy.epsilon=4.0", "model.backbone=tf_efficientnet_lite0", "model.weights=package",
        "model.attention=none", "model.train=head", "model.head=subspace", "model.directions=16",
        "data.val_fraction=0.0", "federation.rounds=1")  # fmt: skip
"""What makes of the tests' smallest recipe one of noisy class sums."""


def released(home):
    """Phase -> what a site has stored to send: the bits that left it, and no others."""
    found = {}
    for path in (home / "outbox").glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                assert name not in found, "a phase was released twice"
                found[name] = file.get_tensor(name)
    return found


def paid(home):
    """Purposes for which a site's ledger has reserved, in order."""
    entries, rest = read_chain((home / "ledger.jsonl").read_bytes())
    assert rest == b""
    return [e.values["event"]["purpose"] for e in entries if e.kind == "reserved"]


def head_of(recipe, homes, model, centre_of=None):
    """The head that these sites' releases make, by the coordinator's own arithmetic.

    Args:
        recipe: The run's.
        homes: Of the sites whose releases count.
        model: The run's tensors; only their shapes and what is not the head count.
        centre_of: Homes whose centres count, where these are others.
    """
    counted = {"centre": centre_of or homes, "class-sums": homes}
    units = {
        home.name: Site.open(home).settings.data.units for home in {*homes, *(centre_of or ())}
    }

    def ask(stage, arrays, specs):
        for home in sorted(counted[stage.name], key=lambda home: home.name):
            yield SoundReply(home.name, units[home.name], {stage.name: released(home)[stage.name]})

    def leave_out(stage, refused):
        assert not refused, (stage, refused)

    classes = len(model["head.bias"])
    tensors, _ = ClosedForm(recipe, units, classes).run(model, ask, leave_out)
    return {name: tensors[name] for name in HEAD}


def last_model(run_dir):
    return read_checkpoint(run_dir / "checkpoints" / "last.safetensors")[0]


def events_of(run_dir, kind):
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]
