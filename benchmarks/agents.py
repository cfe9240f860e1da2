"""How soon an agent's server is ready, what a call of a tool takes, and how much the tools are."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench import NAME, Bench
from benchmarks.kernels import environment_for
from benchmarks.results import Row

HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "benchmarks", "version": "1"},
}
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("list", {}),
    ("show", {"ref": NAME}),
    ("output", {"ref": NAME}),
    ("output", {"ref": NAME, "from_byte": 1_000_000}),
    ("wait", {"refs": [NAME]}),
)


class Server:
    """A `jupyter bg mcp` on pipes, spoken to without a client's own time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, method: str, params: Mapping[str, Any]) -> tuple[float, str]:
        """Send a request, and return how long the answer took, in seconds, and the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        begun = time.perf_counter()
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        return time.perf_counter() - begun, answer


@contextmanager
def served(state: Path) -> Iterator[tuple[float, Server]]:
    """A server that has answered the first request, and how long that took from its start."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "ipytaskpersist", "mcp", "--allow"],
        env=environment_for(state),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        server = Server(process)
        server.ask("initialize", HELLO)
        ready_s = time.perf_counter() - begun
        assert process.stdin is not None
        initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        process.stdin.write(json.dumps(initialized) + "\n")
        yield ready_s, server
    finally:
        process.kill()
        process.communicate()


def agents(bench: Bench) -> list[Row]:
    """Starts, calls over a full store, and the size of the list of tools."""
    state = bench.full_state
    bench.say(f"starting {bench.scale.kernels} servers for agents")
    starts = []
    for _ in range(bench.scale.kernels):
        with served(state) as (ready_s, server):
            starts.append(ready_s)
            _s, tools = server.ask("tools/list", {})
    rows = [
        Row("agents", "`jupyter bg mcp`: from its start to its first answer", "s", tuple(starts))
        .at_most(0.8),
        Row("agents", "the list of tools", "kB", (len(tools.encode()) / 1e3,)).at_most(6),
    ]  # fmt: skip
    with served(state) as (_ready_s, server):
        for tool, arguments in CALLS:
            asked = {"name": tool, "arguments": arguments}
            server.ask("tools/call", asked)
            times = [server.ask("tools/call", asked)[0] * 1e3 for _ in range(bench.scale.tails)]
            given = ", ".join(name for name in arguments if name not in ("ref", "refs"))
            what = f"a call of {tool}{f' with {given}' if given else ''}, over {bench.past}"
            rows.append(Row("agents", what, "ms", tuple(times)).at_most(5))
    return rows
