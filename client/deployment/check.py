"""Command ``site check``: tests everything that can keep a site from taking part, with remedies."""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from fgvc_core import __version__
from fgvc_core.errors import FieldmarkError, PolicyRefusal
from fgvc_core.files import widely_readable
from fgvc_core.findings import Checked, Finding, Level
from fgvc_core.protocol.code import code_digest
from fgvc_core.protocol.keys import short_fingerprint
from fgvc_core.proxies import socks
from fgvc_core.recipe import Recipe, parse_recipe
from fgvc_core.words import counted
from fieldmark.client.deployment.check_data import Rehearse, first_request, look_at_data
from fieldmark.client.deployment.contact import Contact, look
from fieldmark.client.deployment.home_modes import check_modes
from fieldmark.client.deployment.link import Link, read_link
from fieldmark.client.privacy.admission import Admission
from fieldmark.client.privacy.budget import Budget, read_budget
from fieldmark.client.privacy.data_claims import Register
from fieldmark.client.privacy.ledger import Ledger
from fieldmark.client.recipe_limits import check_lent, kept_in_words
from fieldmark.client.site import Site

DISK_GB, MEMORY_GB = 2.0, 1.0
DECIDING = {"data", "disk", "memory", "GPU", "ledger", "limits", "policy", "cost"}
"""Checks of this machine and the run: where one fails, the run's request is not rehearsed."""
SKEW_S = 60.0
"""Largest clock difference in seconds. The gateway accepts signatures up to 300 s old."""
CERTIFICATE_DAYS = 14
NOT_REACHED = "the coordinator was not reached"

_TLS_REMEDIES = {
    "407": "The proxy wants a name and a password: "
    "HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT, with special characters as %XX.",
    "Tunnel connection failed": "The proxy refuses this address: ask your network's administrator "
    "to let it through (CONNECT).",
    "through the proxy": "The proxy that HTTPS_PROXY names did not take the connection: see that "
    "it is up and its port right, or unset HTTPS_PROXY if none is needed.",
    "certificate expired": "Ask the coordinator to renew it (fieldmark server renew), unless it "
    "is this machine's date that is wrong.",
    "certificate is valid from": "Set this machine's date; if it is right, ask the coordinator to "
    "renew the certificate (fieldmark server renew).",
    "certificate is refused": "Ask the coordinator, by another way, whether this is its server; a "
    "firewall that opens TLS in between has to let this address pass.",
}


def check_site(
    home: Path,
    recipe: Recipe | None = None,
    tell: Callable[[int, int], None] | None = None,
    rehearse: Rehearse | None = None,
) -> Checked:
    """Run all checks.

    Every picture is opened, as a run does, also where no run is announced.

    Args:
        home: Home of the site.
        recipe: Checked in place of the announced one.
        tell: Called with (pictures opened, total).
        rehearse: Rehearses the run's first request
            (:func:`~fieldmark.client.deployment.dry_run.dry_run`); None leaves that out.

    Raises:
        ConfigurationError: if the home is incomplete; nothing can be checked then.
    """
    home = home.resolve()
    site, link = Site.open(home), read_link(home)
    contact = look(home, link, site.key, site.coordinator)
    if recipe is None and contact.announcement is not None:
        recipe = parse_recipe(contact.announcement.recipe, where="announced recipe")
    announced = () if contact.announcement is None else contact.announcement.class_names
    data, class_names = look_at_data(site, recipe, announced, tell)
    findings = [
        data,
        _disk(site),
        _modes(site),
        _memory(),
        _device(site),
        _clock(contact),
        _dns(link, contact),
        _proxy(link, contact),
        _tls(link, contact),
        _key(site, contact),
        _version(contact),
        _ledger(site, contact),
        _limits(site, recipe, contact),
        *_policy_and_cost(site, recipe, contact),
    ]
    wrong = [f.name for f in findings if f.level == "failed" and f.name in DECIDING]
    findings.append(first_request(site, recipe, class_names, wrong, rehearse))
    return Checked(tuple(findings))


def _disk(site: Site) -> Finding:
    remedy = "Free some; resources.cache in site.toml may lie on another disk than the home."
    least = float("inf")
    for path in (site.home, site.cache):
        there = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(there).free / 1e9
        if free < DISK_GB:
            said = f"{free:.1f} GB free for '{path}', {DISK_GB:g} needed"
            return Finding("disk", "failed", said, remedy, 2)
        least = min(least, free)
    return Finding("disk", "ok", f"{least:.0f} GB free")


