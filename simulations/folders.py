"""The folder of a simulated run and the homes of its sites: creation, checks, reuse."""

import json
import shutil
from pathlib import Path

from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.files import narrow, private_folder, write_privately
from fgvc_core.inference.validation_split import simulated_split_key
from fgvc_core.protocol.keys import fingerprint, new_key, public_text, write_private
from fgvc_core.recipe import Recipe, differences
from fgvc_core.run_paths import RECIPE, no_run
from fieldmark.client.privacy.ledger import FILE
from fieldmark.client.privacy.peers import Peers
from fieldmark.client.privacy.policy import Policy
from fieldmark.client.provision import make_home
from fieldmark.client.site import Site
from fieldmark.server.home import CoordinatorHome, ServerSettings, write_home
from fieldmark.simulations.engines import POLL_S, ROLL_CALL_S
from fieldmark.simulations.planning import Simulation
from fieldmark.simulations.preparation import Setting, write_data, write_partition


def check_out(plan: Simulation) -> None:
    """Refuse to overwrite a run, or to resume a missing one.

    Raises:
        ConfigurationError: in either case; nothing was changed.
    """
    if plan.resume and not (plan.out / RECIPE).is_file():
        raise no_run(plan.out, [RECIPE], "run to go on with")
    if not plan.resume and plan.out.exists() and not plan.reserved:
        raise ConfigurationError(
            f"The output folder '{plan.out}' exists already.",
            why="A run's folder is never overwritten.",
            remedy="Go on with that run (--resume), or name another folder (--out).",
        )


def check_same(plan: Simulation) -> None:
    """Refuse to resume with a different recipe.

    Raises:
        ConfigurationError: if the recipes differ, with the differences.
    """
    before = CoordinatorHome.open(plan.out).recipe
    differing = differences(before, plan.recipe)
    if not differing:
        return
    raise ConfigurationError(
        f"The run in '{plan.out}' has another recipe: {'; '.join(differing[:5])}.",
        why="Going on would mix two experiments.",
        remedy="Resume with the recipe it was started with, or start a new run (--out).",
    )


def lay_out(plan: Simulation, setting: Setting) -> None:
    """Create the run's folder, the coordinator's files and the sites' homes.

    Everything is removed again if any of it fails.

    Raises:
        ConfigurationError: if the folder cannot be created.
        DataError: if a home kept with ``--sites`` belongs to other data.
    """
    if plan.recipe.federation.sites:
        raise ConfigurationError(
            "federation.sites chooses among the registered sites of a deployed federation.",
            why="A simulation has the sites that [partition] makes.",
            remedy="Leave it out: --set federation.sites=[].",
        )
    homes = site_homes(plan, setting)
    kept = [home for home in homes if home.exists()]
    for home in kept:
        _check_kept(plan, home)
    try:
        plan.out.mkdir(parents=True, exist_ok=plan.reserved)
    except OSError as error:
        raise ConfigurationError(
            f"The output folder '{plan.out}' cannot be made: {error}.",
            remedy="Name a folder that you may write to (--out).",
        ) from None
    try:
        private_folder(plan.out / "coordinator")
        key = new_key()
        write_private(key, plan.out / "coordinator" / "key")
        coordinator, units = public_text(key.public_key()), declared_units(plan.recipe, setting)
        sites = {
            site: _home(plan, setting, site, coordinator, units[site]).public_key
            for site in setting.rows
        }
        pin_each_other(homes, plan.recipe)
        settings = ServerSettings(
            cache=str(setting.cache),
            data_path=plan.recipe.data.path,
            engine=plan.engine,
            roll_call_s=ROLL_CALL_S[plan.engine],
            poll_s=POLL_S[plan.engine],
            track=plan.track,
        )
        write_home(plan.out, plan.recipe, setting.table.class_names, sites, settings)
        private = plan.recipe.privacy is not None
        write_partition(setting, plan.out / "partition.json", private=private)
        write_data(setting, plan.out / "data.json", private=private)
    except BaseException:
        for made in (plan.out, *(home for home in homes if home not in kept)):
            shutil.rmtree(made, ignore_errors=True)
        raise


def rejoin(plan: Simulation, setting: Setting) -> None:
    """Assign the sites' homes to this run again: another run may have used them since.

    Raises:
        ConfigurationError: if one is missing.
    """
    coordinator = public_text(CoordinatorHome.open(plan.out).key.public_key())
    for home in site_homes(plan, setting):
        if not (home / "site.toml").is_file():
            raise ConfigurationError(
                f"The run in '{plan.out}' has no site's home at '{home}'.",
                remedy="Name the folder of homes that it was started with (--sites).",
            )
        _assign(home, setting, coordinator)


