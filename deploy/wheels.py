"""Make a folder of wheels from which Fieldmark installs with no index, and lock it by SHA-256.

Run it in a clone, on a machine with an index, with the same Python and system as the target:

    python deploy/wheels.py wheels               # torch as the index has it, which is for CUDA
    python deploy/wheels.py wheels --build cpu   # PIP_EXTRA_INDEX_URL names torch's CPU index

Then carry the folder over, and there, as any user:

    python3 -m venv fieldmark
    fieldmark/bin/pip install --no-index --find-links wheels --require-hashes -r wheels/locked.txt
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = "locked.txt"
OF_CUDA = re.compile(r"(nvidia-|cuda-|triton)")
OF_TORCH = re.compile(r"(torch|torchvision)==")


def constraints(build: str) -> Iterator[str]:
    """Lines of constraints.txt, with another build of torch and torchvision, which belong together.

    >>> [line for line in constraints("cpu") if line.startswith("torch==")][0].endswith("+cpu")
    True
    """
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not build or not (OF_CUDA.match(line) or OF_TORCH.match(line)):
            yield line
        elif OF_TORCH.match(line):
            yield f"{line.partition('+')[0]}+{build}"


def gather(folder: Path, extras: str, bounds: Sequence[str]) -> None:
    """Build our wheel and fetch every wheel that it needs; a source archive is built."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    with tempfile.TemporaryDirectory() as aside:
        ours = Path(aside) / "ours"
        command = (*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(ours), str(ROOT))
        subprocess.run(command, check=True)
        (wheel,) = ours.glob("fieldmark-*.whl")
        file = Path(aside) / "constraints.txt"
        file.write_text("\n".join(bounds) + "\n", encoding="utf-8")
        wanted = f"fieldmark[{extras}] @ {wheel.as_uri()}" if extras else str(wheel)
        subprocess.run(
            (*pip, "wheel", "--quiet", "--wheel-dir", str(folder), "-c", str(file), wanted),
            check=True,
        )


def locked(folder: Path) -> Iterator[str]:
    """One requirement for each wheel of a folder, with its hash."""
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield f"{name.replace('_', '-').lower()}=={version} --hash=sha256:{digest}"


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the wheels go; made if it is not there")
    parser.add_argument("--extras", default="", help="for instance weights,formats")
    parser.add_argument("--build", default="", help="of torch and torchvision: cpu, cu130, ...")
    parser.add_argument("--pin", action="append", default=[], metavar="NAME==VERSION",
                        help="instead of the one in constraints.txt; repeatable")  # fmt: skip
    asked = parser.parse_args(words)
    asked.folder.mkdir(parents=True, exist_ok=True)
    if any(asked.folder.glob("*.whl")):
        parser.error(f"'{asked.folder}' holds wheels already: two versions could not be told apart")
    pinned = {pin.partition("==")[0] for pin in asked.pin}
    bounds = [b for b in constraints(asked.build) if b.partition("==")[0] not in pinned]
    gather(asked.folder, asked.extras, [*bounds, *asked.pin])
    lines = list(locked(asked.folder))
    (asked.folder / LOCK).write_text("\n".join(lines) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in asked.folder.glob("*.whl"))
    print(f"{len(lines)} wheels, {size / 1e6:,.0f} MB; locked in {asked.folder / LOCK}")


if __name__ == "__main__":
    main()