def _modes(site: Site) -> Finding:
    """Whether other users of this machine can read or change files in the home."""
    try:
        check_modes(site.home)
    except FieldmarkError as error:
        return Finding("modes", "failed", error.what, error.remedy, error.exit_code)
    found = widely_readable(site.home)
    if found:
        many = counted(len(found), "file or folder", "files and folders")
        said = f"others on this machine can get at {many}, for instance '{found[0]}'"
        return Finding("modes", "note", said, f"Take them away: chmod -R go= {site.home}")
    return Finding("modes", "ok", "the home is its owner's alone")


def _memory() -> Finding:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(int(x.split()[1]) for x in text.splitlines() if "MemAvailable" in x) / 1e6
    except (OSError, StopIteration, ValueError):
        return Finding("memory", "note", "this system does not say how much is free")
    if available < MEMORY_GB:
        said = f"{available:.1f} GB free, {MEMORY_GB:g} needed"
        return Finding("memory", "failed", said, "End other programs, or use smaller pictures.", 2)
    return Finding("memory", "ok", f"{available:.1f} GB free")


def _device(site: Site) -> Finding:
    wanted = site.settings.resources.device
    if wanted == "cpu":
        return Finding("GPU", "ok", "not wanted (resources.device = cpu)")
    named = re.fullmatch(r"auto|cuda(?::(\d+))?", wanted)
    if named is None:
        said = f"resources.device = '{wanted}' is none of auto, cpu, cuda and cuda:N"
        return Finding("GPU", "failed", said, "Correct it in site.toml.", 2)
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(named[1] or 0)
    if number < there:
        return Finding("GPU", "ok", torch.cuda.get_device_name(number))
    if wanted == "auto":
        return Finding("GPU", "note", "none; the processor does the work (device = auto)")
    remedy = "Install the GPU's driver, or set resources.device = 'cpu' in site.toml."
    held = f"{there} are there" if there else "there is none"
    return Finding("GPU", "failed", f"resources.device = {wanted}, and {held}", remedy, 2)


def _clock(contact: Contact) -> Finding:
    if contact.skew_s is None:
        return _not_reached("clock")
    said = f"{abs(contact.skew_s):.0f} s {'ahead' if contact.skew_s > 0 else 'behind'}"
    if abs(contact.skew_s) > SKEW_S:
        remedy = "Set this machine's clock (NTP): signatures of another time are refused."
        return Finding("clock", "failed", f"{said} of the coordinator's", remedy, 5)
    return Finding("clock", "ok", f"{said} at most")


def _dns(link: Link, contact: Contact) -> Finding:
    if contact.dns:
        remedy = "Ask your network's administrator; the name comes from the start kit."
        if contact.proxy or contact.dns.startswith("the proxy"):
            remedy = (
                "HTTPS_PROXY names the proxy: http://HOST:PORT. Set it right or unset it, or ask "
                "your network's administrator."
            )
        return Finding("DNS", "failed", contact.dns, remedy, 5)
    return Finding("DNS", "ok", link.host)


def _proxy(link: Link, contact: Contact) -> Finding:
    unsupported = socks(os.environ)
    if unsupported:
        said = f"{unsupported[0]} names a SOCKS proxy, which is not supported and not used"
        return Finding("proxy", "note", said, "Name an HTTP proxy in HTTPS_PROXY if one is needed.")
    if contact.proxy:
        said = f"HTTPS_PROXY sends it through {contact.proxy}; our own loopback is left out"
        return Finding("proxy", "note", said)
    named = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    said = f"none for {link.host}: loopback, or NO_PROXY" if named else "none"
    return Finding("proxy", "ok", said)


def _tls(link: Link, contact: Contact) -> Finding:
    if contact.dns:
        return _not_reached("TLS")
    if contact.tls:
        remedy = next(
            (text for said, text in _TLS_REMEDIES.items() if said in contact.tls),
            f"Outbound TCP to {link.address} has to be open, and the coordinator up.",
        )
        return Finding("TLS", "failed", contact.tls, remedy, 5)
    assert contact.until is not None
    days = (contact.until - datetime.now(UTC)).days
    level: Level = "note" if days < CERTIFICATE_DAYS else "ok"
    return Finding("TLS", level, f"certificate until {contact.until:%Y-%m-%d} ({days} days)")


def _key(site: Site, contact: Contact) -> Finding:
    if contact.dns or contact.tls or contact.unjudged:
        return _not_reached("key", contact.unjudged or NOT_REACHED)
    if contact.key:
        remedy = f"Ask the coordinator whether '{site.name}' is registered, with this home's key."
        return Finding("key", "failed", contact.key, remedy, 5)
    own, theirs = short_fingerprint(site.key.public_key()), short_fingerprint(site.coordinator)
    said = f"registered as '{site.name}', key {own}; the coordinator's is {theirs}"
    return Finding("key", "ok", said)


