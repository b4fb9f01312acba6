"""Runs of masked sums in the test's own process."""

import json

from inline_executor import Here

from fieldmark.client.privacy.chain import read_chain
from fieldmark.simulations.engines import run_inprocess
from fieldmark.simulations.folders import lay_out, site_homes
from fieldmark.simulations.planning import Simulation


class Run:
    """A run in the test's own process, so that a site can be made to stay away."""

    def __init__(self, folder, setting):
        self.recipe, dealt = setting
        self.plan = Simulation(self.recipe, folder / "run")
        lay_out(self.plan, dealt)
        self.out, self.homes = self.plan.out, site_homes(self.plan, dealt)
        server = self.out / "coordinator" / "server.toml"
        text = server.read_text().replace("wait_for_sites_s = 120.0", "wait_for_sites_s = 0.05")
        server.write_text(text)

    def go(self):
        run_inprocess(self.out, self.homes, Here(), 1, quiet=True)
        return json.loads((self.out / "metrics.json").read_text())

    def entries(self, name):
        home = next(home for home in self.homes if home.name == name)
        return read_chain((home / "ledger.jsonl").read_bytes())[0]

    def counted(self, name):
        counted = ("reserved", "ready", "view")
        return [e.kind for e in self.entries(name) if e.kind in counted]
