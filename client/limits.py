"""Resource limits of a site: the ``[limits]`` section of its ``site.toml``.

A site does not trust the recipes, messages and requests of a coordinator. Recipes are compared with
the limits before any work (:mod:`.recipe_limits`), processes are bounded while they run
(:mod:`.deployment.child`), the cache is pruned (:mod:`.cache_room`), incoming data are bounded
before they are assembled (:mod:`.deployment.node`), and requests are counted
(:mod:`.request_rate`).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import Field

from fgvc_core.configuration import Settings

SHARE_OF_MEMORY = 0.8
"""Fraction of the machine's memory used where ``memory_gb`` is not set."""

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")


class Limits(Settings):
    """Upper bounds for one run, one request or one day."""

    parameters_m: float = Field(
        500.0,
        gt=0.0,
        le=100_000.0,
        description="Most parameters of a recipe's model, in millions, above 0 to 100,000. "
        "Counted without building it.",
    )
    image_size: int = Field(
        640, ge=16, le=1024, description="Largest data.image_size of a recipe, in pixels, 16 to "
        "1024."
    )  # fmt: skip
    batch_size: int = Field(
        1024,
        ge=1,
        le=65_536,
        description="Most pictures that a recipe may have in memory at once (train, pretrain, "
        "evaluate.batch_size, privacy.physical_batch), 1 to 65,536.",
    )
    rounds: int = Field(
        2000,
        ge=1,
        le=200_000,
        description="Most rounds of a run, those of pre-training included, 1 to 200,000.",
    )
    epochs: int = Field(
        100,
        ge=1,
        le=1000,
        description="Most passes over the pictures in one round (train, pretrain, "
        "personal.epochs), 1 to 1000.",
    )
    memory_gb: float | None = Field(
        None,
        ge=2.0,
        le=100_000.0,
        description="Most memory of the process that answers a request, in GB (1e9 bytes), 2 to "
        "100,000; left out: eight tenths of this machine's, or of what its control group "
        "(container, unit) may have. A GPU's own memory is not counted.",
    )
    request_hours: float = Field(
        12.0,
        gt=0.0,
        le=720.0,
        description="Longest work on one request, in hours by the clock, above 0 to 720.",
    )
    file_gb: float = Field(
        200.0,
        ge=1.0,
        le=1_000_000.0,
        description="Largest file that a run may write here, in GB, 1 to 1,000,000.",
    )
    cache_gb: float = Field(
        200.0,
        ge=1.0,
        le=1_000_000.0,
        description="Most that decoded pictures and features may take in resources.cache, in GB, 1 "
        "to 1,000,000; what was used longest ago is removed between requests.",
    )
    message_mb: float = Field(
        2048.0,
        ge=10.0,
        le=1_000_000.0,
        description="Largest message that is taken from the coordinator, in MB (1e6 bytes), 10 to "
        "1,000,000.",
    )
    roll_calls_per_day: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Most roll calls that are answered in a day (UTC), 1 to 1,000,000.",
    )
    requests_per_day: int = Field(
        50_000,
        ge=1,
        le=10_000_000,
        description="Most requests of any kind that are answered in a day (UTC), 1 to 10,000,000; "
        "each adds lines to the ledger.",
    )
    ledger_mb: float = Field(
        2000.0,
        ge=1.0,
        le=1_000_000.0,
        description="Size of the ledger, in MB, beyond which no request is answered, 1 to "
        "1,000,000.",
    )

    @property
    def memory_bytes(self) -> int:
        """Memory limit of the process that answers a request, in bytes."""
        if self.memory_gb is not None:
            return int(self.memory_gb * 1e9)
        return max(int(machine_bytes() * SHARE_OF_MEMORY), 2_000_000_000)

    def in_words(self) -> str:
        """The most relevant limits, for people at the site."""
        derived = "" if self.memory_gb is not None else " (of this machine's)"
        return (
            f"{self.parameters_m:g} million parameters, {self.image_size} px, "
            f"{self.batch_size} pictures at once, {self.rounds} rounds, "
            f"{self.memory_bytes / 1e9:.1f} GB of memory{derived}, {self.request_hours:g} h a "
            f"request, messages of {self.message_mb:g} MB"
        )


def machine_bytes() -> int:
    """Memory in bytes of this machine or of the process's control group, whichever is smaller."""
    text = _MEMINFO.read_text(encoding="ascii") if _MEMINFO.is_file() else ""
    listed = [int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith("MemTotal:")]
    for file in _bounds():
        # No such group, or a group without a limit ('max').
        with contextlib.suppress(OSError, ValueError):
            listed.append(int(file.read_text(encoding="ascii")))
    return min(listed, default=8_000_000_000)


def _bounds() -> Iterator[Path]:
    """Files with memory limits of this process's control group and its ancestors.

    Includes ``memory.high``: beyond it the kernel throttles a process until it barely runs.
    """
    try:
        lines = _OWN.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # Inside a container, the root of the mounted tree is the container's own group.
    groups: tuple[tuple[Path, tuple[str, ...]], ...] = (
        (_CGROUPS, ("memory.max", "memory.high")),
        (_CGROUPS / "memory", ("memory.limit_in_bytes",)),
    )
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for root, names in groups:
            # cgroup v2 lines name no controller; v1 lines name "memory".
            if controllers == "" if "memory.max" in names else "memory" in controllers.split(","):
                own = PurePosixPath(path.lstrip("/"))
                yield from (root / up / name for up in (own, *own.parents) for name in names)
    yield from (root / name for root, names in groups for name in names)
