"""Python tasks that begin in a copy of a warm interpreter: as in a fresh one, only sooner."""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from random import Random
from threading import Event, Timer
from typing import Any

import psutil
import pytest
from kernels import NotebookKernel, end_processes_of, processes_of, until

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.detached import python_command
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.base.records import Options, ProcessRecord
from ipytaskpersist.runners import warm, warm_starts
from ipytaskpersist.runners.channel import DESCRIPTOR
from ipytaskpersist.runners.fork_work import READY, START, Work
from ipytaskpersist.runners.import_time_variables import differing
from ipytaskpersist.runners.session_modules import SessionModules
from ipytaskpersist.runners.task_rows import TaskRows
from ipytaskpersist.runners.warm import ForkServer, NotForked
from ipytaskpersist.runners.warm_starts import WarmStarts
from ipytaskpersist.store.task_store import TaskStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

READY_S = 60
SERVER = "runners.fork_server"


def is_quiet(process: psutil.Process, before: dict[int, float]) -> bool:
    """Whether a process has done nothing since the last look."""
    used = sum(process.cpu_times()[:2])
    known, before[process.pid] = before.get(process.pid), used
    return known == used and process.status() == psutil.STATUS_SLEEPING


def is_server(process: psutil.Process) -> bool:
    """Whether it is a fork server, or waits for a task."""
    try:
        return any(SERVER in word for word in process.cmdline())
    except psutil.Error:
        return False


class Notebook:
    """A kernel with the extension, and its process tasks."""

    def __init__(self, kernel: NotebookKernel, state_dir: Path) -> None:
        self.kernel = kernel
        self.state_dir = state_dir

    def launch(self, source: str, flags: str = "") -> None:
        self.kernel.run(f"%%background --process {flags}\n{source}")

    def process(self, source: str, flags: str = "") -> dict[str, Any]:
        """Run a cell in a process to its end; return what `show --json` says of it."""
        self.launch(source, flags)
        self.kernel.run("%bg_wait")
        return self.shown()

    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.kernel.run("%bg_show --json").stream("stdout"))
        return shown

    def outputs(self) -> list[dict[str, Any]]:
        outputs: list[dict[str, Any]] = json.loads(
            self.kernel.run("%bg_output --json").stream("stdout")
        )
        return outputs

    def printed(self) -> str:
        return "".join(out["text"] for out in self.outputs() if out["output_type"] == "stream")

    def interpreter(self, source: str = "pass", flags: str = "") -> str:
        """Which interpreter a task had, that ran to its end."""
        interpreter: str = self.process(source, flags)["process"]["interpreter"]
        return interpreter

    def facts(self, source: str, flags: str = "") -> Any:
        """What a cell prints as JSON."""
        self.process(source, flags)
        return json.loads(self.printed())

    def servers(self) -> list[psutil.Process]:
        found = [each for each in processes_of(self.state_dir) if is_server(each)]
        return sorted(found, key=psutil.Process.create_time)[:1]  # not one that waits for a task

    def server(self) -> psutil.Process:
        """The fork server, once it has nothing to do any more."""
        before: dict[int, float] = {}

        def idle() -> psutil.Process | None:
            return next((each for each in self.servers() if is_quiet(each, before)), None)

        found = until(idle, READY_S, "a fork server with nothing to do")
        assert found is not None
        return found

    def warm(self) -> psutil.Process:
        """Run tasks until one was warm; return the fork server."""

        def has_been_warm() -> bool:
            self.server()
            return self.interpreter() == "warm"

        if self.interpreter() != "warm":
            until(has_been_warm, READY_S, "a task in a warm interpreter")
        return self.server()

    def in_warm(self, source: str, flags: str = "") -> dict[str, Any]:
        """The same as `process`, until it was in a warm interpreter.

        The server may just have been importing what the kernel has imported since.
        """

        def run() -> dict[str, Any] | None:
            shown = self.process(source, flags)
            return shown if shown["process"]["interpreter"] == "warm" else None

        found = until(run, READY_S, "a task in a warm interpreter")
        assert found is not None
        return found

    def supervisor(self) -> psutil.Process:
        store = TaskStore(StateDirectory(self.state_dir)).open()
        (supervisor,) = store.supervisors.unfinished()
        store.close()
        return psutil.Process(supervisor.pid)


