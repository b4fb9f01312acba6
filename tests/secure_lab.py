"""Sites that are ready and the views over them, without homes: for tests of masked sums."""

from functools import cache

import numpy as np

from fgvc_core.protocol.keys import fingerprint, new_key, public_text
from fgvc_core.protocol.messages import CohortMember
from fgvc_core.secure.masks import new_secret, public_key
from fgvc_core.secure.ready import Ready, sign_ready
from fgvc_core.secure.rules import SumRules
from fgvc_core.secure.view import View, read_view

CTX = "c" * 64
RULES = SumRules(3, 100, 1)


@cache
def identity(name):
    """A site's key; the same for all tests of a process."""
    return new_key()


class ReadySite:
    """A site after the first trip."""

    def __init__(self, name, *, ctx=CTX, secret=None, **changes):
        self.name, self.secret, self.noise = name, secret or new_secret(), new_secret()
        values = {
            "run": "run", "round": 1, "phase": "", "kind": "release", "ctx": ctx, "site": name,
            "identity": public_text(identity(name).public_key()), "key": public_key(self.secret),
        }  # fmt: skip
        self.ready = Ready(**{**values, **changes})
        self.signed = sign_ready(identity(name), self.ready)

    @property
    def text(self):
        return self.signed.text


def names(count):
    return [f"site-{number:03d}" for number in range(count)]


def cohort_of(sites):
    return {site.name: fingerprint(identity(site.name).public_key()) for site in sites}


def members_of(sites):
    return tuple(CohortMember(name=n, fingerprint=f) for n, f in sorted(cohort_of(sites).items()))


def view_of(sites, own=None, rules=RULES, cohort=None):
    """What a site sees of a set of ready sites."""
    own = own or sites[0]
    return read_view([s.signed for s in sites], own.text, cohort or cohort_of(sites), rules)


def values_of(count, size, seed=0):
    return np.random.default_rng(seed).normal(scale=3.0, size=(count, size))


__all__ = ["CTX", "RULES", "ReadySite", "View", "cohort_of", "identity", "members_of", "names",
           "values_of", "view_of"]  # fmt: skip
