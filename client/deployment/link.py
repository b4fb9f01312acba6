"""Address and CA of a site's coordinator: ``coordinator.toml`` and ``coordinator-ca.pem``."""

from pathlib import Path

import tomli_w
from pydantic import Field

from fgvc_core.configuration import Settings, read_toml_file
from fgvc_core.files import write_privately
from fgvc_core.protocol.kit import ADDRESS

CA = "coordinator-ca.pem"
_FILE = "coordinator.toml"


class Link(Settings):
    """Contents of ``coordinator.toml``."""

    address: str = Field(pattern=ADDRESS, description="host:port of the coordinator's gateway.")

    @property
    def host(self) -> str:
        """Host name or IP address, without brackets."""
        # An IPv6 address is in brackets.
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port number."""
        return int(self.address.rpartition(":")[2])


def read_link(home: Path) -> Link:
    """Read the coordinator's address.

    Raises:
        ConfigurationError: if the home was made for a simulation, or the file is wrong.
    """
    values = read_toml_file(
        home / _FILE,
        "The coordinator's address in",
        why="Without it this site knows no coordinator.",
        remedy="Name a home that 'fieldmark site join' has made.",
    )
    return Link.read(values, _FILE)


def write_link(home: Path, link: Link, ca: str) -> None:
    """Write the coordinator's address and its CA certificate."""
    write_privately(home / CA, ca)
    write_privately(home / _FILE, tomli_w.dumps(link.model_dump()))
