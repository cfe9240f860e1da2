"""What a task in a thread has started ends with its kernel, whatever ends that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from kernels import NotebookKernel, until
from programs import run_command

from ipytaskpersist.base import leftover_processes
from ipytaskpersist.base.leftover_processes import Kernel, Mark
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.runners.guard import guard

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

PROMPTLY_S = 12
JOBS = """
import os, time
def stay(name):
    open(f"began/{name}-{os.getpid()}", "w").close()
    time.sleep(999)
"""
SLEEP = "touch began/{name}-$$; exec sleep 999"
STUBBORN = "trap : TERM; touch began/{name}-$$; while :; do sleep 999; done"
MEMBERS = {
    "popen": "import subprocess; subprocess.Popen(['sh', '-c', '{sleep}'])",
    "run": "import subprocess; subprocess.run('{sleep}', shell=True)",
    "clean": "import subprocess; subprocess.run(['/bin/sh', '-c', '{sleep}'], env={{}})",
    "unclosed": "import subprocess; subprocess.run(['sh', '-c', '{sleep}'], close_fds=False)",
    "stubborn": "import subprocess; subprocess.run('{stubborn}', shell=True)",
    "orphan": "import subprocess; subprocess.run(['sh', '-c', 'sh -c \"$0\" & exit', '{sleep}'])",
    "nohup": "import subprocess; subprocess.run(['nohup', 'sh', '-c', '{sleep}'])",
    "system": "import os; os.system('{sleep}')",
    "command": "!{sleep}",
    "magic": "%%bash\n{sleep}",
    "asyncio": """
        import asyncio
        process = await asyncio.create_subprocess_shell('{sleep}')
        await process.wait()""",
    "process": """
        import jobs, multiprocessing
        multiprocessing.get_context('fork').Process(target=jobs.stay, args=['{name}']).start()""",
    "spawned": """
        import jobs, multiprocessing
        one = multiprocessing.get_context('spawn').Process(target=jobs.stay, args=['{name}'])
        one.start(); one.join()""",
    "served": """
        import jobs, multiprocessing
        one = multiprocessing.get_context('forkserver').Process(target=jobs.stay, args=['{name}'])
        one.start(); one.join()""",
    "pool": """
        import jobs, multiprocessing
        with multiprocessing.get_context('fork').Pool(2) as pool:
            pool.map(jobs.stay, ['{name}'] * 2)""",
    "spawned_pool": """
        import jobs, multiprocessing
        with multiprocessing.get_context('spawn').Pool(2) as pool:
            pool.map(jobs.stay, ['{name}'] * 2)""",
    "executor": """
        import concurrent.futures, jobs
        with concurrent.futures.ProcessPoolExecutor(2) as executor:
            list(executor.map(jobs.stay, ['{name}'] * 2))""",
    "joblib": """
        import jobs, joblib
        joblib.Parallel(n_jobs=2)(joblib.delayed(jobs.stay)('{name}') for _ in range(2))""",
    "fork": """
        import jobs, os
        if not os.fork():
            jobs.stay('{name}')""",
    "fork_in_fork": """
        import jobs, os
        if not os.fork():
            if not os.fork():
                jobs.stay('{name}')
            os._exit(0)
        os.wait()""",
    "exec": """
        import os
        if not os.fork():
            os.execve('/bin/sh', ['sh', '-c', '{sleep}'], {{}})""",
    "spawnv": "import os; os.spawnv(os.P_WAIT, '/bin/sh', ['sh', '-c', '{sleep}'])",
    "posix_spawn": "import os; os.posix_spawn('/bin/sh', ['sh', '-c', '{sleep}'], os.environ)",
}  # fmt: skip
DETACHED = {
    "session": """
        import subprocess
        subprocess.Popen(['sh', '-c', '{sleep}'], start_new_session=True)""",
    "setsid": "import subprocess; subprocess.run(['setsid', 'sh', '-c', '{sleep}'])",
}


def process(pid: int) -> psutil.Process:
    """A process with this pid, which is told from later ones by its start."""
    found = psutil.Process(pid)
    found.create_time()
    return found


def is_alive(one: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    return False


def launched(kernel: NotebookKernel, members: dict[str, str]) -> dict[str, list[psutil.Process]]:
    """Launch each member in a task of its own. Returns the processes of each, all begun."""
    began = kernel.cwd / "began"
    began.mkdir(exist_ok=True)
    (kernel.cwd / "jobs.py").write_text(JOBS)
    for name, code in members.items():
        filled = code.format(
            name=name, sleep=SLEEP.format(name=name), stubborn=STUBBORN.format(name=name)
        )
        lines = [line[8:] if line.startswith(" " * 8) else line for line in filled.splitlines()]
        kernel.run(f"%%background --thread {name}\n" + "\n".join(lines).lstrip("\n"))

    def of(name: str) -> list[psutil.Process]:
        return [process(int(file.name.split("-")[-1])) for file in began.glob(f"{name}-*")]

    count = {name: 2 if name in {"pool", "spawned_pool", "executor", "joblib"} else 1
             for name in members}  # fmt: skip
    for name in members:
        until(lambda name=name: len(of(name)) == count[name], 60, f"the processes of {name}")
    return {name: of(name) for name in members}


def left(processes: dict[str, list[psutil.Process]]) -> dict[str, int]:
    """How many of the processes of each member are alive, where there are any."""
    counts = {name: sum(map(is_alive, found)) for name, found in processes.items()}
    return {name: count for name, count in counts.items() if count}


def end(processes: dict[str, list[psutil.Process]]) -> None:
    for one in [one for found in processes.values() for one in found]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def descendants(kernel: NotebookKernel) -> list[psutil.Process]:
    """What a kernel has started, but for processes of sessions of their own."""
    found = psutil.Process(kernel.pid).children(recursive=True)
    return [one for one in found if os.getsid(one.pid) == os.getsid(kernel.pid)]


def exited(kernel: NotebookKernel) -> None:
    kernel.start("exit")
    until(lambda: not kernel.alive, 30, "the end of the kernel")


ENDS: dict[str, Callable[[NotebookKernel], None]] = {
    "restarted": NotebookKernel.restart,
    "shut down": lambda kernel: kernel._manager.shutdown_kernel(),
    "exited": exited,
    "killed": NotebookKernel.kill,
    "killed with its group": lambda kernel: os.killpg(kernel.pid, signal.SIGKILL),
}


IN_TERMINAL = {
    "command": MEMBERS["command"],
    "deaf": "!trap '' HUP; {sleep}",
    "pexpect": "import pexpect; pexpect.spawn('sh', ['-c', '{sleep}']).expect('x', timeout=None)",
    "pty": "import pty; pty.spawn(['sh', '-c', '{sleep}'])",
    "stubborn": "!{stubborn}",
}
AND_LEFT_BEHIND = {"nohup": "!(nohup sh -c '{sleep}' > /dev/null 2>&1 &)"}


@pytest.mark.parametrize("how", ["shut down", "killed"])
def test_what_runs_in_a_terminal_ends_with_a_kernel_that_ignores_its_hanging_up(
    make_kernel: Callable[..., NotebookKernel], how: str
) -> None:
    """As one does that was started by nohup, and hands that on to what it starts."""
    kernel = make_kernel(run_by=["sh", "-c", 'trap \'\' HUP; exec "$0" "$@"'])
    started = launched(kernel, IN_TERMINAL)
    behind = launched(kernel, AND_LEFT_BEHIND)
    kernel.run("%bg_wait nohup")
    try:
        ENDS[how](kernel)
        with suppress(AssertionError):
            until(lambda: not left(started), PROMPTLY_S)
        assert left(started) == {}
        assert left(behind) == {"nohup": 1}
    finally:
        end(started)
        end(behind)


FEW = ("popen", "orphan", "command", "spawned_pool", "joblib", "fork", "posix_spawn")
"""Members that differ in how they are started and marked, for the ends that resemble another."""


@pytest.mark.parametrize(
    ("how", "members"),
    [
        ("restarted", MEMBERS),
        ("killed", MEMBERS),
        *((how, {name: MEMBERS[name] for name in FEW}) for how in ENDS if how not in
          {"restarted", "killed"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_a_task_has_started_ends_with_its_kernel(
    kernel: NotebookKernel, how: str, members: dict[str, str]
) -> None:
    foreground = kernel.run(
        "import subprocess; p = subprocess.Popen(['sleep', '998'], process_group=0); print(p.pid)"
    )
    bystander = {"foreground": [process(int(foreground.text))]}
    detached = launched(kernel, DETACHED)
    started = launched(kernel, members)
    everything = {**started, "others": descendants(kernel)}
    everything["others"].remove(bystander["foreground"][0])
    try:
        ENDS[how](kernel)
        with suppress(AssertionError):
            until(lambda: not left(everything), PROMPTLY_S)
        assert left(everything) == {}
        assert left(detached) == {"session": 1, "setsid": 1}
        assert left(bystander) == {"foreground": 1}
    finally:
        end(everything)
        end(detached)
        end(bystander)


def guards(kernel: int) -> list[psutil.Process]:
    """The guards of the kernel with this pid."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            command = one.cmdline()
            if "runners.guard " in " ".join(command) and command[-2].startswith(f"{kernel}:"):
                found.append(one)
    return found


