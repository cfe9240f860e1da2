"""``python -m benchmarks``: measure everything in one run, and show one table."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    agents,
    cards,
    commands,
    encryption,
    frames,
    fresh,
    handing_over,
    history,
    inspecting,
    killed,
    launching,
    long_log,
    page,
    panel,
    printing,
    process_tasks,
    queueing,
    searching,
    store_calls,
    supervising,
)
from benchmarks.bench import FULL, QUICK, Bench
from benchmarks.results import BenchmarkError, Row, table
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.store.file.database import SQLITE_VERSION

FORMAT = 1
"""The version of the JSON document."""
PACKAGES = ("ipython", "ipykernel", "jupyter_client", "numpy", "pandas", "submitit")

BENCHMARKS: dict[str, Callable[[Bench], list[Row]]] = {
    "launch": launching.launch,
    "print": printing.printing,
    "killed": killed.killed,
    "memory": long_log.memory,
    "load": fresh.load,
    "recovery": fresh.recovery,
    "tail": long_log.tail,
    "store": store_calls.store,
    "history": history.history,
    "archive": history.archive,
    "terminal": history.terminal,
    "shell": launching.shell,
    "start": commands.start,
    "many": commands.many,
    "text": commands.text,
    "bytes": commands.random_bytes,
    "follow": supervising.follow,
    "supervisor": supervising.supervisor,
    "stack": inspecting.stack,
    "top": inspecting.top,
    "claim": queueing.claiming,
    "queue": queueing.queue,
    "search": searching.searching,
    "agents": agents.agents,
    "card": cards.card,
    "panel": panel.panel,
    "page": page.page,
    "frames": frames.frames,
    "process-start": process_tasks.process_start,
    "process-round": process_tasks.process_round,
    "process-memory": process_tasks.process_memory,
    "process-array": handing_over.process_array,
    "process-frame": handing_over.process_frame,
    "process-sweep": handing_over.process_sweep,
    "process-untouched": handing_over.process_untouched,
    "encryption": encryption.encryption,
}
ON_REQUEST = {"encryption", "frames"}
"""What is measured only when it is asked for: what could be, and is not; what needs a browser."""
USUAL = [name for name in BENCHMARKS if name not in ON_REQUEST]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument(
        "--only",
        action="append",
        choices=list(BENCHMARKS),
        metavar="NAME",
        help=f"measure only this, may be repeated: {', '.join(BENCHMARKS)}",
    )
    made.add_argument("--quick", action="store_true", help="less of everything, in two minutes")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    made.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, and return the exit status."""
    options = parser().parse_args(arguments)
    # An end by SIGTERM must end the kernels and remove the folder, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begun = time.monotonic()
    machine = describe_machine()
    say(", ".join(f"{name} {value}" for name, value in machine.items()))
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder).resolve(), QUICK if options.quick else FULL, say)
        rows = [row for name in options.only or USUAL for row in measure(name, bench)]
    say(f"{time.monotonic() - begun:.0f} s")
    print(table(rows))
    if options.json:
        document = {"format": FORMAT, "quick": options.quick, "machine": machine}
        document["rows"] = [row.as_json() for row in rows]
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(options.check and not all(row.is_good for row in rows))


def measure(name: str, bench: Bench) -> list[Row]:
    """The rows of one benchmark, or one row that says why there are none."""
    try:
        return BENCHMARKS[name](bench)
    except (BenchmarkError, BackgroundError) as error:
        say(f"{name} failed: {error}")
        return [Row(name, "", "", problem=f"**failed: {str(error).splitlines()[0]}**")]


def describe_machine() -> dict[str, Any]:
    """On what the figures were got."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": SQLITE_VERSION,
        **versions,
    }


def say(message: str) -> None:
    """Tell what goes on, apart from the table."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
