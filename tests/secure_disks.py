"""What lies on the disks of a deployed masked sum: clear values, keys and seeds, to search for."""

from fgvc_core.secure.masks import noise_seed, pair_seed
from fgvc_core.secure.ready import Ready
from fieldmark.client.privacy.chain import read_chain
from fieldmark.client.privacy.outbox import Outbox

PIECE = 4
"""Numbers by which a clear value is recognized; none of them 0, which is everywhere."""


class Kept:
    """What a site's outbox holds of one sum between its two trips."""

    def __init__(self, path, fields, value):
        self.path, self.value = path, value.reshape(-1)
        self.ready = Ready.parse(fields["text"])
        self.secret, self.noise = bytes.fromhex(fields["secret"]), bytes.fromhex(fields["noise"])

    @property
    def words(self):
        """What must be nowhere once the part was sent; no seed yet, because no view is known."""
        pieces = [self.value[at : at + PIECE] for at in range(len(self.value) - PIECE + 1)]
        told = [piece.tobytes() for piece in pieces if piece.all()]
        chosen = told[0], told[len(told) // 2], told[-1]
        return {*chosen, *spelled(self.secret), *spelled(self.noise)}


def spelled(secret):
    """A secret as bytes, and as the text that JSON would hold."""
    return {secret, secret.hex().encode()}


def clear(homes, phase, round_=1):
    """Site -> what it keeps of a sum, of those that have worked and not sent yet."""
    found = {}
    for name, home in homes.items():
        for key, _ in Outbox(home).stored("sum-"):
            payload = Outbox(home).find(key)
            if payload is None or "secret" not in payload.fields:
                continue
            path = home / "outbox" / f"{key}.safetensors"
            kept = Kept(path, payload.fields, payload.tensors["value"])
            if (kept.ready.phase, kept.ready.round) == (phase, round_):
                found[name] = kept
    return found


def entries(home):
    found, rest = read_chain((home / "ledger.jsonl").read_bytes())
    assert rest == b""
    return found


def counted(home):
    return [e.kind for e in entries(home) if e.kind in ("reserved", "ready", "view")]


def seeds(kept, homes):
    """Every seed of masks and noise of one phase, in every view that any site has answered."""
    views = {
        bytes.fromhex(e.values["view"])
        for home in homes.values()
        for e in entries(home)
        if e.kind == "view"
    }
    found = set()
    for view in views:
        for own, one in kept.items():
            found |= spelled(noise_seed(one.noise, view))
            for other, its in kept.items():
                if other != own:
                    found |= spelled(pair_seed(one.secret, own, its.ready.key, other, view))
    return found


def where(words, lab):
    """Files of homes, coordinator, run and logs that hold any of some words."""
    found = set()
    for root in (lab.run_dir, lab.folder):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                if any(word in data for word in words):
                    found.add(path.resolve())
    return found
