"""Self-description of a site in its report, which no ledger can confirm."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fgvc_core import __version__
from fgvc_core.protocol.keys import fingerprint
from fieldmark.client.privacy.report.facts import plain_column
from fieldmark.client.site import Site


class StatedSite(BaseModel):
    """Self-description of a site.

    Attributes:
        name: Name of the site.
        public_key: Public key that verifies the report's signature, one line of text.
        fingerprint: SHA-256 (hex) of the key.
        version: Version of the installed code.
        units: The public number of protected units, as declared when the report was made.
        pictures: The public number of pictures.
        subject_column: Column of subject ids in site.toml today; the facts have the one of each
            run.
        data_as_founded: Whether the data are those that the ledger was founded for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    public_key: str = Field(max_length=1000)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: str = Field(max_length=64)
    units: int = Field(ge=0)
    pictures: int = Field(ge=0)
    subject_column: str | None = Field(max_length=200)
    data_as_founded: bool


def stated_site(site: Site, facts: dict[str, Any]) -> StatedSite:
    """Self-description of a site as of now."""
    founded = facts["ledger"]["data"]
    return StatedSite(
        name=site.name,
        public_key=site.public_key,
        fingerprint=fingerprint(site.key.public_key()),
        version=f"fieldmark {__version__}",
        units=site.settings.data.units,
        pictures=site.settings.data.pictures,
        subject_column=_subject_column(site),
        data_as_founded=founded in (None, site.data_binding),
    )


def _subject_column(site: Site) -> str | None:
    """Column of subject ids today; the ledger records the one of each run."""
    column = site.settings.data.subject_column
    return plain_column(column) if column else None
