"""Lock what an installation brings by SHA-256: deploy/locked.txt, from constraints.txt.

Run it in a clone, on a machine with an index, after every change of constraints.txt:

    make lock

pip resolves as for an installation and says which file of each distribution it would take; nothing
is installed. The hashes are those that the index states. They are of Python 3.11 on Linux
(x86-64), as constraints.txt is, with torch as the index has it. Then, anywhere:

    pip install --require-hashes -r deploy/locked.txt
    pip install --no-deps .
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Made by 'make lock' from constraints.txt: what fieldmark[weights] brings, by SHA-256
# (Python 3.11, Linux, x86-64). pip install --require-hashes -r deploy/locked.txt
"""


def resolved(extras: str) -> dict[str, Any]:
    """What pip would install, as its installation report.

    https://pip.pypa.io/en/stable/reference/installation-report/
    """
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    with tempfile.TemporaryDirectory() as aside:
        report = Path(aside) / "report.json"
        asked = ("install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report))
        bounds = ("--constraint", str(ROOT / "constraints.txt"))
        subprocess.run((*pip, *asked, *bounds, f"{ROOT}[{extras}]"), check=True)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def lines(report: dict[str, Any]) -> Iterator[str]:
    """One requirement for each distribution of a report but our own, sorted by name.

    Raises:
        SystemExit: Of a distribution the report has no SHA-256; its name is said.
    """
    for one in sorted(report["install"], key=lambda one: _name(one)):
        if _name(one) == "fieldmark":
            continue
        digest = one["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            sys.exit(f"No SHA-256 is known of '{_name(one)}': it cannot be locked.")
        version = one["metadata"]["version"]
        yield f"{_name(one)}=={version} --hash=sha256:{digest}"


def _name(one: dict[str, Any]) -> str:
    return re.sub("[-_.]+", "-", one["metadata"]["name"]).lower()


def main(words: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("file", type=Path, help="where the lines go")
    parser.add_argument("--extras", default="weights", help="for instance weights,formats")
    asked = parser.parse_args(words)
    found = list(lines(resolved(asked.extras)))
    asked.file.write_text(HEAD + "\n".join(found) + "\n", encoding="utf-8")
    print(f"{len(found)} distributions, each with its SHA-256, in {asked.file}")


if __name__ == "__main__":
    main()