@contextmanager
def a_notebook(folder: Path) -> Iterator[Notebook]:
    with NotebookKernel(folder / "state", notebook=folder / "one.ipynb") as kernel:
        kernel.run("%load_ext ipytaskpersist")
        kernel.run("import numpy, pandas, matplotlib.pyplot")
        notebook = Notebook(kernel, folder / "state")
        try:
            notebook.warm()
            yield notebook
        finally:
            end_processes_of(folder / "state")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    with a_notebook(tmp_path_factory.mktemp("warm")) as notebook:
        yield notebook


@pytest.fixture
def own_notebook(tmp_path: Path) -> Iterator[Notebook]:
    """One whose session may end its warm starts: five failures in a row do."""
    with a_notebook(tmp_path) as notebook:
        yield notebook


FACTS = """
import atexit, ctypes, gc, json, locale, logging, os, resource, signal, sys, threading, warnings
shell = get_ipython()
descriptors = sorted(os.listdir("/proc/self/fd"))
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
mask = os.umask(0)
os.umask(mask)
mark = os.environ.pop("IPYTASKPERSIST_TASK")
with open("/proc/self/environ", "rb") as file:
    shown = file.read().split(b"\\0")
print(json.dumps({
    "directory": os.getcwd(), "umask": mask, "descriptors": len(descriptors),
    "leads": os.getpid() == os.getpgrp() == os.getsid(0),
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
    "handlers": [repr(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()],
    "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "flags": repr(sys.flags), "arguments": sys.argv, "command": sys.orig_argv[1:],
    "collects": [gc.isenabled(), gc.get_threshold()], "locale": locale.setlocale(locale.LC_ALL),
    "filters": [repr(each) for each in warnings.filters],
    "logs": [len(logging.root.handlers), logging.root.level],
    "threads": [each.name for each in threading.enumerate()],
    "environment": sorted(os.environ.items()), "home": libc.getenv(b"HOME").decode(),
    "terminals": [os.isatty(n) for n in range(3)], "path": sys.path,
    "streams": [[s.encoding, s.errors, s.line_buffering] for s in (sys.__stdout__, sys.__stderr__)],
    "mark": f"IPYTASKPERSIST_TASK={mark}".encode() in shown,
    "unset": libc.getenv(b"IPYTASKPERSIST_TASK") is None,
    "names": sorted(name for name in globals() if not name.startswith("_")),
    "histories": [shell.starting_dir, _dh, In, Out], "hidden": sorted(shell.user_ns_hidden),
    "main": [shell.user_module is sys.modules["__main__"], shell.Completer.namespace is globals()],
    "magics": sorted(shell.magics_manager.magics["line"]), "events": {
        name: [repr(each).split(" at ")[0] for each in calls if "matplot" not in each.__module__]
        for name, calls in shell.events.callbacks.items()
    },
    "server": [name for name in sys.modules if "fork_server" in name],
    "niceness": os.nice(0), "argument": open("/proc/self/cmdline").read().split("\\0")[1:4],
}, default=str))
"""


def test_it_finds_what_it_would_find_in_a_fresh_interpreter(notebook: Notebook) -> None:
    notebook.warm()
    fresh = notebook.facts(FACTS, "--fresh")
    notebook.in_warm(FACTS)
    warm = json.loads(notebook.printed())
    assert warm["mark"]
    assert warm["unset"]
    assert {name: (warm[name], fresh[name]) for name in fresh if warm[name] != fresh[name]} == {}