FEW = {name: MEMBERS[name] for name in ("popen", "run", "fork", "clean")}


def test_a_guard_is_small_and_holds_nothing_of_the_kernel(kernel: NotebookKernel) -> None:
    started = launched(kernel, {name: MEMBERS[name] for name in ("popen", "run")})
    (guard,) = until(lambda: guards(kernel.pid))
    try:
        assert os.getsid(guard.pid) == guard.pid
        assert guard.cwd() == "/"
        assert not guard.net_connections("all")
        until(lambda: any("memfd" in each for each in files(guard)))
        assert {kind(each) for each in files(guard)} <= {"/dev/null", "memfd", "pidfd", "log"}
    finally:
        end(started)


def files(one: psutil.Process) -> list[str]:
    """What a process has open."""
    folder = Path(f"/proc/{one.pid}/fd")
    found = []
    for each in folder.iterdir():
        with suppress(OSError):
            found.append(str(each.readlink()))
    return found


def kind(name: str) -> str:
    known = {"memfd": "memfd", "pidfd": "pidfd", "guard-": "log"}
    return next((short for part, short in known.items() if part in name), name)


def test_a_guard_ends_when_nothing_is_left_to_guard() -> None:
    assert guard(Kernel.own(), idle_s=0.01) == ""


def test_what_no_guard_ends_is_named_by_the_doctor_and_ended_by_cancel_and_resume(
    kernel: NotebookKernel, state_dir: Path
) -> None:
    kernel.run("import subprocess; subprocess.Popen(['sleep', '997'])")
    started = launched(kernel, FEW)
    kernel.run("%bg_wait popen")
    (watch,) = until(lambda: guards(kernel.pid))
    until(lambda: any("memfd" in each for each in files(watch)))
    watch.suspend()
    try:
        kernel.kill()
        tasks = json.loads(run_command(state_dir, "list", "--all", "--json").stdout)
        ids = {task["name"]: task["id"] for task in tasks["tasks"]}
        assert left(started) == dict.fromkeys(FEW, 1)
        said = run_command(state_dir, "doctor").stdout
        for found in started.values():
            assert str(found[0].pid) in said
        assert f"cancel {ids['run']} ends it" in said
        assert f"kill {started['popen'][0].pid} ends it" in said
        assert "sleep 997" not in said
        cancelled = run_command(state_dir, "cancel", ids["run"], "--yes").stdout
        assert "had ended: interrupted; the process that it had left is ended now" in cancelled
        assert left(started) == {"popen": 1, "fork": 1, "clean": 1}
        kernel.revive()
        kernel.run("%load_ext ipytaskpersist")
        kernel.run(f"%bg_resume {ids['clean']}")
        assert left(started) == {"popen": 1, "fork": 1}
        watch.resume()
        until(lambda: not left(started), PROMPTLY_S)
        until(lambda: not is_alive(watch), PROMPTLY_S)
    finally:
        end({**started, "guard": [watch]})


