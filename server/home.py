"""The coordinator's own files in a run's folder: recipe, class names, key, sites and settings.

::

    recipe.toml               the resolved recipe
    class_names.json          the classes, in label order
    coordinator/key           the private key that signs requests (mode 0600)
    coordinator/sites.json    the allow-list: site name -> public key
    coordinator/server.toml   location of the test split and the cache, device
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from pydantic import Field

from fgvc_core.configuration import Settings, read_toml
from fgvc_core.errors import ConfigurationError, DataError
from fgvc_core.files import write_privately
from fgvc_core.protocol.keys import PrivateKey, fingerprint, read_private, read_public
from fgvc_core.recipe import Recipe, load_recipe


class RollCallSettings(Settings):
    """Settings of a coordinator's folder that each of its runs takes over."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    roll_call_s: float = Field(
        60.0,
        gt=0.0,
        le=86_400.0,
        description="Seconds that a roll call waits for silent sites once a quorum has answered, "
        "0 to 86400. A site that answers later takes part from the next round on. Without a quorum "
        "it goes on, for 300 s or this time in all.",
    )
    accept_code: tuple[str, ...] = Field(
        (),
        description="Digests of other code at sites that is admitted to runs, 64 hex digits each "
        "(a refusal at the roll call has it). By default only code equal to this installation's.",
    )


class ServerSettings(RollCallSettings):
    """``server.toml`` of a run."""

    cache: str = Field(description="Folder for decoded pictures and features.")
    data_path: str | None = Field(None, description="Root of the data set with the test split.")
    weights: str | None = Field(
        None, description="Folder of the weights files that recipes name by their digest."
    )
    engine: str = Field("inprocess", description="What carries the messages; for the records.")
    test: bool = Field(
        True, description="Whether the coordinator has a test split of its own at data_path."
    )
    wait_for_sites_s: float = Field(
        120.0, gt=0.0, description="How long a run waits for sites that are away when it starts."
    )
    wait_for_approval_s: float = Field(
        0.0,
        ge=0.0,
        description="How long a run without a quorum waits for people at sites to approve it.",
    )
    poll_s: float = Field(
        0.2, gt=0.0, le=60.0, description="Seconds between two looks for a reply, 0 to 60."
    )
    track: tuple[str, ...] = Field(
        (),
        description="Where the run's events go besides its folder: tensorboard, mlflow, wandb, "
        "each alone or as NAME=WHERE.",
    )


def read_allow_list(run_dir: Path) -> dict[str, str]:
    """The current allow-list, sorted by name; a coordinator may change it during a run."""
    found = json.loads((run_dir / "coordinator" / "sites.json").read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class CoordinatorHome:
    """A run's folder, opened by its coordinator."""

    run_dir: Path
    recipe: Recipe
    class_names: tuple[str, ...]
    key: PrivateKey
    allow_list: dict[str, str]
    settings: ServerSettings

    @classmethod
    def open(cls, run_dir: Path) -> "CoordinatorHome":
        """Open a run's folder.

        Raises:
            ConfigurationError: if it is not a run's folder, or incomplete.
            DataError: if a file in it is damaged.
        """
        own = run_dir / "coordinator"
        if not (own / "server.toml").is_file():
            raise ConfigurationError(
                f"'{run_dir}' is not the folder of a run.",
                remedy="Name a folder that 'fieldmark simulate' has made.",
            )
        try:
            values = read_toml((own / "server.toml").read_text(encoding="utf-8"), "server.toml")
            settings = ServerSettings.read(values, "server.toml")
            allow_list = read_allow_list(run_dir)
            class_names = json.loads((run_dir / "class_names.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"The run's folder '{run_dir}' is damaged: {error}.",
                remedy="Start a new run under another name.",
            ) from None
        return cls(
            run_dir=run_dir,
            recipe=load_recipe(run_dir / "recipe.toml"),
            class_names=tuple(class_names),
            key=read_private(own / "key"),
            allow_list=allow_list,
            settings=settings,
        )


def write_home(
    run_dir: Path,
    recipe: Recipe,
    class_names: tuple[str, ...],
    sites: dict[str, str],
    settings: ServerSettings,
) -> None:
    """Write the coordinator's files beside a key that is there already.

    Args:
        run_dir: The run's folder; ``coordinator/key`` exists.
        recipe: The resolved recipe.
        class_names: K names in label order.
        sites: Site name -> public key; two sites must not share one.
        settings: The coordinator's own settings.

    Raises:
        ConfigurationError: if two sites share a key.
    """
    prints = {name: fingerprint(read_public(text)) for name, text in sites.items()}
    if len(set(prints.values())) != len(prints):
        raise ConfigurationError(
            "Two sites share one key.",
            why="A reply could not be told apart from the other's.",
            remedy="Make a key for each site.",
        )
    own = run_dir / "coordinator"
    values = {k: v for k, v in settings.model_dump(mode="json").items() if v is not None}
    (run_dir / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    (run_dir / "class_names.json").write_text(json.dumps(class_names), encoding="utf-8")
    write_privately(own / "sites.json", json.dumps(sites, indent=1))
    write_privately(own / "server.toml", tomli_w.dumps(values))