ENDINGS = {
    "status": "import sys\nsys.exit(3)",
    "message": "import sys\nsys.exit('no')",
    "exception": "print('before')\n1 / 0",
    "terminated": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "crash": "import ctypes\nprint('before', flush=True)\nctypes.string_at(0)",
    "at once": "import os\nos._exit(4)",
    "interrupt": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)",
    "thread": "import threading, time\nthreading.Timer(0.1, print, ['later']).start()",
    "value": """
import atexit, ctypes, os, subprocess
import matplotlib.pyplot as plt
import pandas
from tqdm.auto import tqdm

ctypes.CDLL(None).printf(b'from C\\n')
print('Python')
os.system('echo one')
subprocess.run(['echo', 'two'])
atexit.register(print, 'at exit')
left = open('left.txt', 'w')
left.write('flushed')
lines = plt.plot([1, 2])
lines.clear()
print(type(tqdm(range(3))).__module__)
print(pandas.get_option('display.max_columns'))
pandas.DataFrame({'a': [1, 2]})
""",
}


def shapes(outputs: list[dict[str, Any]]) -> list[Any]:
    """The kinds of outputs, with the formats and texts of what was displayed."""
    shown = [out.get("data", {}) for out in outputs]
    return [(sorted(data), str(data.get("text/plain")).split(" at 0x")[0]) for data in shown]


@pytest.mark.parametrize("source", ENDINGS.values(), ids=ENDINGS)
def test_it_ends_and_prints_as_in_a_fresh_interpreter(notebook: Notebook, source: str) -> None:
    def told(shown: dict[str, Any]) -> list[Any]:
        parts = [shown[name] for name in ("state", "reason", "exit_code", "result", "variables")]
        return [parts, notebook.printed(), shapes(notebook.outputs())]

    fresh = told(notebook.process(source, "--fresh"))
    assert told(notebook.in_warm(source)) == fresh


UNFINISHED = """
import sys, threading, zipfile, pathlib
pathlib.Path('holder.py').write_text('file = None\\n')
import holder

class Told:
    def __init__(self, name): self.name, self.stays_here = name, threading.Lock()
    def __del__(self): print('deleted', self.name)

def written(name):
    file = open(name, 'w')
    file.write('written')
    return file

holder.file = written('module.txt')
sys.modules['json'].kept_for_test = written('library.txt')
variable, listed = written('variable.txt'), [written('listed.txt')]
archive = zipfile.ZipFile('archive.zip', 'w')
archive.writestr('inside', 'written')
variable_told, holder.told = Told('variable'), Told('module')
"""
DAEMON = """
ticking = 0
def tick():
    global ticking
    while True:
        ticking += 1
threading.Thread(target=tick, daemon=True).start()
"""


@pytest.mark.parametrize("more", ["", DAEMON], ids=["alone", "daemon thread"])
def test_what_a_task_leaves_unfinished_is_finished_at_its_end(
    notebook: Notebook, more: str, tmp_path: Path
) -> None:
    def left(flags: str) -> tuple[str, dict[str, bytes]]:
        folder = tmp_path / f"left-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (notebook.process if flags else notebook.in_warm)(
            f"import os; os.chdir({str(folder)!r}); import sys; sys.path.insert(0, '')"
            f"{UNFINISHED}{more}",
            flags,
        )
        files = {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}
        archive = files.pop("archive.zip")
        return notebook.printed(), {**files, "archive.zip": archive[-22:]}

    fresh = left("--fresh")
    assert fresh[1]["module.txt"] == b"written"
    printed, files = left("")
    assert files == fresh[1]
    # At the very end, an interpreter no longer prints.
    assert printed.startswith("deleted variable\n" if not more else "")
    assert printed.startswith(fresh[0])


DRAWS = """
import json, multiprocessing, os, random, secrets, ssl, tempfile, uuid
import numpy
numpy.random.standard_normal(3)
name = tempfile.mkdtemp()
os.rmdir(name)
print(json.dumps([
    random.random(), numpy.random.random(), float(numpy.random.default_rng().random()), name,
    str(uuid.uuid4()), str(uuid.uuid1()), multiprocessing.current_process().authkey.hex(),
    ssl.RAND_bytes(8).hex(), secrets.token_hex(8),
]))
"""


