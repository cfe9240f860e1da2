"""Ask whether what is installed here has known vulnerabilities: a part of `make lint`.

pip-audit says "not found", and that all is well, of every package for which its service gives no
answer, as behind a mirror of PyPI. Here an audit that was none is said to be none. It fails when
there are vulnerabilities, and only then: who cannot reach a service can still work.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

SERVICES = ("pypi", "osv")
"""Who is asked, one after the other until one answers."""
DEADLINE_S = 120.0
"""How long all of it may take."""
SOCKET_S = 10
PROBLEM_CHARACTERS = 100
Report = dict[str, Any]


def command(service: str) -> list[str]:
    """What asks a service about this environment."""
    options = ["--local", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    asked = ["--vulnerability-service", service, "--timeout", str(SOCKET_S)]
    return [sys.executable, "-m", "pip_audit", *options, *asked]


def ask(asking: Sequence[str], timeout_s: float) -> tuple[Report | None, str]:
    """The report of an audit; None, and why there is none."""
    try:
        done = subprocess.run(
            asking, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {timeout_s:.0f} s"
    try:
        return dict(json.loads(done.stdout)), ""
    except ValueError:
        last = next(iter(done.stderr.strip().splitlines()[-1:]), "it said nothing")
        return None, last if len(last) <= PROBLEM_CHARACTERS else f"{last[:PROBLEM_CHARACTERS]}…"


def found_in(report: Report) -> list[str]:
    """The vulnerabilities of a report, a line each."""
    return [
        f"{each['name']} {each['version']}: {found['id']}"
        f" (fixed in {', '.join(found['fix_versions']) or 'no version yet'})"
        for each in report["dependencies"]
        for found in each.get("vulns", ())
    ]


def answered(report: Report) -> tuple[int, int]:
    """Of how many packages the service knew something, and how many there are."""
    known = [each for each in report["dependencies"] if "skip_reason" not in each]
    return len(known), len(report["dependencies"])


def verdict(report: Report) -> tuple[str, bool]:
    """What an audit has found, in words, and whether that is no reason to stop."""
    vulnerable, (known, count) = found_in(report), answered(report)
    if vulnerable:
        return "known vulnerabilities:\n  " + "\n  ".join(vulnerable), False
    rest = f"; of {count - known} more nothing is known there" if known < count else ""
    return f"no known vulnerabilities in {known} packages{rest}", True


def main() -> int:
    """Audit, say in a line what came of it, and return the exit status."""
    until, problems = time.monotonic() + DEADLINE_S, []
    for service in SERVICES:
        report, problem = ask(command(service), max(1.0, until - time.monotonic()))
        if report is not None and (answered(report)[0] or found_in(report)):
            text, is_well = verdict(report)
            print(f"pip-audit: {text}")
            return 0 if is_well else 1
        problems.append(f"{service}: {problem or 'knows none of these packages'}")
    print(f"pip-audit: NOT audited, because no service answered ({'; '.join(problems)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
