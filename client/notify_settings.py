"""Whom a site tells that something waits: the ``[notify]`` section of its ``site.toml``."""

from pathlib import Path

from pydantic import Field, field_validator

from fgvc_core.configuration import Settings

MOST_WORDS = 64


class Notify(Settings):
    """A command of the site's own that is run when something waits for a person."""

    command: tuple[str, ...] = Field(
        (),
        description="Program and arguments, for instance ['/usr/local/bin/tell', 'ward']; no shell "
        "reads them. Three arguments are added: the event (approval or refusal), the site's name, "
        "and one sentence. Empty: nobody is told.",
    )
    seconds: float = Field(
        10.0, ge=0.1, le=600.0, description="After this time the command is killed, in seconds."
    )
    refusals: bool = Field(
        False, description="Whether refused requests are told of, too, and not only approvals."
    )

    @field_validator("command")
    @classmethod
    def _is_a_command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and not Path(value[0]).is_absolute():
            # What PATH finds may differ between a shell and a service.
            raise ValueError("the program's path must be absolute, for instance /usr/bin/logger")
        if len(value) > MOST_WORDS or any("\0" in word for word in value):
            raise ValueError(f"at most {MOST_WORDS} words, without null characters")
        return value