def test_no_two_draw_the_same(notebook: Notebook) -> None:
    notebook.warm()
    drawn = []
    for _task in range(3):
        notebook.in_warm(DRAWS)
        drawn.append(json.loads(notebook.printed()))
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == 3, values


def test_a_task_has_what_is_its_own(notebook: Notebook, tmp_path: Path) -> None:
    notebook.warm()
    tell = "import os, time\nprint(os.getcwd(), os.environ['COLOUR'], time.tzname[0], "
    tell += "os.popen('echo $COLOUR').read().strip())"
    flags = f"--cwd '{tmp_path}' --env COLOUR=blue --env TZ=Asia/Tokyo"
    notebook.in_warm(tell, flags)
    assert notebook.printed() == f"{tmp_path} blue JST blue\n"


def test_what_a_task_changes_is_not_in_the_next_one(notebook: Notebook) -> None:
    notebook.warm()
    notebook.process("import numpy, os\nnumpy.changed = os.environ['CHANGED'] = 'yes'")
    source = "import numpy, os\nprint(hasattr(numpy, 'changed'))"
    notebook.in_warm(source)
    assert notebook.printed() == "False\n"


CHILDREN = """
import os, subprocess, time
subprocess.Popen(["sleep", "998"])
subprocess.Popen(["sleep", "998"], start_new_session=True, env={})
if not os.fork():
    os.setsid()
    time.sleep(998)
print("begun", flush=True)
time.sleep(999)
"""


def begun(notebook: Notebook) -> set[psutil.Process]:
    """Launch a warm task with children, and return its processes."""
    notebook.warm()
    notebook.launch(CHILDREN)
    until(lambda: "begun" in notebook.printed(), message="the task's line")
    assert notebook.shown()["process"]["interpreter"] == "warm"
    task = psutil.Process(notebook.shown()["process"]["pid"])
    found = {task, *task.children(recursive=True)}
    assert len(found) == 4
    return found


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_cancel_ends_all_its_processes(notebook: Notebook) -> None:
    processes = begun(notebook)
    notebook.kernel.run("%bg_cancel")
    notebook.kernel.run("%bg_wait --timeout 30")
    assert notebook.shown()["state"] == "cancelled"
    assert all(map(is_gone, processes))


def test_it_is_its_supervisors_child_and_no_other_process_is(notebook: Notebook) -> None:
    notebook.warm()
    notebook.in_warm("import os\nprint(os.getppid())")
    supervisor = notebook.supervisor()
    assert notebook.printed() == f"{supervisor.pid}\n"
    until(
        lambda: len(supervisor.children()) == 2,
        message="only the server, and a process that waits",
    )


# The server is expendable.


def test_without_its_server_a_task_starts_fresh_and_then_there_is_another(
    notebook: Notebook,
) -> None:
    server = notebook.warm()
    server.kill()
    server.wait(30)
    assert notebook.interpreter("print('all the same')").startswith("fresh (")
    assert notebook.printed() == "all the same\n"
    assert notebook.warm().pid != server.pid


def kill_if_server(process: psutil.Process) -> None:
    """Kill a fork server, but not a process that has just become a task."""
    if is_server(process):
        process.suspend()
        if is_server(process):
            process.kill()
        process.resume()


def test_servers_killed_at_any_moment_cost_no_task(own_notebook: Notebook) -> None:
    notebook, enough = own_notebook, Event()

    def kill_servers() -> None:
        dice = Random(7)
        while not enough.wait(dice.random()):
            for process in processes_of(notebook.state_dir):
                with suppress(psutil.NoSuchProcess):
                    kill_if_server(process)

    with ThreadPoolExecutor(1) as killer:
        killing = killer.submit(kill_servers)
        for number in range(12):
            shown = notebook.process(f"print({number})")
            assert [shown["state"], notebook.printed()] == ["completed", f"{number}\n"]
        enough.set()
        killing.result()


