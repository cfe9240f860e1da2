"""Run the peers' own tests twice, with the extension loaded and without, and compare.

    PYTHONPATH=tests python -m peers             all of them; some ten minutes
    PYTHONPATH=tests python -m peers --part      a few files of each

A test whose outcome differs is repeated alone, three times each way: one that then comes out both
ways on one side is named as unsteady, and one that differs for good ends the program with code 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

PEERS = Path(__file__).resolve().parents[2] / ".venv" / "peers"
RUN_ENDS_WITHIN_S = 1800.0
REPEATS = 3
SIDES = ("without", "with")


@dataclass(frozen=True)
class Peer:
    """A project whose tests are run: which files all in all, and which in the small part."""

    name: str
    everything: tuple[str, ...]
    part: tuple[str, ...]


ALL = (
    Peer(
        "ipython",
        ("tests", "IPython"),
        (
            "tests/test_displayhook.py",
            "tests/test_display_trap.py",
            "tests/test_capture.py",
            "tests/test_demo.py",
            "tests/test_run.py::test_builtins_type",
        ),
    ),
    Peer("ipykernel", ("tests",), ("tests/test_io.py", "tests/test_zmq_shell.py")),
    Peer(
        "joblib",
        ("joblib/test/test_parallel.py", "joblib/test/test_memmapping.py"),
        ("joblib/test/test_config.py", "joblib/test/test_parallel.py::test_parallel_kwargs"),
    ),
)


Outcomes = dict[str, str]
"""What became of each test: passed, failed, error or skipped, by the test's name."""


def source_of(peer: Peer) -> Path:
    (folder,) = (PEERS / "sdists").glob(f"{peer.name}-*/")
    return folder


def run(peer: Peer, side: str, tests: tuple[str, ...]) -> Outcomes:
    """The outcomes of `tests`, in a copy of the sources and a home of their own."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        home = Path(folder)
        source = home / peer.name
        shutil.copytree(source_of(peer), source)
        report = home / "report.xml"
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ},
            "HOME": folder,
            "IPYTASKPERSIST_DIR": str(home / "state"),
            "IPYTASKPERSIST_PEERS": side,
        }
        words = [PEERS / "bin" / "python", "-m", "pytest", "-q", "-p", "ipytaskpersist_loaded"]
        words += [
            "-o",
            "asyncio_default_fixture_loop_scope=function",
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *tests,
        ]
        with open(home / "log", "w+b") as log:
            ran = subprocess.run(
                words,
                check=False,
                cwd=source,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=RUN_ENDS_WITHIN_S,
            )
            if not report.exists():
                log.seek(0)
                text = log.read().decode(errors="replace")[-3000:]
                raise SystemExit(
                    f"{peer.name}'s tests gave no report (code {ran.returncode}):\n{text}"
                )
        return outcomes_in(report)


def outcomes_in(report: Path) -> Outcomes:
    found: Outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        ends = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = ends[0] if ends else "passed"
    return found


def differing(one: Outcomes, other: Outcomes) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def repeated(
    peer: Peer, names: list[str], tests: tuple[str, ...]
) -> dict[str, dict[str, set[str]]]:
    """All outcomes of the named tests in further runs, for each side."""
    seen: dict[str, dict[str, set[str]]] = {name: {side: set() for side in SIDES} for name in names}
    files = files_of(peer, names) or tests
    for _ in range(REPEATS):
        for side in SIDES:
            outcomes = run(peer, side, files)
            for name in names:
                seen[name][side].add(outcomes.get(name, "missing"))
    return seen


def files_of(peer: Peer, names: list[str]) -> tuple[str, ...]:
    """The files in which the named tests are, as far as their dotted names are those of files."""
    found = set()
    for name in names:
        parts = name.partition("::")[0].split(".")
        while parts and not (source_of(peer) / Path(*parts)).with_suffix(".py").exists():
            parts.pop()
        if not parts:
            return ()
        found.add(str(Path(*parts).with_suffix(".py")))
    return tuple(sorted(found))


def compare(peer: Peer, tests: tuple[str, ...]) -> bool:
    """Print how a peer's tests came out on both sides. Returns whether they came out alike."""
    outcomes = {side: run(peer, side, tests) for side in SIDES}
    for side in SIDES:
        counts = Counter(outcomes[side].values())
        words = ", ".join(f"{counts[end]} {end}" for end in sorted(counts))
        print(f"{peer.name:<10} {side:<8} {words}", flush=True)
    names = differing(outcomes["without"], outcomes["with"])
    alike = True
    if names:
        for name, ends in repeated(peer, names, tests).items():
            steady = all(len(ends[side]) == 1 for side in SIDES)
            differs = ends["without"] != ends["with"] and steady
            alike = alike and not differs
            what = "DIFFERS" if differs else "alike when repeated" if steady else "unsteady"
            sides = "; ".join(f"{side}: {', '.join(sorted(ends[side]))}" for side in SIDES)
            print(f"{'':<10} {what}: {name} ({sides})", flush=True)
    return alike


def main() -> int:
    parser = argparse.ArgumentParser(prog="peers", description=__doc__.partition("\n")[0])
    parser.add_argument("--part", action="store_true", help="a few files of each, not all")
    parser.add_argument("names", nargs="*", help="ipython, ipykernel, joblib (otherwise all)")
    wanted = parser.parse_args()
    chosen = [peer for peer in ALL if not wanted.names or peer.name in wanted.names]
    results = [compare(peer, peer.part if wanted.part else peer.everything) for peer in chosen]
    return 0 if chosen and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
