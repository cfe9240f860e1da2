"""What the live panel costs the kernel, and how soon it tells the page what a task has printed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks import stores
from benchmarks.bench import Bench
from benchmarks.commands import supervised_kernel
from benchmarks.kernels import Kernel
from benchmarks.results import BenchmarkError, Row

TASKS = 1000
PRINTING = 20
TICKING = """exec bash -c 'exec 9<> <(:); while echo "$EPOCHREALTIME"; do read -t 0.1 -u 9; done'"""
"""Prints the time ten times a second in a shell that starts no other process."""
TURNS = 3
LONGEST_S = 60.0


def panel(bench: Bench) -> list[Row]:
    """The kernel's processor time with a panel and without, and the delay until its page is told.

    In turns: the panel's page leaves and comes back.
    """
    state = bench.new_state()
    bench.say(f"a panel with {TASKS:,} tasks, {PRINTING} of which print")
    stores.fill(state, TASKS - PRINTING)
    with supervised_kernel(bench, state) as kernel:
        # Of this very notebook, and without cards, which would be updated too.
        kernel.value(f"len(launch({TICKING!r}, {PRINTING}))")
        page = Page(kernel)
        page.open()
        page.select_one_that_prints()
        without, shown = list[float](), list[float]()
        delays: list[float] = []
        for _ in range(TURNS):
            page.leave()
            without.append(page.share_percent(bench.scale.idle_s, []))
            page.come()
            shown.append(page.share_percent(bench.scale.idle_s, delays))
    if not delays:
        raise BenchmarkError("the panel was told nothing")
    about = f"{TASKS:,} tasks, {PRINTING} print ten times a second, one of them selected"
    alone = Row(
        "panel", f"share of a core of the kernel without a panel: {about}", "%", (*without,)
    )
    return [
        alone,
        Row("panel", f"the same with a panel: {about}", "%", (*shown,)).at_most_above(3, alone),
        Row(
            "panel", "from a task's print until the panel's page is told", "ms", (*delays,)
        ).at_most(300),
    ]


class Page:
    """The panel's page, as far as the kernel can tell."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._model = ""
        self._printing: set[str] = set()

    def open(self) -> None:
        """Run the command."""
        begun = time.monotonic()
        self._kernel.send("execute_request", {"code": "%bg_panel", "allow_stdin": False})
        for message in self._messages(begun + LONGEST_S):
            state = message["content"].get("data", {}).get("state", {})
            if message["msg_type"] == "comm_open" and "first" in state:
                self._model = message["content"]["comm_id"]
                break
        else:
            raise BenchmarkError("no panel appeared")
        self.come()

    def come(self) -> None:
        """Say that the page is there, and wait for the list."""
        self.say(kind="open")
        listed = next(self._said(time.monotonic() + LONGEST_S, "all"))
        self._printing = {row["id"] for row in listed["tasks"] if row["ended"] is None}
        if len(self._printing) != PRINTING:
            raise BenchmarkError(f"{len(self._printing)} tasks run, not {PRINTING}")

    def leave(self) -> None:
        """Say that the page is gone."""
        self.say(kind="close")

    def select_one_that_prints(self) -> None:
        """Have the output of one of the tasks shown."""
        self.say(kind="select", task=min(self._printing))

    def say(self, **content: Any) -> None:
        """Send a message to the panel."""
        data = {"method": "custom", "content": {"view": "page", **content}}
        self._kernel.send("comm_msg", {"comm_id": self._model, "data": data})

    def share_percent(self, seconds: float, delays_ms: list[float]) -> float:
        """The kernel's share of a core meanwhile. Adds how long after its print each line came."""
        self._kernel.settle()
        begun, used = time.monotonic(), self._used_s()
        for message in self._said(begun + seconds, "changes"):
            now = time.time()
            delays_ms.extend(
                (now - float(row["line"])) * 1e3
                for row in message["tasks"]
                if row["id"] in self._printing
            )
        return (self._used_s() - used) / (time.monotonic() - begun) * 100

    def _used_s(self) -> float:
        times = self._kernel.process.cpu_times()
        return float(times.user + times.system)

    def _said(self, deadline: float, kind: str) -> Iterator[dict[str, Any]]:
        for message in self._messages(deadline):
            said = message["content"].get("data", {}).get("content", {})
            if message["msg_type"] == "comm_msg" and said.get("kind") == kind:
                yield said

    def _messages(self, deadline: float) -> Iterator[dict[str, Any]]:
        while (left := deadline - time.monotonic()) > 0:
            yield from self._kernel.heard(min(left, 1.0))