def test_a_server_that_hangs_keeps_no_task_from_starting(notebook: Notebook) -> None:
    server = notebook.warm()
    server.suspend()
    notebook.process("print(1)")
    assert notebook.printed() == "1\n"
    until(lambda: is_gone(server), message="the end of the server")
    notebook.process("print(2)")
    assert notebook.printed() == "2\n"


def test_what_libraries_read_at_their_import_needs_a_fresh_interpreter(notebook: Notebook) -> None:
    notebook.warm()
    told = notebook.interpreter(
        "import os\nprint(os.environ['OMP_NUM_THREADS'])", "--env OMP_NUM_THREADS=1"
    )
    assert told == "fresh (OMP_NUM_THREADS differs)"
    assert notebook.printed() == "1\n"
    assert notebook.interpreter() == "warm", "only that task had another environment"
    notebook.kernel.run("import os; os.environ['PANDAS_COPY_ON_WRITE'] = '1'")
    assert notebook.interpreter() == "fresh (PANDAS_COPY_ON_WRITE differs)"
    notebook.warm()
    notebook.kernel.run("del os.environ['PANDAS_COPY_ON_WRITE']")


def test_a_server_follows_the_kernels_imports(notebook: Notebook) -> None:
    notebook.warm()
    loaded = "import sys\nprint('defusedxml.minidom' in sys.modules)"
    assert notebook.process(loaded)
    assert notebook.printed() == "False\n"
    notebook.kernel.run("import defusedxml.minidom")

    def has_followed() -> bool:
        notebook.warm()
        return notebook.interpreter(loaded) == "warm" and notebook.printed() == "True\n"

    until(has_followed, READY_S, "a server with defusedxml")


def test_a_fresh_interpreter_can_be_asked_for(notebook: Notebook) -> None:
    notebook.warm()
    assert notebook.interpreter(flags="--fresh") == "fresh (--fresh)"
    assert "fresh (--fresh)" in notebook.kernel.run("%bg_show").text
    notebook.kernel.run("%bg_rerun")
    notebook.kernel.run("%bg_wait")
    assert notebook.shown()["process"]["interpreter"] == "fresh (--fresh)"
    for where, why in (("--thread", "needs a process"), ("--shell", "has no interpreter")):
        refused = notebook.kernel.run(f"%%background {where} --fresh\npass", check=False)
        assert refused.error is not None
        assert "--fresh" in refused.error[1]
        assert why in refused.error[1]


def test_the_setting_turns_it_off(notebook: Notebook) -> None:
    notebook.warm()
    notebook.kernel.run("%config BackgroundTasks.warm_processes = False")
    try:
        assert notebook.interpreter() == "fresh (warm_processes is off)"
    finally:
        notebook.kernel.run("%config BackgroundTasks.warm_processes = True")
    examined = notebook.kernel.run("%bg_doctor").text
    assert "Python process tasks, " in examined
    assert "1 fresh (warm_processes is off)" in examined


def test_a_killed_supervisor_leaves_neither_task_nor_server(notebook: Notebook) -> None:
    processes, server = begun(notebook), notebook.server()
    supervisor = notebook.supervisor()
    supervisor.kill()

    def are_gone() -> bool:
        notebook.kernel.run("%bg_list")
        return all(map(is_gone, [*processes, server]))

    until(are_gone, message="the end of the task's processes and of the server")
    assert notebook.shown()["state"] == "interrupted"
    assert notebook.shown()["reason"] == "supervisor died"


# Modules that a server must not have.

MODULES = {
    "raises": "raise RuntimeError('no')",
    "prints": "print('hello')",
    "warns": "import warnings\nwarnings.warn('hello')",
    "leaves": "import os\nos._exit(3)",
    "hangs": "import time\ntime.sleep(999)",
    "forks": "import os, time\nif not os.fork():\n    time.sleep(5)",
    "starts": "import subprocess\nchild = subprocess.Popen(['sleep', '5'])",
    "threads": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=[99], daemon=True).start()",
    "opens": "file = open(__file__)",
    "asks": "get_ipython().events.register('pre_run_cell', print)",
}


