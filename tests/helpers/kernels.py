"""Drive a real kernel the way a notebook front end does.

Everything a kernel touches is private to it: home, configuration, history, connection file and
working directory live in one folder, and the kernel ends with the `NotebookKernel` that started it.
"""

from __future__ import annotations

import getpass
import os
import site
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty
from types import TracebackType
from typing import Any, TypeVar

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from nbformat import NotebookNode
from nbformat.v4 import output_from_msg

T = TypeVar("T")
Message = dict[str, Any]

_OUTPUT_TYPES = {"stream", "display_data", "execute_result", "error"}

# What belongs to the front end, or to the test run, that these tests were started from. With
# PYTEST_CURRENT_TEST in its environment ipykernel does not even watch its file descriptors.
_FOREIGN = (
    "IPYTASKPERSIST_", "IPYTHON", "JPY_", "JUPYTER", "MPLBACKEND", "PYTEST_", "VSCODE", "__VSC",
)  # fmt: skip


PATIENCE = 3 if os.environ.get("CI") else 1
"""Factor of the deadlines: an automatic build may have a machine of a third of the usual speed."""


def until(condition: Callable[[], T], timeout: float = 30, message: str = "the condition") -> T:
    """Wait for `condition()` to be true and return what it gave; fail after `timeout` seconds."""
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    pause_s = 0.005
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{message}: still not so after {timeout:g} s")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)
    return value


