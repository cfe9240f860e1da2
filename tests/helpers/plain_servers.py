"""A Jupyter server without applications, in which our extension is the only one.

Everything it touches is in one folder, and it ends with the test that started it.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from kernels import private_environment, until

import ipytaskpersist

START_S = 60
ASK_S = 60
BASE_URL = "/user/ada/"
OTHERS = ("jupyterlab", "notebook", "notebook_shim", "jupyter_lsp", "jupyter_server_terminals")

ENDS_WITH_ITS_STARTER = """
import os, signal, sys, threading
def follow():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=follow, daemon=True).start()
from jupyter_server.serverapp import main
main()
"""


class Answer:
    """What the server answered."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def said(self) -> str:
        """The line with which it refused."""
        return str(self.json["message"])


class Events:
    """The long response of one page."""

    def __init__(self) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self.messages: list[Any] = []
        self.empty_lines = 0
        self.outputs: dict[str, list[Any]] = {}
        """The outputs of each task that is followed, as the page has them."""
        self.positions: dict[str, str] = {}
        self.tasks: dict[str, Any] = {}
        """The list."""
        self.problem: str | None = None
        self.launched: list[str] = []
        self.launched_in: list[str] = []

    def follow(self, connection: http.client.HTTPConnection) -> None:
        """Take what comes, until one of both goes away."""
        assert connection.sock is not None
        connection.sock.settimeout(None)
        self._connection = connection
        threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: http.client.HTTPConnection) -> None:
        try:
            for line in connection.getresponse():
                if line.strip():
                    self.take(json.loads(line))
                else:
                    self.empty_lines += 1
        except (OSError, http.client.HTTPException, AttributeError, ValueError):
            return  # the server has ended, or this page has gone

    def take(self, message: Any) -> None:
        """Do what a page does."""
        if "edits" in message:
            task = message["task"]["id"]
            has = self.outputs.setdefault(task, [])
            for edit in message["edits"]:
                at = edit["at"]
                if "text" in edit:
                    has[at] = {**has[at], "text": has[at]["text"] + edit["text"]}
                else:
                    has[at : at + 1] = [edit["output"]]
            del has[message["count"] :]
            self.positions[task] = message["position"]
        elif "launched" in message:
            self.launched.append(message["launched"]["task"]["id"])
            self.launched_in.append(message["launched"]["path"])
        elif "problem" in message:
            self.problem = message["problem"]
        elif "running" in message:
            if "tasks" in message:
                self.tasks = {}
            rows = message.get("tasks", message.get("changed", ()))
            self.tasks |= {task["id"]: task for task in rows}
            for gone in message.get("gone", ()):
                self.tasks.pop(gone, None)
        self.messages.append(message)

    def text(self, task: str) -> str:
        """All that the streams of a task show."""
        return "".join(out.get("text", "") for out in self.outputs.get(task, ()))

    def close(self) -> None:
        """Go away, as a page that is closed."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()


class PlainServer:
    """One server, with a port and a token of its own, below a base URL as a hub gives it."""

    def __init__(self, folder: Path, state_dir: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.root = folder / "notebooks"
        self.root.mkdir(parents=True)
        self.token = secrets.token_hex(16)
        self.port = 0
        self._env = {
            **private_environment(folder),
            "IPYTASKPERSIST_DIR": str(state_dir),
            "PYTHONPATH": str(Path(ipytaskpersist.__file__).parents[1]),
            **dict(env or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._open: list[Events] = []

    def __enter__(self) -> PlainServer:
        # As `pip install` puts it.
        config = self.folder / "config" / "jupyter_server_config.d"
        config.mkdir(parents=True, exist_ok=True)
        enabled = Path(ipytaskpersist.__file__).parent / "server" / "enabled.json"
        (config / "ipytaskpersist.json").write_bytes(enabled.read_bytes())
        others = {"ServerApp": {"jpserver_extensions": dict.fromkeys(OTHERS, False)}}
        (config / "zz-alone.json").write_text(json.dumps(others))
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, or start it again at its port."""
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", self.port))
            self.port = free.getsockname()[1]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", ENDS_WITH_ITS_STARTER, "--no-browser", "--allow-root"),
                    *("--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0"),
                    f"--IdentityProvider.token={self.token}",
                    *(f"--ServerApp.root_dir={self.root}", f"--ServerApp.base_url={BASE_URL}"),
                ],
                cwd=self.root, env=self._env, stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        until(self._answers, START_S, f"an answer of the server, {self.folder}/server.log")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log[-3000:]
        try:
            return self.ask("GET", "list").status in (200, 503)
        except OSError:
            return False

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        for each in self._open:
            each.close()
        self._open.clear()
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(30)
            assert process.stdin is not None
            process.stdin.close()

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPConnection:
        """Send a request, with the token unless other headers are given.

        The path is one of the extension's, unless it begins with a slash.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_S)
        own = {"Authorization": f"token {self.token}"} if headers is None else headers
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        address = path[1:] if path.startswith("/") else f"ipytaskpersist/api/{path}"
        connection.request(method, f"{BASE_URL}{address}", data, dict(own))
        return connection

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask, and read the answer."""
        with closing(self.request(method, path, body, headers)) as connection:
            return Answer(connection.getresponse())

    def cells(self, path: str, *cells: Mapping[str, Any]) -> Any:
        """What the server says of the cells of a notebook."""
        answer = self.ask("POST", "notebook", {"path": path, "cells": cells})
        assert answer.status == 200, answer.body
        return answer.json

    def listed(self, **query: str) -> Any:
        answer = self.ask("GET", f"list?{urlencode(query)}")
        assert answer.status == 200, answer.body
        return answer.json

    def events(self, **wishes: Any) -> Events:
        """A page that stays open, and has nothing at first."""
        return self._follow(Events(), wishes)

    def open_page(self, path: str, *cells: Mapping[str, Any], **wishes: Any) -> Events:
        """A page that asks for its cells, and follows their tasks, as a real one does."""
        answered = self.cells(path, *cells)
        page = Events()
        for cell in answered["cells"].values():
            page.outputs[cell["task"]["id"]] = cell["outputs"]
            page.positions[cell["task"]["id"]] = cell["position"]
        known = {"paths": [path], "follow": dict(page.positions), "seen": answered["seen"]}
        return self._follow(page, known | wishes)

    def come_back(self, page: Events, **wishes: Any) -> Events:
        """A page that has lost its connection, and follows on from what it has."""
        page.close()
        again = Events()
        again.outputs, again.positions, again.tasks = page.outputs, page.positions, page.tasks
        return self._follow(again, {"follow": dict(page.positions)} | wishes)

    def _follow(self, page: Events, wishes: Mapping[str, Any]) -> Events:
        page.follow(self.request("POST", "events", wishes))
        self._open.append(page)
        return page