class Session:
    """What a supervisor does with its fork servers, in this process."""

    def __init__(self, folder: Path, modules: Sequence[str]) -> None:
        self.log: list[str] = []
        self.modules = list(modules)
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self.starts = WarmStarts(
            self._selector, nullcontext, lambda: self.modules, self.rows, self.log.append
        )
        self.process = ProcessRecord(
            0, "a-1", "python", [*python_command("runners.child", "-u"), str(folder)], None, None,
            str(folder), {}, False, None, 5, Options(), None, None, None, None, None,
        )  # fmt: skip
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}

    def rows(self, process: ProcessRecord) -> TaskRows:
        nothing: Any = None
        return TaskRows(nothing, process, nothing, nothing)

    def turn(self) -> None:
        for _key in self._selector.select(0):
            self.starts.read()
        self.starts.turn(time.monotonic())

    @property
    def server(self) -> ForkServer | None:
        return self.starts._server

    def is_ready(self) -> bool:
        self.turn()
        return self.server is not None and self.server.is_ready

    def has_given_up(self) -> bool:
        self.turn()
        return self.server is None and not self.starts._can_be

    def begin(self) -> ForkServer:
        """Have a task begin, and wait for the server that follows."""
        self.starts.begun(self.process, self.environment)
        until(self.is_ready, READY_S, "a server that is ready")
        assert self.server is not None
        return self.server


@pytest.fixture
def session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Sequence[str]], Session]]:
    for name, value in (("SETTLE_S", 0), ("BUSY_S", 0), ("IMPORT_S", 1.0)):
        monkeypatch.setattr(warm_starts, name, value)
    made: list[Session] = []

    def make(modules: Sequence[str]) -> Session:
        made.append(Session(tmp_path, modules))
        return made[-1]

    yield make
    for each in made:
        each.starts.end()


# Five servers in a row that end early would be the last: as many bad ones at once are too many.
@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_module_that_does_more_than_its_import_is_left_out(
    session: Callable[[Sequence[str]], Session], tmp_path: Path, first: int
) -> None:
    names = [*MODULES][first::3]
    (tmp_path / "harmless.py").write_text("")
    for name in names:
        (tmp_path / f"{name}.py").write_text(MODULES[name])
    inside = [f"{name}.inside" for name in names]
    here = session(["harmless", *names, *inside])
    server = here.begin()
    assert list(server.packages) == ["harmless"]
    assert list(server.modules) == ["harmless"]
    said = "\n".join(here.log)
    assert [name for name in names if f"tasks import {name} themselves" not in said] == []


