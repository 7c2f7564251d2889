"""Looks for packages with known vulnerabilities, and says what it could and could not check: ``make audit``.

1. Every package that ``constraints.txt`` pins and that is installed has the pinned version, so that what was
   audited is what runs. This needs no network.
2. ``pip-audit`` asks the advisory database of PyPI about every pin. A package that it cannot ask about it
   calls "skipped", and succeeds all the same; here a database that knows no package at all counts as out of
   reach, and is said to be.

It fails for a vulnerability and for an installed version that is not the pinned one.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
AUDIT_SECONDS = 300


def pins() -> dict[str, str]:
    """Return the pinned version of every package."""
    found = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line.strip()):
            found[match[1]] = match[2]
    return found


def other_versions(pinned: dict[str, str]) -> list[str]:
    """Say which packages are installed in another version than the pinned one."""
    found = []
    for name, version in pinned.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed != version:
            found.append(f"{name} {installed} is installed, constraints.txt says {version}")
    return found


def audit(command: str) -> tuple[int, list[str]]:
    """Ask the database; return how many packages it knew, and what is wrong with which."""
    if not Path(command).exists():
        print(f"{command} could not be installed", file=sys.stderr)
        return 0, []
    arguments = [command, "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=AUDIT_SECONDS, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(done.stderr.strip()[-500:], file=sys.stderr)
        return 0, []
    known = [package for package in packages if "skip_reason" not in package]
    wrong = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions'])}"
        for package in known
        for flaw in package["vulns"]
    ]
    return len(known), wrong


def main() -> int:
    """Check; return the exit code."""
    pinned = pins()
    wrong = other_versions(pinned)
    print(f"pins: {len(pinned)} packages, {len(wrong)} installed in another version")
    n_known, flaws = audit(sys.argv[1])
    if n_known:
        print(f"advisories: {n_known} of {len(pinned)} packages audited, {len(flaws)} vulnerabilities")
    else:
        print("advisories: SKIPPED, the database is out of reach: nothing is known of vulnerabilities")
    for line in (*wrong, *flaws):
        print(f"error: {line}")
    return 1 if wrong or flaws else 0


if __name__ == "__main__":
    sys.exit(main())