def site_homes(plan: Simulation, setting: Setting) -> list[Path]:
    """The sites' homes in order of names."""
    root = plan.sites or plan.out / "sites"
    return [root / site for site in sorted(setting.rows)]


def _home(plan: Simulation, setting: Setting, site: str, coordinator: str, units: int) -> Site:
    """A new home, or the one that ``--sites`` kept from an earlier run."""
    home = (plan.sites or plan.out / "sites") / site
    if home.exists():
        # The site keeps its key and ledger; only the coordinator of this run is new.
        _assign(home, setting, coordinator)
        return Site.open(home)
    make_home(
        home,
        name=site,
        coordinator=coordinator,
        cache=setting.cache,
        data_path=plan.recipe.data.path,
        split_key=simulated_split_key(plan.recipe, site),
        units=units,
        policy=simulated_policy(plan.recipe),
        simulated=True,
    )
    _assign(home, setting, coordinator)
    return Site.open(home)


def pin_each_other(homes: list[Path], recipe: Recipe) -> None:
    """Pin the keys of all simulated sites at each of them, as people would have compared them."""
    if recipe.secure is None:
        return
    sites = [Site.open(home) for home in homes]
    keys = {site.name: fingerprint(site.key.public_key()) for site in sites}
    for site in sites:
        Peers(site).pin_all(keys, "the simulation")


def _assign(home: Path, setting: Setting, coordinator: str) -> None:
    rows = setting.rows[home.name].tolist()
    write_privately(home / "coordinator.pub", coordinator + "\n")
    write_privately(home / "rows.json", json.dumps(rows))
    pool = setting.pool[home.name].tolist() if setting.pool else []
    write_privately(home / "pool.json", json.dumps(pool))


def _check_kept(plan: Simulation, home: Path) -> None:
    path = Site.open(home).settings.data.path
    if path != plan.recipe.data.path:
        raise DataError(
            f"The home '{home}' belongs to data at '{path}', "
            f"the recipe names '{plan.recipe.data.path}'.",
            why="A site's books belong to its data.",
            remedy="Name another folder with --sites, or the data it was made for.",
        )


def declared_units(recipe: Recipe, setting: Setting) -> dict[str, int]:
    """Site -> the number of units that a simulated site declares.

    Under class sums its own number, as people at a real site state it: the coordinator takes no
    sums that so many units could not come to. Elsewhere the sites' average, the same for all.
    """
    if recipe.privacy is None:
        return dict.fromkeys(setting.rows, 0)
    subjects = recipe.privacy.unit == "subject"
    tables = {site: setting.site_table(site) for site in setting.rows}
    own = {
        site: len(set(table.subjects)) if subjects else len(table) for site, table in tables.items()
    }
    if recipe.privacy.method == "class-sums":
        return {site: max(units, 1) for site, units in own.items()}
    if subjects:
        units = len({subject for table in tables.values() for subject in table.subjects})
    else:
        units = sum(own.values())
    return dict.fromkeys(own, max(round(units / len(own)), 1))


def simulated_policy(recipe: Recipe) -> Policy:
    """The policy of a new simulated site."""
    privacy = recipe.privacy
    if privacy is None:
        return Policy() if recipe.secure is None else Policy(secure="allowed")
    # Its user wrote the recipe, so the engine that it names is one that the site allows.
    allowed = Policy().engines
    named = {} if privacy.engine in ("auto", *allowed) else {"engines": (*allowed, privacy.engine)}
    return Policy(
        **named,
        privacy="required",
        unit=privacy.unit,
        delta=privacy.delta,
        epsilon_cap=privacy.simulated_cap or privacy.epsilon,
        **({} if recipe.secure is None else {"secure": "allowed", "epsilon_alone_cap": "none"}),
    )


def extract_ledgers(out: Path, homes: list[Path]) -> None:
    """Copy ledgers of homes kept elsewhere into the run's folder."""
    for home in homes:
        target = out / "sites" / home.name
        ledger = home / FILE
        if target.resolve() == home.resolve() or not ledger.is_file():
            continue
        private_folder(target)
        shutil.copyfile(ledger, target / FILE)
        narrow(target / FILE)