def test_there_are_no_more_servers_when_none_gets_ready(
    session: Callable[[Sequence[str]], Session], tmp_path: Path
) -> None:
    names = [f"leaves{n}" for n in range(9)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(MODULES["leaves"])
    here = session(names)
    here.starts.begun(here.process, here.environment)
    until(here.has_given_up, READY_S, "the end of the last server")


def test_without_memory_there_is_no_server(
    session: Callable[[Sequence[str]], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: Any) -> ForkServer:
        server = ForkServer(*arguments)
        resource.prlimit(server.pid, resource.RLIMIT_AS, (2**25, 2**25))
        return server

    monkeypatch.setattr(warm_starts, "ForkServer", start)
    here = session(["numpy"])
    here.starts.begun(here.process, here.environment)
    until(here.has_given_up, READY_S, "the end of the last server")
    with pytest.raises(NotForked, match="no warm one here"):
        here.starts.fork(here.process, here.environment, (1, 2, 1))


def test_a_changed_module_needs_another_server(
    session: Callable[[Sequence[str]], Session], tmp_path: Path
) -> None:
    module = tmp_path / "changing.py"
    module.write_text("a = 1")
    here = session(["changing"])
    first = here.begin()
    module.write_text("a = 22")
    os.utime(module, (1, 1))
    with pytest.raises(NotForked, match="packages have changed"):
        here.starts.fork(here.process, here.environment, (1, 2, 1))
    assert here.begin().pid != first.pid


def test_a_server_leaves_when_its_supervisor_does(
    session: Callable[[Sequence[str]], Session],
) -> None:
    server = session([]).begin()
    process = psutil.Process(server.pid)
    os.kill(server.pid, 0)
    server._socket.shutdown(2)
    until(lambda: is_gone(process), message="the end of the server")


def test_a_forked_process_that_its_supervisor_does_not_know_runs_nothing(
    session: Callable[[Sequence[str]], Session], tmp_path: Path
) -> None:
    here = session([])
    server = here.begin()
    server.prefork()
    waiting = server._waiting
    assert waiting is not None
    work = Work(str(tmp_path), {MARK: "a-1", "COLOUR": "blue"}, here.rows(here.process))
    warm._send(waiting._socket, START, work, (1, 2, 1))
    assert warm._answer(waiting._socket) == READY.decode()
    shown = Path(f"/proc/{waiting.pid}/environ").read_bytes().split(b"\0")
    assert f"{MARK}=a-1".encode() in shown
    assert b"COLOUR=blue" in shown
    waiting.close()
    assert os.waitpid(waiting.pid, 0)[1] == 1 << 8


def test_a_server_killed_while_it_forks_leaves_nothing(
    session: Callable[[Sequence[str]], Session],
) -> None:
    here, dice = session([]), Random(7)
    null = os.open(os.devnull, os.O_RDWR)
    environment = {**here.environment, MARK: "a-1", DESCRIPTOR: str(null)}
    for _round in range(6):
        server = here.begin()
        server._forget_waiting()
        killing = Timer(dice.random() * 0.02, os.kill, (server.pid, signal.SIGKILL))
        killing.start()
        with suppress(NotForked):
            os.waitpid(here.starts.fork(here.process, environment, (null, null, null)), 0)
        killing.join()
        here.starts._drop()
        until(lambda: process_tree.Snapshot().of_task("a-1", None) == [], message="its end")
    os.close(null)


def test_a_process_that_waits_ends_with_its_server(
    session: Callable[[Sequence[str]], Session],
) -> None:
    here = session([])
    server = here.begin()
    server.prefork()
    waiting, own = [psutil.Process(pid) for pid in server.pids][::-1]
    assert waiting.ppid() == own.ppid() == os.getpid()
    own.kill()
    until(lambda: here.turn() or here.server is not server, message="the end of the server")
    until(lambda: is_gone(waiting), message="the end of the process")


def test_a_server_that_does_not_answer_is_ended(
    session: Callable[[Sequence[str]], Session],
) -> None:
    here = session([])
    server = here.begin()
    process = psutil.Process(server.pid)
    server._forget_waiting()
    process.suspend()
    with pytest.raises(NotForked, match="did not answer within 1 s"):
        here.starts.fork(here.process, here.environment, (1, 2, 1))
    assert is_gone(process)


# What is imported, and what it depends on.


def test_modules_of_the_environment_are_found_and_those_of_a_folder_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "edited.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("edited")
    __import__("numpy.linalg")
    names = SessionModules().names()
    assert {"numpy", "numpy.linalg"} <= {*names}
    tops = {name.partition(".")[0] for name in names}
    assert tops & {"edited", "json", "ipytaskpersist", "IPython", "kernels"} == set()


def test_variables_that_are_read_at_an_import_are_known() -> None:
    before = {"HOME": "/a", "COLOUR": "red", "POLARS_MAX_THREADS": "1"}
    after = {"HOME": "/a", "COLOUR": "blue", "POLARS_MAX_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    assert differing(before, after, []) == ["CUDA_VISIBLE_DEVICES"]
    assert differing(before, after, ["polars"]) == ["CUDA_VISIBLE_DEVICES", "POLARS_MAX_THREADS"]