@pytest.mark.parametrize("who", ["the next command", "a supervisor"])
def test_what_a_kernel_without_a_guard_leaves_is_ended(
    kernel: NotebookKernel, state_dir: Path, who: str
) -> None:
    kernel.run(
        "import ipytaskpersist.runners.guarded as guarded\n"
        "def refuse(*_arguments): raise BlockingIOError(11, 'the limit on processes')\n"
        "guarded.start_detached = refuse"
    )
    started = launched(kernel, FEW)
    try:
        assert not guards(kernel.pid)
        if who == "a supervisor":
            kernel.run("%%background --shell\nsleep 60")
        kernel.kill()
        if who == "the next command":
            assert left(started) == dict.fromkeys(FEW, 1)
            run_command(state_dir, "list")
        until(lambda: not left(started), PROMPTLY_S)
    finally:
        end(started)


def test_a_mark_of_another_namespace_or_a_kernel_that_is_there_ends_nothing() -> None:
    own = Kernel.own()
    elsewhere = replace(own, pid=1, start="1", namespace=own.namespace + 1)
    for kernel in (own, elsewhere):
        with subprocess.Popen(["sleep", "60"], env={MARK: str(Mark("task-1", kernel))}) as one:
            found = leftover_processes.find(leftover_processes.of_gone_kernels())
            assert one.pid not in {each.pid for each in found}
            assert leftover_processes.end_of_kernel(kernel.pid, kernel.start) == ""
            assert one.poll() is None
            one.kill()
