"""What survives what: each promise, shown by doing the real thing to real kernels."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from kernels import NotebookKernel, processes_of, until
from programs import environment

from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.base.records import ProcessRecord, TaskRecord, TaskState
from ipytaskpersist.runners.reconciling import reconcile
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]

# Each counts until a file appears, and then ends by itself.
COUNTERS = {
    "shell": """\
%%background --shell {name}
number=0
while [ ! -e {stop} ]; do echo line $number; number=$((number + 1)); sleep 0.01; done
echo done
""",
    "process": """\
%%background --process {name}
import os, time
number = 0
while not os.path.exists({stop!r}):
    print("line", number)
    number += 1
    time.sleep(0.01)
print("done")
number
""",
}
KINDS = sorted(COUNTERS)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return tmp_path / "survivor.ipynb"


class Counter:
    """A counting task, launched in a kernel and ended by a file."""

    def __init__(
        self, kind: str, kernel: NotebookKernel, store: TaskStore, stop: Path, name: str = "counter"
    ) -> None:
        self._store = store
        self._stop = stop
        self.name = name
        kernel.run(COUNTERS[kind].format(stop=str(stop), name=name))
        (task,) = store.tasks.select(Selection(limit=1))
        self.key = task.key
        until(lambda: self.lines() > 3, message="a few lines")

    def now(self) -> TaskRecord:
        task = self._store.tasks.get(self.key)
        assert task is not None
        return task

    @property
    def process(self) -> ProcessRecord:
        process = self._store.processes.get(self.key)
        assert process is not None
        assert process.pid is not None
        return process

    def text(self) -> str:
        return b"".join(output.data for output in self._store.outputs.of(self.key)).decode()

    def lines(self) -> int:
        return self.text().count("\n")

    def goes_on(self) -> bool:
        """Whether it still counts."""
        before = self.lines()
        until(lambda: self.lines() > before + 3, message="more lines")
        return self.now().state is TaskState.RUNNING

    def finish(self) -> None:
        self._stop.touch()

    def is_whole(self) -> bool:
        """Whether it has counted from nought to its end without a gap."""
        *counted, last = [line for line in self.text().splitlines() if line.startswith(("l", "d"))]
        return counted == [f"line {number}" for number in range(len(counted))] and last == "done"


def listed(kernel: NotebookKernel) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = json.loads(kernel.run("%bg_list --json").text)["tasks"]
    return tasks


# What is done to a kernel. Each returns the kernel that comes after it.


def interrupt(kernel: NotebookKernel, _make: MakeKernel, _notebook: Path) -> NotebookKernel:
    busy = kernel.start("import time\nprint('busy')\ntime.sleep(60)")
    kernel.take_until(lambda: "busy" in busy.text, 30, "a busy kernel")
    kernel.interrupt()
    assert busy.wait(check=False).error
    return kernel


def reload_page(kernel: NotebookKernel, _make: MakeKernel, _notebook: Path) -> NotebookKernel:
    kernel.reconnect()
    return kernel


def restart(kernel: NotebookKernel, _make: MakeKernel, _notebook: Path) -> NotebookKernel:
    kernel.restart()
    return kernel


def kill(kernel: NotebookKernel, _make: MakeKernel, _notebook: Path) -> NotebookKernel:
    kernel.kill()
    kernel.revive()
    return kernel


def crash(kernel: NotebookKernel, _make: MakeKernel, _notebook: Path) -> NotebookKernel:
    psutil.Process(kernel.pid).send_signal(signal.SIGSEGV)
    until(lambda: not kernel.alive, message="death of the kernel")
    kernel.revive()
    return kernel


def shut_down(kernel: NotebookKernel, make: MakeKernel, notebook: Path) -> NotebookKernel:
    kernel.shutdown()
    return make(notebook=notebook, load=False)


SAME_KERNEL = [interrupt, reload_page]
NEXT_KERNEL = [restart, kill, crash, shut_down]


def both(kernel: NotebookKernel, store: TaskStore, tmp_path: Path) -> list[Counter]:
    """A counting shell command and a counting Python process, named after what they are."""
    return [Counter(kind, kernel, store, tmp_path / f"stop-{kind}", kind) for kind in KINDS]


@pytest.mark.parametrize("event", SAME_KERNEL + NEXT_KERNEL, ids=lambda event: event.__name__)
def test_a_process_task_runs_on_and_the_kernel_after_it_has_it_all(
    event: Callable[..., NotebookKernel],
    make_kernel: MakeKernel,
    store: TaskStore,
    notebook: Path,
    tmp_path: Path,
) -> None:
    kernel = make_kernel(notebook=notebook)
    counters = both(kernel, store, tmp_path)
    pids = [counter.process.pid for counter in counters]
    kernel = event(kernel, make_kernel, notebook)
    if event in NEXT_KERNEL:
        greeting = kernel.run("%load_ext ipytaskpersist").text
        assert "2 tasks from before, 2 running" in greeting
    for task in listed(kernel):
        assert (task["state"], task["runner"]) == ("running", "process")
    for counter in counters:
        finish_followed(kernel, counter)
    assert [counter.process.pid for counter in counters] == pids
    for task in listed(kernel):
        assert (task["state"], task["exit_code"]) == ("completed", 0)
    kernel.run("%bg_load process")
    number = kernel.run("print(number)").text.splitlines()[-1]
    (python,) = [counter for counter in counters if counter.name == "process"]
    assert f"line {int(number) - 1}\ndone" in python.text()


def finish_followed(kernel: NotebookKernel, counter: Counter) -> None:
    """Follow a counter from the middle to its end."""
    assert counter.goes_on()
    follow = kernel.start(f"%bg_output {counter.name} --follow")
    seen = counter.lines()
    kernel.take_until(lambda: f"line {seen + 5}\n" in follow.text, 30, "new lines to be followed")
    counter.finish()
    follow.wait()
    assert follow.text.splitlines()[:2] == ["line 0", "line 1"]
    assert "completed" in kernel.run(f"%bg_wait {counter.name}").text
    assert counter.is_whole()


def test_the_next_kernel_cancels_what_the_last_one_launched(
    make_kernel: MakeKernel, store: TaskStore, notebook: Path, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=notebook)
    counters = both(kernel, store, tmp_path)
    pids = [counter.process.pid for counter in counters]
    kernel.restart()
    kernel.run("%load_ext ipytaskpersist")
    for counter, pid in zip(counters, pids, strict=True):
        assert "cancelled" in kernel.run(f"%bg_cancel {counter.name}").text
        task = counter.now()
        assert (task.state, task.reason, task.exit_code) == (TaskState.CANCELLED, "cancelled", -15)
        assert pid is not None
        assert not psutil.pid_exists(pid)


def test_a_task_that_is_killed_has_failed_with_the_signal_and_all_its_output(
    make_kernel: MakeKernel, store: TaskStore, tmp_path: Path
) -> None:
    kernel = make_kernel()
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        counters = both(kernel, store, tmp_path)
        for counter in counters:
            psutil.Process(counter.process.pid).send_signal(number)
        kernel.run("%bg_wait shell process")
        for counter in counters:
            task = counter.now()
            assert (task.state, task.exit_code) == (TaskState.FAILED, -number)
            assert task.reason == f"killed by {number.name}"
            text = counter.text()
            lines = text.count("\n") + 1  # the signal may have come in the middle of one
            assert "".join(f"line {place}\n" for place in range(lines)).startswith(text)


def test_a_rebooted_machine_has_interrupted_its_tasks(
    make_kernel: MakeKernel, store: TaskStore, notebook: Path, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=notebook)
    counters = both(kernel, store, tmp_path)
    kernel.shutdown()
    for supervisor in store.supervisors.unfinished():
        psutil.Process(supervisor.pid).kill()
    # Nobody reboots a machine for a test: the boot that the store remembers is another one.
    store.database.execute("UPDATE supervisors SET boot_id = 'of an earlier boot'")
    following = make_kernel(notebook=notebook)
    assert following.alive
    for counter in counters:
        task = counter.now()
        assert (task.state, task.reason) == (TaskState.INTERRUPTED, "machine rebooted")
        assert task.exit_code is None


def test_a_supervisor_leaves_when_its_kernel_is_gone_and_nothing_is_left_to_do(
    make_kernel: MakeKernel, store: TaskStore, state_dir: Path, tmp_path: Path
) -> None:
    kernel = make_kernel()
    counter = Counter("shell", kernel, store, tmp_path / "stop")
    (supervisor,) = store.supervisors.unfinished()
    kernel.shutdown()
    assert counter.goes_on()
    assert psutil.pid_exists(supervisor.pid)
    counter.finish()
    until(lambda: not processes_of(state_dir), message="the end of the supervisor")
    assert counter.now().state is TaskState.COMPLETED
    assert store.supervisors.unfinished() == []
    logs = state_dir / "logs"
    assert list(logs.iterdir()) == [], [log.read_text() for log in logs.iterdir()]


# The death of a supervisor.


def marked(task_id: str) -> list[int]:
    """The processes that were started for a task."""
    return [process.pid for process in psutil.process_iter() if is_marked(process, task_id)]


def is_marked(process: psutil.Process, task_id: str) -> bool:
    try:
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return not is_zombie and process.environ().get(MARK) == task_id
    except psutil.Error:
        return False


WITNESSED = (
    "sh -c 'while :; do sleep 0.05; done' & n=0; "
    "while :; do echo line $n; echo $n >> {witness}; n=$((n + 1)); {pause}done"
)
"""Counts as fast as it can into two places: the task's output, and a file that nobody buffers."""
LAUNCHING = """
import ipytaskpersist, sys
for line in sys.stdin:
    print(ipytaskpersist.background(line, shell=True).id, flush=True)
"""