class _ThisInterpreter(KernelSpecManager):
    """The one kernel on offer: ipykernel of the interpreter that runs the tests."""

    run_by: Sequence[str] = ()

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [*self.run_by, sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class Cell:
    """A cell that was sent to a kernel, and what has come back so far.

    `outputs` holds nbformat outputs. Adjacent texts of one stream are merged, as front ends merge
    them, because the kernel cuts a stream by time. What arrives for a cell after its end still goes
    to it, as it does in a browser.
    """

    def __init__(self, kernel: NotebookKernel, source: str, msg_id: str) -> None:
        self.source = source
        self.outputs: list[NotebookNode] = []
        self.execution_count: int | None = None
        self.error: tuple[str, str, list[str]] | None = None
        """Name, value and traceback of the exception that ended the cell."""
        self.payload: list[Message] = []
        """What the front end was asked for with the reply: pages, texts for the next cell."""
        self._kernel = kernel
        self._msg_id = msg_id
        self._replied = self._idle = self._clear_before_next = False

    @property
    def done(self) -> bool:
        return self._replied and self._idle

    @property
    def text(self) -> str:
        """All that was printed, and the text form of all that was displayed, in order."""
        return "".join(_text_of(output) for output in self.outputs)

    def stream(self, name: str) -> str:
        """What was printed to `stdout` or `stderr` alone."""
        return "".join(out.text for out in self.outputs if out.get("name") == name)

    def wait(self, timeout: float = 60, check: bool = True) -> Cell:
        """Wait for the end of the cell; with `check`, a cell that failed is an AssertionError."""
        self._kernel.take_until(lambda: self.done, timeout, f"the end of this cell:\n{self.source}")
        if check and self.error:
            # A usage error has no traceback: its line is on stderr.
            said = "\n".join([self.source, *self.error[2], self.stream("stderr")])
            raise AssertionError(f"this cell failed:\n{said}")
        return self

    def take_reply(self, content: Message) -> None:
        self._replied = True
        self.execution_count = content.get("execution_count")
        self.payload = content.get("payload", [])
        if content["status"] == "error":
            self.error = (content["ename"], content["evalue"], content["traceback"])
        elif content["status"] != "ok":
            self.error = (content["status"], "", [content["status"]])

    def take_output(self, message: Message) -> NotebookNode | None:
        """Keep what `message` brings and return the output that is new."""
        kind, content = message["msg_type"], message["content"]
        if kind == "status":
            self._idle = self._idle or content["execution_state"] == "idle"
        elif kind == "clear_output":
            self._clear_before_next = content["wait"]
            if not content["wait"]:
                self.outputs.clear()
        elif kind in _OUTPUT_TYPES:
            return self._add(output_from_msg(message))
        return None

    def _add(self, output: NotebookNode) -> NotebookNode:
        if self._clear_before_next:
            self.outputs.clear()
            self._clear_before_next = False
        last = self.outputs[-1] if self.outputs else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last["text"] += output.text
        else:
            self.outputs.append(output)
        return output


def _text_of(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return str(output.get("data", {}).get("text/plain", ""))


class NotebookKernel:
    """A kernel of its own for one test, with a client attached.

    state_dir: where the extension keeps its store.
    notebook: the path of the notebook that the kernel pretends to run, if any.
    env: further environment variables.
    folder: where the kernel lives; a temporary folder when not given.
    run_by: a command that runs the kernel's, as ``env`` does.
    """

    def __init__(
        self,
        state_dir: Path,
        notebook: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        run_by: Sequence[str] = (),
    ) -> None:
        spec = _ThisInterpreter()
        spec.run_by = run_by
        self._temporary = tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True)
        self.folder = folder or Path(self._temporary.name).resolve()
        self.cwd = self._make("work")
        self._log_file = (self.folder / "kernel.log").open("ab")
        self._env = self._environment(state_dir, notebook) | dict(env or {})
        self._cells: dict[str, Cell] = {}
        self._displays: dict[str | None, list[NotebookNode]] = {}
        self._client: BlockingKernelClient | None = None
        self._manager = KernelManager(
            kernel_spec_manager=spec,
            connection_file=str(self._make("runtime") / f"kernel-{uuid.uuid4()}.json"),
            # Not TCP, whose ports another kernel may take between choosing and using them. A
            # socket's path is short in any system, so not in the folder of a test.
            transport="ipc",
            ip=str(Path(self._temporary.name) / "zmq"),
        )

    def __enter__(self) -> NotebookKernel:
        try:
            # A restart uses the same arguments, so the log stays open till the end.
            log = self._log_file.fileno()
            self._manager.start_kernel(cwd=str(self.cwd), env=self._env, stdout=log, stderr=log)
            self._connect()
        except BaseException:
            self.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.shutdown()

    @property
    def pid(self) -> int:
        """The process id of the kernel that runs now."""
        pid = getattr(self._manager.provisioner, "pid", None)
        assert isinstance(pid, int), "the kernel was never started"
        return pid

    @property
    def connection_file(self) -> Path:
        return Path(self._manager.connection_file)

    @property
    def alive(self) -> bool:
        return self._manager.has_kernel and bool(self._manager.is_alive())

    @property
    def log(self) -> str:
        """What the kernel process wrote to its own stdout and stderr."""
        return Path(self._log_file.name).read_text(errors="replace")

    def start(self, source: str, cell_id: str = "") -> Cell:
        """Send a cell and return at once; the cell's `wait` waits for its end.

        `cell_id` is sent along as JupyterLab does.
        """
        client = self._connected
        plain = client.session.msg
        if cell_id:
            client.session.msg = partial(plain, metadata={"cellId": cell_id})
        try:
            msg_id = client.execute(source, allow_stdin=False, stop_on_error=False)
        finally:
            client.session.msg = plain
        self._cells[msg_id] = Cell(self, source, msg_id)
        return self._cells[msg_id]

    def run(self, source: str, timeout: float = 60, check: bool = True, cell_id: str = "") -> Cell:
        """Run a cell to its end."""
        return self.start(source, cell_id).wait(timeout, check)

    def complete(self, code: str) -> Message:
        """What the kernel offers at the end of `code`."""
        reply = self._connected.complete(code, len(code), reply=True, timeout=30)
        content: Message = reply["content"]
        return content

    def take_until(self, condition: Callable[[], T], timeout: float, what: str) -> T:
        """Take in what the kernel sends until `condition()` is true."""
        timeout *= PATIENCE
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if not self._take_one():
                assert self.alive, f"the kernel died while we waited for {what}\n{self.log[-2000:]}"
            assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        return value

    def interrupt(self) -> None:
        """Press the stop button."""
        self._manager.interrupt_kernel()

    def restart(self) -> None:
        """Restart the kernel as the restart button does: same connection file, new process."""
        self._disconnect()
        self._manager.restart_kernel(now=False)
        self._connect()

    def reconnect(self) -> None:
        """Go away and come back with a new client, as a page that is reloaded does."""
        self._disconnect()
        self._connect()

    def kill(self) -> None:
        """Kill the kernel's own process, nothing else, and wait until it is dead."""
        self._disconnect()
        psutil.Process(self.pid).kill()
        until(lambda: not self.alive, message=f"death of kernel {self.pid}")

    def revive(self) -> None:
        """Start a killed kernel again as the server does: same connection file, new process."""
        assert not self.alive, "only a dead kernel is revived; this one still runs"
        self._disconnect()
        self._manager.restart_kernel(now=True)
        self._connect()

    def shutdown(self) -> None:
        """End the kernel, politely when it listens, and remove what it left."""
        self._disconnect()
        if self._manager.has_kernel:
            self._manager.shutdown_kernel(now=not self.alive)
        self._log_file.close()
        self._temporary.cleanup()

    def _make(self, name: str) -> Path:
        return _made(self.folder / name)

    def _environment(self, state_dir: Path, notebook: Path | str | None) -> dict[str, str]:
        private = private_environment(self.folder) | {"IPYTASKPERSIST_DIR": str(state_dir)}
        if notebook is not None:
            private["IPYTASKPERSIST_NOTEBOOK"] = str(notebook)
        return private

    @property
    def _connected(self) -> BlockingKernelClient:
        assert self._client is not None, "the kernel is not running: revive() or restart() it"
        return self._client

    def _connect(self) -> None:
        client = self._manager.client()
        assert isinstance(client, BlockingKernelClient)
        client.start_channels()
        self._client = client
        try:
            client.wait_for_ready(timeout=60 * PATIENCE)
        except RuntimeError as error:
            raise AssertionError(f"the kernel did not start: {error}\n{self.log}") from error

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.stop_channels()
        self._client = None

    def _take_one(self) -> bool:
        """Take in one message from the kernel, if one comes within a moment."""
        for message in self._messages():
            cell = self._cells.get(message["parent_header"].get("msg_id", ""))
            if message["msg_type"] == "execute_reply":
                if cell:
                    cell.take_reply(message["content"])
            else:
                self._take_output(cell, message)
            return True
        return False

    def _messages(self) -> Iterator[Message]:
        for channel, patience_s in (
            (self._connected.shell_channel, 0),
            (self._connected.iopub_channel, 0.05),
        ):
            try:
                yield channel.get_msg(timeout=patience_s)
            except Empty:
                continue

    def _take_output(self, cell: Cell | None, message: Message) -> None:
        """Give `message` to the cell that it is for, and to all displays that it updates."""
        transient = message["content"].get("transient") or {}
        displays = self._displays.setdefault(transient.get("display_id"), [])
        if message["msg_type"] in {"display_data", "update_display_data"}:
            for display in displays:
                display.update(
                    data=message["content"]["data"], metadata=message["content"]["metadata"]
                )
        output = cell.take_output(message) if cell else None
        if output is not None and transient.get("display_id"):
            displays.append(output)


def private_environment(folder: Path) -> dict[str, str]:
    """This process's environment, with home, settings and history in this folder."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(_FOREIGN)}
    home = str(_made(folder / "home"))
    return kept | {
        "HOME": home,
        "USERPROFILE": home,
        "APPDATA": home,
        "LOCALAPPDATA": home,
        "XDG_CONFIG_HOME": str(_made(folder / "home/.config")),
        "XDG_DATA_HOME": str(_made(folder / "home/.local/share")),
        "XDG_STATE_HOME": str(_made(folder / "home/.local/state")),
        "XDG_CACHE_HOME": str(_made(folder / "home/.cache")),
        "IPYTHONDIR": str(_made(folder / "ipython")),
        "JUPYTER_CONFIG_DIR": str(_made(folder / "config")),
        "JUPYTER_DATA_DIR": str(_made(folder / "data")),
        "JUPYTER_RUNTIME_DIR": str(_made(folder / "runtime")),
        "JUPYTER_PLATFORM_DIRS": "1",
        # Packages installed for the user are found through the home folder that we hide.
        "PYTHONUSERBASE": site.getuserbase(),
        # A list of the fonts takes seconds to make and says nothing about anybody.
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR") or _font_cache(),
    }


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _font_cache() -> str:
    return str(Path(tempfile.gettempdir()) / f"ipytaskpersist-tests-fonts-{getpass.getuser()}")


def processes_of(state_dir: Path) -> list[psutil.Process]:
    """Every process that keeps its tasks in `state_dir`, this one excepted."""
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and _keeps_tasks_in(state_dir, process)
    ]


def command_of(process: psutil.Process) -> str:
    """Its command line; empty when it has ended meanwhile, or waits for its parent to see that."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # A zombie is one, too.
        return ""


def _keeps_tasks_in(state_dir: Path, process: psutil.Process) -> bool:
    try:
        return bool(process.environ().get("IPYTASKPERSIST_DIR") == str(state_dir))
    except (psutil.Error, OSError):  # It has ended, or is somebody else's.
        return False


def end_processes_of(state_dir: Path) -> None:
    """End the supervisors and tasks that outlived their kernel, as they are meant to."""
    for process in processes_of(state_dir):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    until(lambda: not processes_of(state_dir), message=f"the end of all tasks in {state_dir}")
