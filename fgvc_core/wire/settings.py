"""Settings of ``[wire]``."""

from pydantic import Field

from fgvc_core.configuration import Settings


class WireSettings(Settings):
    """What a message may weigh."""

    max_update_mb: float = Field(
        1024.0, gt=0.0, description="Largest update that either side accepts, in MB (1e6 bytes)."
    )
