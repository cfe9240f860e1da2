"""A Jupyter server with our extension alone, and pages that follow what it tells them."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.kernels import environment_for
from benchmarks.results import BenchmarkError

START_S = 60.0
WAIT_S = 60.0
EXTENSIONS = {
    **dict.fromkeys(("jupyterlab", "notebook", "notebook_shim", "jupyter_lsp"), False),
    "jupyter_server_terminals": False,
    "ipytaskpersist": True,
}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds. Raises `BenchmarkError` when it does not."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{what}: still not so after {WAIT_S:.0f} s")
        time.sleep(0.001)


class Page:
    """One page: what it has of each task, and of the list."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[Any]] = {}
        self.positions: dict[str, str] = {}
        self.listed: set[str] = set()
        self._connection: http.client.HTTPConnection | None = None

    def follow(self, connection: http.client.HTTPConnection) -> None:
        """Take what the server tells from now on."""
        connection.sock.settimeout(None)
        self._connection = connection
        threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: http.client.HTTPConnection) -> None:
        try:
            for line in connection.getresponse():
                if line.strip():
                    self._take(json.loads(line))
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return  # it was closed

    def _take(self, message: dict[str, Any]) -> None:
        for edit in message.get("edits", ()):
            has = self.outputs.setdefault(message["task"]["id"], [])
            if "text" in edit:
                has[edit["at"]]["text"] += edit["text"]
            else:
                has[edit["at"] : edit["at"] + 1] = [edit["output"]]
        self.listed.update(
            task["id"] for task in (*message.get("tasks", ()), *message.get("changed", ()))
        )

    def text(self, task_id: str) -> str:
        """What the streams of a task show."""
        return "".join(output.get("text", "") for output in self.outputs.get(task_id, ()))

    def close(self) -> None:
        """Go away."""
        if self._connection is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
            self._connection.close()


class Server:
    """The server, as pages see it, and what it uses."""

    def __init__(self, port: int, token: str, process: psutil.Process) -> None:
        self._port = port
        self._headers = {"Authorization": f"token {token}"}
        self._process = process

    def request(self, path: str, body: Any) -> http.client.HTTPConnection:
        """Send a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_S)
        address = f"/ipytaskpersist/api/{path}"
        connection.request("POST", address, json.dumps(body), self._headers)
        return connection

    def open_page(self, notebook: str, cells: Sequence[dict[str, Any]]) -> Page:
        """Ask for the cells of a notebook, and follow their tasks and the list of all."""
        with closing(self.request("notebook", {"path": notebook, "cells": cells})) as connection:
            answered = json.loads(connection.getresponse().read())
        page = Page()
        for cell in answered["cells"].values():
            page.outputs[cell["task"]["id"]] = cell["outputs"]
            page.positions[cell["task"]["id"]] = cell["position"]
        wishes = {"paths": [notebook], "follow": page.positions, "seen": answered["seen"]}
        page.follow(self.request("events", {**wishes, "list": {"notebook": None}}))
        return page

    def share_percent(self, seconds: float) -> float:
        """Return its share of one core while so much time passes."""
        begun, used = time.monotonic(), sum(self._process.cpu_times()[:2])
        time.sleep(seconds)
        now = sum(self._process.cpu_times()[:2])
        return float(100 * (now - used) / (time.monotonic() - begun))


@contextmanager
def running_server(state: Path, root: Path) -> Iterator[Server]:
    """A server of the notebooks in a folder, until the `with` block ends."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
        *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"),
        f"--ServerApp.jpserver_extensions={EXTENSIONS}",
    ]
    with (root / "server.log").open("wb") as log:
        started = subprocess.Popen(
            command, cwd=root, env=environment_for(state), stdout=log, stderr=log
        )
        try:
            wait_until(lambda: _answers(port, started), "the Jupyter server")
            yield Server(port, token, psutil.Process(started.pid))
        finally:
            started.terminate()
            started.wait(START_S)


def _answers(port: int, started: subprocess.Popen[bytes]) -> bool:
    if started.poll() is not None:
        raise BenchmarkError("the Jupyter server does not start")
    with closing(socket.socket()) as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
