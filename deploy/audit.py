"""Looks up known faults of the pinned versions, and says how many could not be looked up.

    python deploy/audit.py constraints.txt

pip-audit asks the package index about each version. Where the index has no such answer it passes
the version over and ends with "No known vulnerabilities found" all the same: here that is no
success.
Exit code 0: none is known of any version; 1: some are known; 5: not all could be looked up.
"""

import json
import subprocess
import sys
from typing import Any

KNOWN, UNREACHED = 1, 5


def verdict(report: dict[str, Any]) -> tuple[list[str], int]:
    """What a report of pip-audit means, as lines and an exit code.

    Args:
        report: pip-audit's JSON.
    """
    looked_up = [one for one in report["dependencies"] if "skip_reason" not in one]
    passed_over = [one["name"] for one in report["dependencies"] if "skip_reason" in one]
    lines, code = [], 0
    for one in looked_up:
        for fault in one["vulns"]:
            fixed = ", ".join(fault.get("fix_versions", [])) or "no version yet"
            lines.append(f"{one['name']} {one['version']}: {fault['id']}; fixed in {fixed}")
            code = KNOWN
    if passed_over:
        named = ", ".join(passed_over[:5]) + (" ..." if len(passed_over) > 5 else "")
        lines.append(f"Not looked up: {len(passed_over)} versions ({named}).")
        code = code or UNREACHED
    if not looked_up:
        lines.append("The database could not be reached: nothing was checked.")
    elif not code:
        lines.append(f"No fault is known of {len(looked_up)} versions.")
    return lines, code


def main() -> None:
    """Run pip-audit over the file that is named."""
    asked = ["--requirement", sys.argv[1], "--no-deps", "--disable-pip"]
    told = ["--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *asked, *told],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        # No answer at all: its last line says which connection failed.
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        sys.stderr.write(f"{last}\n")
        report = {"dependencies": []}
    lines, code = verdict(report)
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(code if report["dependencies"] else UNREACHED)


if __name__ == "__main__":
    main()