def _version(contact: Contact) -> Finding:
    if not contact.version:
        return _not_reached("version")
    if contact.version != __version__:
        said = f"the coordinator has {contact.version}, this site {__version__}"
        return Finding("version", "failed", said, "Install the same at both ends.", 2)
    announced = "" if contact.announcement is None else contact.announcement.code
    if announced and announced != code_digest():
        said = (
            f"{__version__} at both ends, but the code is not the same (the coordinator's is "
            f"{announced[:12]}, this site's {code_digest()[:12]}): its runs refuse this site"
        )
        remedy = "Install the same at both ends, or have the coordinator name it in accept_code."
        return Finding("version", "failed", said, remedy, 2)
    return Finding("version", "ok", __version__)


def _ledger(site: Site, contact: Contact) -> Finding:
    """Whether this ledger is the newest one known to this machine and the coordinator."""
    ledger = Ledger(site.home, site.data_binding, site.name)
    try:
        length, _ = ledger.head()
        if Register().path.exists():
            # Resamples the data's content; no message may trigger that.
            Admission(site, ledger).claim_data(afresh=True)
        if contact.dns or contact.tls or contact.key or contact.unjudged:
            return _not_reached("ledger")
        seen = contact.seen
        if seen is None:
            said = f"{length} entries; the coordinator has seen none of them yet"
            return Finding("ledger", "ok", said)
        if not ledger.holds(seen.ledger_head):
            said = (
                f"the coordinator has seen {seen.ledger_length} entries, of which the last is not "
                f"in this ledger ({length} entries): it is an old copy"
            )
            remedy = (
                "Restore the newest copy of the home. If there is none, ask the coordinator for a "
                f"statement, then: fieldmark site ledger recover {site.home} STATEMENT"
            )
            return Finding("ledger", "failed", said, remedy, 4)
    except FieldmarkError as error:
        return Finding("ledger", "failed", error.what, error.remedy, error.exit_code)
    said = f"{length} entries; the coordinator has seen {seen.ledger_length} of them"
    return Finding("ledger", "ok", said)


def _limits(site: Site, recipe: Recipe | None, contact: Contact) -> Finding:
    """The site's limits, and whether the recipe stays within them."""
    limits = site.settings.limits
    if recipe is None:
        return Finding("limits", "ok", f"{limits.in_words()}; --recipe FILE compares a recipe")
    announced = contact.announcement
    classes = announced.class_names if announced is not None else recipe.data.classes or ()
    try:
        check_lent(site, recipe, classes)
    except PolicyRefusal as error:
        return Finding("limits", "failed", error.what, error.remedy, error.exit_code)
    kept = kept_in_words(site, recipe, classes)
    return Finding("limits", "ok", f"the run fits into them: {limits.in_words()}; {kept}")


def _waits(site: Site, recipe: Recipe, contact: Contact) -> str:
    """What a person here still has to do before the run, as the end of a sentence."""
    if site.settings.policy.approval == "none":
        return ""
    announced = contact.announcement
    if announced is not None and announced.recipe_digest == recipe.digest:
        ledger = Ledger(site.home, site.data_binding, site.name)
        if ledger.is_approved(announced.run, recipe.digest):
            return "; approved here"
    home = shlex.quote(str(site.home))
    return f"; a person here has to approve it: fieldmark site approve {home}"


def _policy_and_cost(site: Site, recipe: Recipe | None, contact: Contact) -> Iterator[Finding]:
    if recipe is None:
        yield Finding("policy", "note", "no run is announced; --recipe FILE checks one")
        yield Finding("cost", "note", "no run is announced")
        return
    try:
        budget: Budget = read_budget(site, recipe)
    except FieldmarkError as error:
        yield Finding("policy", "failed", error.what, error.remedy, error.exit_code)
        yield _not_reached("cost", "the policy refuses it before")
        return
    plan = budget.plan or {}
    if plan.get("epsilon") is None:
        if plan.get("allowed"):
            yield Finding("policy", "ok", str(plan["why"]) + _waits(site, recipe, contact))
            yield Finding("cost", "ok", "nothing is charged")
        else:
            yield Finding("policy", "failed", str(plan["why"]), "See [policy] in site.toml.", 4)
            yield _not_reached("cost", "the policy refuses it before")
        return
    said = f"epsilon {plan['epsilon']:.3g} for each {plan['unit']}"
    yield Finding("policy", "ok", said + _waits(site, recipe, contact))
    cap = site.settings.policy.cap_in_words
    said = f"the total would be {plan['total_after']:.3g} ({cap})"
    if not plan["allowed"]:
        remedy = "Ask for a smaller privacy.epsilon, or raise policy.epsilon_cap."
        yield Finding("cost", "failed", said, remedy, 4)
    else:
        yield Finding("cost", "ok", said)


def _not_reached(name: str, said: str = NOT_REACHED) -> Finding:
    return Finding(name, "not reached", said)
