"""Kernels to measure: real ones, private in everything, driven over ZeroMQ as a front end does."""

from __future__ import annotations

import ast
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, Self

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from benchmarks.results import BenchmarkError

CHECKOUT = Path(__file__).resolve().parents[1]
SETTLE_S = 0.04
"""How long a kernel is left alone before a sample: what the sample before began is over by then."""
SAMPLE_MEMORY_S = 0.005
END_S = 30

Message = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What came back for one cell."""

    seconds: float
    """From sending the request until both the reply and the idle status were there."""
    outputs: tuple[Message, ...]
    """The messages in between that belong to the cell, in their order."""

    @property
    def text(self) -> str:
        """What the cell printed to stdout, and the text form of what it displayed."""
        return "".join(map(_text_of, self.outputs))

    @property
    def has_display(self) -> bool:
        """Whether the cell displayed something rich."""
        return any(message["msg_type"] == "display_data" for message in self.outputs)


def _text_of(message: Message) -> str:
    content = message["content"]
    if message["msg_type"] == "stream":
        return str(content["text"]) if content["name"] == "stdout" else ""
    return str(content.get("data", {}).get("text/plain", ""))


class Kernel:
    """A running kernel whose extension keeps its tasks in `state`, and a client of it.

    folder: for its connection file, configuration, history and log; made when it is missing.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        self._folder = folder
        self._state = state
        self._process: subprocess.Popen[bytes] | None = None
        self._client = BlockingKernelClient()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def _start(self) -> None:
        folders = {name: self._folder / name for name in ("ipython", "config", "data", "runtime")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        connection_file, _ = write_connection_file(
            str(self._folder / "kernel.json"), ip="127.0.0.1", key=secrets.token_hex().encode()
        )
        environment = environment_for(self._state) | {
            "IPYTHONDIR": str(folders["ipython"]),
            "JUPYTER_CONFIG_DIR": str(folders["config"]),
            "JUPYTER_DATA_DIR": str(folders["data"]),
            "JUPYTER_RUNTIME_DIR": str(folders["runtime"]),
            # With it the kernel ends by itself should this process be killed.
            "JPY_PARENT_PID": str(os.getpid()),
        }
        with (self._folder / "kernel.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ipykernel_launcher", "-f", connection_file],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._client.load_connection_file(connection_file)
        self._client.start_channels()
        try:
            self._client.wait_for_ready(timeout=60)
        except RuntimeError as error:
            log_text = (self._folder / "kernel.log").read_text(errors="replace")
            raise BenchmarkError(f"the kernel did not start ({error})\n{log_text}") from error

    @property
    def process(self) -> psutil.Process:
        """The kernel's process."""
        if self._process is None:
            raise BenchmarkError("the kernel was not started")
        return psutil.Process(self._process.pid)

    def kill(self) -> None:
        """Kill the kernel, every process that it still has below it, and what outlives it."""
        with suppress(RuntimeError):
            self._client.stop_channels()
        if self._process is None:
            return
        below = []
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        self._process = None
        kill_all(below)
        end_processes_of(self._state)

    def run(self, source: str, timeout_s: float = 120) -> Reply:
        """Run a cell to its end. Raises `BenchmarkError` when it fails."""
        begun = time.perf_counter()
        sent = self._client.execute(source, allow_stdin=False)
        reply = self._next(self._client.shell_channel, sent, begun + timeout_s)
        outputs = []
        while True:
            message = self._next(self._client.iopub_channel, sent, begun + timeout_s)
            if message["content"].get("execution_state") == "idle":
                break
            outputs.append(message)
        seconds = time.perf_counter() - begun
        if reply["content"]["status"] != "ok" or _complaint(outputs):
            raise BenchmarkError(f"this cell failed:\n{source}\n{_why(reply, outputs)}")
        kept = tuple(m for m in outputs if m["msg_type"] not in {"status", "execute_input"})
        return Reply(seconds, kept)

    def _next(self, channel: Any, sent: str, deadline: float) -> Message:
        """The next message on the channel that belongs to the request."""
        while (left := deadline - time.perf_counter()) > 0:
            with suppress(Empty):
                message: Message = channel.get_msg(timeout=min(left, 1))
                if message["parent_header"].get("msg_id") == sent:
                    return message
            if self._process is None or self._process.poll() is not None:
                raise BenchmarkError("the kernel died")
        raise BenchmarkError("the kernel did not answer in time")

    def value(self, expression: str, timeout_s: float = 120) -> Any:
        """The value of an expression in the kernel, which JSON must be able to carry."""
        sent = self._client.execute(
            "", user_expressions={"value": f"__import__('json').dumps({expression})"}, silent=True
        )
        deadline = time.perf_counter() + timeout_s
        reply = self._next(self._client.shell_channel, sent, deadline)
        value = reply["content"]["user_expressions"]["value"]
        if value["status"] != "ok":
            raise BenchmarkError(f"{expression}: {value['ename']}: {value['evalue']}")
        return json.loads(ast.literal_eval(value["data"]["text/plain"]))

    def settle(self) -> None:
        """Let the kernel come to rest, and take in what it still has to say."""
        time.sleep(SETTLE_S)
        with suppress(Empty):
            while True:
                self._client.iopub_channel.get_msg(timeout=0)

    def send(self, kind: str, content: Message) -> None:
        """Send a message of any kind, as a page does, and wait for nothing."""
        self._client.shell_channel.send(self._client.session.msg(kind, content))

    def heard(self, timeout_s: float) -> list[Message]:
        """What the kernel says next to all its pages, if it says something in this time."""
        with suppress(Empty):
            return [self._client.iopub_channel.get_msg(timeout=timeout_s)]
        return []

    def wait_for_children(self, timeout_s: float = 30) -> None:
        """Wait until every child process of the kernel has ended."""
        _, alive = psutil.wait_procs(self.process.children(recursive=True), timeout=timeout_s)
        if alive:
            raise BenchmarkError(f"still running below the kernel: {alive}")


def notebook_of(state: Path) -> Path:
    """The notebook that all kernels with this state directory pretend to run."""
    return state / "benchmark.ipynb"


def environment_for(state: Path) -> dict[str, str]:
    """The environment of a process that keeps its tasks in `state`, without what is yours.

    Nor does it compile the package anew each time: a user's kernel does not, either.
    """
    yours = ("IPYTASKPERSIST_", "JPY_", "JUPYTER", "IPYTHON", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(yours)} | {
        "IPYTASKPERSIST_DIR": str(state),
        "IPYTASKPERSIST_NOTEBOOK": str(notebook_of(state)),
        "PYTHONPATH": str(CHECKOUT),
    }


def kill_all(processes: list[psutil.Process]) -> None:
    """Kill these very processes, as far as they are still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_processes_of(state: Path) -> None:
    """End the supervisors and tasks that outlived their kernel, as they are meant to.

    A process is known by its environment; looked for again, because one that is about to die may
    have started another.
    """
    deadline = time.monotonic() + END_S
    while found := [each for each in psutil.process_iter() if _keeps_tasks_in(state, each)]:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"cannot be ended: {found}")
        kill_all(found)
        time.sleep(SETTLE_S)


def _keeps_tasks_in(state: Path, process: psutil.Process) -> bool:
    try:
        return bool(process.environ().get("IPYTASKPERSIST_DIR") == str(state))
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return False


def _complaint(outputs: list[Message]) -> str:
    """What the cell said on stderr: a magic that is used wrongly says so there, and no more."""
    return "".join(
        message["content"]["text"]
        for message in outputs
        if message["msg_type"] == "stream" and message["content"]["name"] == "stderr"
    )


def _why(reply: Message, outputs: list[Message]) -> str:
    content = reply["content"]
    return _complaint(outputs) + "\n".join(content.get("traceback", []))


class MemoryWatch:
    """Samples a process's resident memory while the `with` block runs."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before_mb = self.peak_mb = self._now_mb()

    @property
    def growth_mb(self) -> float:
        """How much more it had at its peak than at the beginning."""
        return self.peak_mb - self.before_mb

    def _now_mb(self) -> float:
        return float(self._process.memory_info().rss) / 1e6

    def _watch(self) -> None:
        while not self._end.wait(SAMPLE_MEMORY_S):
            with suppress(psutil.NoSuchProcess):
                self.peak_mb = max(self.peak_mb, self._now_mb())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