class Launching:
    """A program that launches one command after the other."""

    def __init__(self, state_dir: Path) -> None:
        self._environment = environment(state_dir)
        self._start()

    def _start(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-c", LAUNCHING], env=self._environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def launch(self, command: str) -> str:
        """Launch a command and return its task's id, in another program if the last was killed."""
        if self._program.poll() is not None:
            self._start()
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{command}\n")
        self._program.stdin.flush()
        return self._program.stdout.readline().strip()

    def kill(self) -> None:
        """End the program, so that it starts no other supervisor."""
        with self._program as program:
            program.kill()


@pytest.fixture
def launching(state_dir: Path) -> Iterator[Launching]:
    program = Launching(state_dir)
    yield program
    program.kill()


KILLS = int(os.environ.get("IPYTASKPERSIST_KILLS", "20"))


@pytest.mark.timeout(600)
def test_a_supervisor_killed_at_any_moment_leaves_a_prefix_and_nothing_running(
    launching: Launching, store: TaskStore, tmp_path: Path
) -> None:
    """So many kills: an exact prefix, interrupted, and no process of the task is left."""
    chance = random.Random(3)
    for round_number in range(KILLS):
        witness = tmp_path / f"witness-{round_number}"
        pause = chance.choice(["", "sleep 0.001; ", "sleep 0.02; "])
        task_id = launching.launch(WITNESSED.format(witness=witness, pause=pause))
        if round_number % 5:
            until(witness.exists, message="a first line")
        else:  # at its very start, and nobody is there to start it anew
            launching.kill()
        moment = time.monotonic() + chance.uniform(0, 0.25)
        until(lambda at=moment: time.monotonic() >= at, message="the moment to kill")
        (supervisor,) = store.supervisors.unfinished()
        psutil.Process(supervisor.pid).kill()
        until(lambda pid=supervisor.pid: ProcessIdentity.of(pid) is None, message="its death")
        reconcile(store, own_session="")
        task = store.tasks.by_id(task_id)
        assert task is not None
        assert task.state is TaskState.INTERRUPTED
        assert task.reason in ("supervisor died", "process died")
        assert marked(task_id) == []
        assert_is_prefix(store, task, witness)


def assert_is_prefix(store: TaskStore, task: TaskRecord, witness: Path) -> None:
    counted = len(witness.read_text().splitlines()) if witness.exists() else 0
    expected = "".join(f"line {number}\n" for number in range(counted + 1))
    text = b"".join(output.data for output in store.outputs.of(task.key)).decode()
    assert expected.startswith(text), "the stored output is not a prefix of what was printed"


def test_a_kernel_whose_supervisor_has_died_says_so_and_starts_another(
    make_kernel: MakeKernel, store: TaskStore, tmp_path: Path
) -> None:
    kernel = make_kernel()
    counter = Counter("shell", kernel, store, tmp_path / "stop")
    (supervisor,) = store.supervisors.unfinished()
    psutil.Process(supervisor.pid).kill()
    until(lambda: ProcessIdentity.of(supervisor.pid) is None, message="death of the supervisor")
    text = kernel.run("%bg_list").text
    assert "the supervisor died: 1 task interrupted; %bg_resume --all runs it again" in text
    assert counter.now().reason == "supervisor died"
    kernel.run("%%background --shell\necho after")
    assert "completed" in kernel.run("%bg_wait").text
    assert kernel.run("%bg_output").text == "after\n"
    (supervisor,) = store.supervisors.unfinished()
    psutil.Process(supervisor.pid).kill()
    until(lambda: ProcessIdentity.of(supervisor.pid) is None, message="death of the supervisor")
    assert "the supervisor died; it had no running task\n" in kernel.run("%bg_list").text
    assert "has no result; %bg_output 2 shows" in kernel.run("%bg_result", check=False).text


# A real Jupyter server.

SERVER = (
    "import sys; from jupyter_server.serverapp import main; sys.argv[0] = 'jupyter-server'; main()"
)
TOKEN = "a-token-of-the-test"


class Server:
    """A Jupyter server of its own, asked over HTTP as a browser asks it."""

    def __init__(self, state_dir: Path, folder: Path) -> None:
        private = {
            f"JUPYTER_{name}_DIR": str(folder / name.lower())
            for name in ("CONFIG", "DATA", "RUNTIME")
        }
        self._env = environment(
            state_dir, {**private, "HOME": str(folder), "IPYTHONDIR": str(folder)}
        )
        self._runtime = Path(private["JUPYTER_RUNTIME_DIR"])
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", SERVER, "--no-browser", "--allow-root", "--ip=127.0.0.1",
                "--port=0", f"--IdentityProvider.token={TOKEN}",
                f"--ServerApp.root_dir={folder}",
            ],
            env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._url = until(self._find_url, 60, "the server's address")

    def _find_url(self) -> str:
        try:
            file = self._runtime / f"jpserver-{self.process.pid}.json"
            url = str(json.loads(file.read_text())["url"])
        except (OSError, ValueError):
            return ""
        return url if self._answers(url) else ""

    def _answers(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(f"{url}api?token={TOKEN}", timeout=5):
                return True
        except OSError:
            return False

    def start_notebook(self, name: str) -> BlockingKernelClient:
        """Open a notebook, and return a client of its kernel."""
        content = {"type": "notebook", "path": name, "name": name, "kernel": {"name": "python3"}}
        request = urllib.request.Request(
            f"{self._url}api/sessions?token={TOKEN}",
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            kernel_id = json.loads(answer.read())["kernel"]["id"]
        client = BlockingKernelClient()
        client.load_connection_file(str(self._runtime / f"kernel-{kernel_id}.json"))
        client.start_channels(hb=False)  # a busy machine misses beats, and the kernel lives
        client.wait_for_ready(timeout=60)
        return client

    def stop(self) -> None:
        """Stop it as Ctrl-C in its terminal does, with the question answered."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def run_cell(client: BlockingKernelClient, source: str) -> str:
    """Run a cell to its end, and return what it printed."""
    texts: list[str] = []

    def take(message: dict[str, Any]) -> None:
        content = message["content"]
        texts.append(content.get("text") or content.get("data", {}).get("text/plain", ""))

    client.execute_interactive(source, output_hook=take, timeout=60)
    return "".join(texts)


@contextmanager
def jupyter_server(state_dir: Path, folder: Path) -> Iterator[Server]:
    server = Server(state_dir, folder)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def test_a_server_that_ends_takes_its_kernels_along_but_no_process_task(
    state_dir: Path, store: TaskStore, tmp_path: Path
) -> None:
    """Whether it is stopped or killed."""
    for how in ("stopped", "killed"):
        stop = tmp_path / how
        with jupyter_server(state_dir, tmp_path) as server:
            client = server.start_notebook("work.ipynb")
            said = run_cell(client, "%load_ext ipytaskpersist")
            if how == "killed":  # and the first one was stopped
                assert_runs_on(client, said, "stopped", tmp_path / "stopped")
            kernel_pid = int(run_cell(client, "import os; print(os.getpid())"))
            run_cell(client, COUNTERS["shell"].format(stop=stop, name=how))
            client.stop_channels()
            end_server(server, how, kernel_pid)
        (task,) = store.tasks.select(Selection(limit=1))
        assert task.name == how
        until(lambda key=task.key: state_of(store, key) is TaskState.RUNNING, 60, "its start")
    with jupyter_server(state_dir, tmp_path) as server:
        client = server.start_notebook("work.ipynb")
        said = run_cell(client, "%load_ext ipytaskpersist")
        assert_runs_on(client, said, "killed", tmp_path / "killed")
        client.stop_channels()


def state_of(store: TaskStore, key: int) -> TaskState | None:
    task = store.tasks.get(key)
    return None if task is None else task.state


def end_server(server: Server, how: str, kernel_pid: int) -> None:
    """End a server with its kernel, which one that is killed cannot do itself."""
    if how == "stopped":
        server.stop()
    else:
        server.process.kill()
        server.process.wait(30)
        psutil.Process(kernel_pid).kill()
    until(lambda: not psutil.pid_exists(kernel_pid), message="the end of the kernel")


def assert_runs_on(client: BlockingKernelClient, said: str, name: str, stop: Path) -> None:
    """The next kernel has the task that the last one launched, until it ends."""
    assert "1 running" in said
    stop.touch()
    assert "completed" in run_cell(client, f"%bg_wait {name}")
    assert run_cell(client, f"%bg_output {name}").endswith("done\n")
