"""``server.toml``: the coordinator's address, its limits for sites, and its defaults for runs."""

from pathlib import Path

import tomli_w
from pydantic import Field

from fgvc_core.configuration import Settings, read_toml_file
from fgvc_core.files import write_privately
from fieldmark.server.home import RollCallSettings


class GatewaySettings(Settings):
    """Limits of the gateway's port."""

    listen: str = Field("0.0.0.0", description="Address that the gateway listens on.")
    port: int = Field(8443, ge=0, le=65535, description="Its port; 0 picks a free one.")
    body_mb: float = Field(
        8.0, gt=0.0, le=64.0, description="Largest request, in MB; Flower sends 5 MB at a time."
    )
    message_mb: float = Field(
        1024.0,
        gt=0.0,
        description="Most that a site may send as the answer to one message, in MB, whatever the "
        "number of calls.",
    )
    requests_per_s: float = Field(
        400.0, gt=0.0, description="Requests a second that one key may make, on average."
    )
    connections_per_key: int = Field(
        32,
        ge=1,
        le=1000,
        description="Connections, and requests, that one key may have open at once.",
    )
    connections: int = Field(2000, ge=1, description="Connections in all.")
    connections_per_address: int = Field(
        200,
        ge=1,
        description="Connections from one address that have not proved whose they are.",
    )
    hold_s: float = Field(
        20.0,
        ge=0.0,
        le=25.0,
        description="Seconds for which a site's call for messages is held until there is one, 0 to "
        "25; 0: sites ask every 3 s. A proxy that ends silent connections sooner needs less.",
    )
    slow_s: float = Field(
        20.0, gt=0.0, le=600.0, description="Seconds within which a request must go on."
    )
    request_s: float = Field(
        120.0, gt=0.0, le=3600.0, description="Seconds within which a request must be complete."
    )


class DeploymentSettings(RollCallSettings):
    """``server.toml``."""

    name: str = Field("federation", description="Its name, in certificates and on pages.")
    hosts: tuple[str, ...] = Field(
        min_length=1, description="Names and addresses by which sites reach it, the first in kits."
    )
    public_port: int = Field(
        0, ge=0, le=65535, description="The port in kits, where it is not the gateway's own."
    )
    data_path: str | None = Field(
        None, description="Root of the coordinator's own data set with a test split, if it has one."
    )
    cache: str | None = Field(None, description="Folder for decoded pictures and features.")
    tries: int = Field(
        5, ge=1, le=100, description="How often a run's process may die without a round done."
    )
    wait_for_sites_s: float = Field(
        600.0, gt=0.0, description="How long a run waits for sites that are registered but away."
    )
    wait_for_approval_s: float = Field(
        604_800.0,
        ge=0.0,
        description="How long a run without a quorum waits for people at sites to approve it "
        "(policy.approval = 'each-run' there), in seconds; a week by default.",
    )
    track: tuple[str, ...] = Field(
        (),
        description="Where runs' events go besides their folders: tensorboard, mlflow, wandb, "
        "each alone or as NAME=WHERE, relative to this folder.",
    )
    status_port: int = Field(
        0, ge=0, le=65535, description="Loopback port of the status page and metrics; 0: any free."
    )
    gateway: GatewaySettings = GatewaySettings()


def read_settings(folder: Path) -> DeploymentSettings:
    """Read ``server.toml``.

    Raises:
        ConfigurationError: if it is missing or invalid.
    """
    path = folder / "server.toml"
    values = read_toml_file(
        path,
        "The coordinator's settings",
        remedy="Name a folder that 'fieldmark server init' has made.",
    )
    return DeploymentSettings.read(values, str(path))


def write_settings(folder: Path, settings: DeploymentSettings) -> None:
    """Write ``server.toml``."""
    values = settings.model_dump(mode="json", exclude_none=True)
    write_privately(folder / "server.toml", tomli_w.dumps(values))
