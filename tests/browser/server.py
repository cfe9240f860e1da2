"""A Jupyter server of the tests' own, which serves JupyterLab and Notebook 7 alike.

Everything it touches is in one folder: home, settings, kernelspecs, trust, notebooks. It ends, and
its kernels with it, when it is left, also because something failed.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile, copytree
from types import TracebackType
from typing import Any, TextIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import nbformat
import psutil
from kernels import private_environment, until

from browser import needs

START_S = 60
END_S = 10
SETTINGS = {
    # What the browser prefers decides between the light theme and the dark one.
    "@jupyterlab/apputils-extension:themes": {"adaptive-theme": True},
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # All cells are in the page, not only those in sight.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
NO_SERVER_EXTENSION = {"ServerApp": {"jpserver_extensions": {"ipytaskpersist": False}}}
NO_PAGE_EXTENSION = {"disabledExtensions": {"ipytaskpersist": True}}
"""What the environment has installed is not used either."""
AUTOSAVE = "@jupyterlab/docmanager-extension:plugin"


SERVER_SETTINGS = {
    # Each page of JupyterLab would have the server ask Node whether to build JupyterLab anew.
    "ServerApp": {"tornado_settings": {"page_config_data": {"buildCheck": False}}},
}

ENDS_WITH_ITS_STARTER = """
import os, signal, sys, threading
def follow():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=follow, daemon=True).start()
from jupyterlab.labapp import main
main()
"""
"""Its standard input is at its end when the test run is, even one that was killed."""


class JupyterServer:
    """One server, with a port and a token of its own.

    env: further environment variables.
    python: the interpreter that runs it and its kernels.
    packages: a folder of ``.ci/versions`` that it has beside its own packages, ``jupyterlab-4.2``.
    base_url: where it answers.
    autosave: whether its pages save notebooks by themselves.
    extended: whether it and its pages have our extensions.
    """

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str] | None = None,
        *,
        python: str = sys.executable,
        packages: str = "",
        base_url: str = "/",
        autosave: bool = False,
        extended: bool = True,
    ) -> None:
        self.folder = folder
        self.python = python
        self.base_url = base_url
        self._autosave = autosave
        self._extended = extended
        self._env = (needs.beside(packages) if packages else {}) | dict(env or {})
        self.notebooks = _made(folder / "notebooks")
        self.token = secrets.token_hex(16)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: TextIO | None = None

    def __enter__(self) -> JupyterServer:
        config = _made(self.folder / "config" / "labconfig").parent
        settings = config / "labconfig" / "default_setting_overrides.json"
        settings.write_text(json.dumps(SETTINGS | {AUTOSAVE: {"autosave": self._autosave}}))
        (config / "jupyter_server_config.json").write_text(json.dumps(SERVER_SETTINGS))
        if self._extended:
            self._extend(config)
        else:
            (settings.parent / "page_config.json").write_text(json.dumps(NO_PAGE_EXTENSION))
            _server_extension(config).write_text(json.dumps(NO_SERVER_EXTENSION))
        try:
            # Another program may take the port between our choice and the server's start.
            for _attempt in range(3):
                if self._starts():
                    return self
        except BaseException:
            self.stop()
            raise
        raise AssertionError(f"the Jupyter server does not start:\n{self.log[-3000:]}")

    def _extend(self, config: Path) -> None:
        """Install what `pip install` does, but of this tree."""
        package = needs.ROOT / "ipytaskpersist"
        page = self.folder / "data" / "labextensions" / "ipytaskpersist"
        copytree(package / "labextension", page, dirs_exist_ok=True)
        copyfile(package / "server" / "enabled.json", _server_extension(config))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What the server and its kernels wrote."""
        return (self.folder / "server.log").read_text(errors="replace")

    def url(self, path: str) -> str:
        """The address of a page of it, with what opens it."""
        return f"http://127.0.0.1:{self.port}{self.base_url}{path}?token={self.token}"

    def ask(self, method: str, path: str) -> Any:
        """What the server's REST interface answers under ``/api/``."""
        request = Request(
            f"http://127.0.0.1:{self.port}{self.base_url}api/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with urlopen(request, timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def add_kernel(self, name: str, line: str, env: Mapping[str, str]) -> None:
        """Offer a kernel of this line of ipykernel, with these variables."""
        paths = [needs.ipykernel(line), needs.ROOT]
        spec = {
            "argv": [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": f"ipykernel {line}",
            "language": "python",
            "env": {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if path), **env},
        }
        folder = _made(self.folder / "data" / "kernels" / name)
        (folder / "kernel.json").write_text(json.dumps(spec))

    def add_notebook(self, name: str, kernel: str) -> Path:
        """Write a notebook with one empty cell, for this kernel, in a folder of its own."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("")],
            metadata={
                "kernelspec": {"name": kernel, "display_name": kernel, "language": "python"},
                "language_info": {"name": "python"},
            },
        )
        path = _made(self.notebooks / name) / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    def path_of(self, notebook: Path) -> str:
        """A notebook's path as addresses have it."""
        return notebook.relative_to(self.notebooks).as_posix()

    def kernel_of(self, notebook: Path) -> dict[str, Any] | None:
        """What the server knows of the kernel of a notebook, if it has one."""
        for session in self.ask("GET", "sessions"):
            if session["path"] == self.path_of(notebook):
                kernel: dict[str, Any] = session["kernel"]
                return kernel
        return None

    def end_sessions(self) -> None:
        """Shut down every kernel."""
        for session in self.ask("GET", "sessions"):
            self.ask("DELETE", f"sessions/{session['id']}")

    def start_again(self) -> None:
        """Start the server that was stopped, at the port that it had."""
        self._start()

    def stop(self) -> None:
        """End the server and every process that it has started."""
        process, self._process = self._process, None
        if process is not None:
            family = _family(process.pid) if process.poll() is None else []
            process.terminate()
            psutil.wait_procs(family, timeout=END_S)
            for each in family:
                _kill(each)
            process.wait(END_S)
            if process.stdin is not None:
                process.stdin.close()
        if self._log is not None:
            self._log.close()

    def kill(self) -> None:
        """Kill the server as a lack of memory does. Its kernels notice, and end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(END_S)
        self.stop()

    def _starts(self) -> bool:
        self.stop()
        self.port = _free_port()
        return self._start()

    def _start(self) -> bool:
        self._log = (self.folder / "server.log").open("a")
        self._process = subprocess.Popen(
            [
                *(self.python, "-c", ENDS_WITH_ITS_STARTER, "--no-browser", "--allow-root"),
                *("--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0"),
                f"--IdentityProvider.token={self.token}",
                f"--ServerApp.root_dir={self.notebooks}",
                f"--ServerApp.base_url={self.base_url}",
                "--LabApp.extension_manager=readonly",
            ],
            cwd=self.notebooks,
            env=private_environment(self.folder) | {"JUPYTER_PREFER_ENV_PATH": "0"} | self._env,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
        )
        until(self._answered, START_S, f"an answer of the Jupyter server, {self.folder}/server.log")
        return self._process.poll() is None

    def _answered(self) -> bool:
        """Whether the server answers, or never will."""
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        try:
            self.ask("GET", "status")
        except HTTPError:  # It is not ours: somebody else has the port, and ours ends soon.
            return False
        except (URLError, OSError):
            return False
        return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _server_extension(config: Path) -> Path:
    return _made(config / "jupyter_server_config.d") / "ipytaskpersist.json"


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _family(pid: int) -> list[psutil.Process]:
    """A process and what it started."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
