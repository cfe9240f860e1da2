"""What waiting costs: a claim among many, a width, a free slot, a pause, a late start."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import Bench
from benchmarks.commands import MB, supervised_kernel
from benchmarks.inside_commands import TREE_SIZE
from benchmarks.results import BenchmarkError, Row
from benchmarks.supervising import WATCHES, core_percent, supervisor_of
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import LIVE_STATES, Options, TaskRecord, TaskState
from ipytaskpersist.runners.starting import start_supervisor
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.queue import Admission
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

PENDING = (100, 10_000, 100_000)
WIDTH, NARROW = 4, 3
MANY = 10_000
TASK_SPOOLER = "tsp"
"""Debian's name of task-spooler."""
HYPERQUEUE = """
import sys, time
from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig

count, cores = map(int, sys.argv[1:])
with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=cores))
    client, job = cluster.client(), Job()
    for _ in range(count):
        job.program(["true"], stdout=None, stderr=None)
    begun = time.perf_counter()
    client.wait_for_jobs([client.submit(job)])
    print(time.perf_counter() - begun)
"""


def claiming(bench: Bench) -> list[Row]:
    """A claim among few and among many tasks that wait in a group of a width."""
    rows: list[Row] = []
    for count in PENDING[: 2 if bench.scale.tasks < PENDING[1] else 3]:
        bench.say(f"claiming among {count:,} waiting tasks")
        state = bench.new_state()
        with stores.opened(state) as store:
            samples = claim_us(store, state, count, bench.scale.store_calls)
        what = f"a claim while {count:,} tasks wait, its commit included"
        rows.append(Row("claim", what, "µs", tuple(samples)).at_most(50))
    return rows


def claim_us(store: TaskStore, state: Path, count: int, calls: int) -> list[float]:
    """How long each claim takes, in microseconds."""
    session = store.sessions.begin(stores.past_session(state))
    supervisor = store.supervisors.begin(session.id, ProcessIdentity.own())
    store.queue.set_width("few", 1)
    with store.database.transaction():
        for _ in range(count):
            add(store, session.notebook_key, session.id)
    samples = []
    for _ in range(min(calls, count - 1)):
        begun = time.perf_counter()
        (claimed,) = store.processes.claim(session.id, supervisor.key, time.time(), 1)
        samples.append((time.perf_counter() - begun) * 1e6)
        store.tasks.end(claimed.task_key, TaskState.COMPLETED, None, 0, time.time())
    return samples


def add(store: TaskStore, notebook_key: int, session_id: str) -> None:
    """Record a shell task that waits in the group."""
    process = NewProcess(["true"], "/", 1.0, Options())
    new = NewTask(
        notebook_key, session_id, "", "shell", "process", "true", admission=Admission("few")
    )
    store.tasks.insert(new, lambda connection, key, _id: process.insert(connection, key))


def queue(bench: Bench) -> list[Row]:
    """Adding to a group, running through it, its free slots, pauses, and a late start."""
    count, loops = bench.scale.commands, bench.scale.command_loops
    bench.say(f"running `true` {count:,} times through a group of width {WIDTH}, and without")
    state = bench.new_state()
    with supervised_kernel(bench, state) as kernel:
        alone = tuple(kernel.value(f"tasks_seconds('true', {count})") for _ in range(loops))
        through = tuple(kernel.value(f"group_seconds({count}, {WIDTH})") for _ in range(loops))
        adding = tuple(kernel.value("adding_seconds(500)") for _ in range(loops))
        many = tuple(kernel.value(f"adding_seconds({MANY})", 900) for _ in range(loops > 1))
        slots = tuple(kernel.value(f"slot_ms({bench.scale.starts})"))
        pauses = tuple(kernel.value(f"pause_ms({WATCHES})"))
    usual = Row("queue", f"{count:,} tasks of `true`, no group", "s", alone)
    what = f"{count:,} tasks of `true` through a group of width {WIDTH}"
    return [
        Row("queue", what, "s", through).at_most_times(2, usual, "no group"),
        usual,
        *beside(count),
        Row("queue", "adding 500 tasks to a full group", "s", adding).at_most(1),
        *([Row("queue", f"adding {MANY:,}", "s", many).at_most(15)] if many else []),
        Row("queue", "from an end until the next task of its group runs", "ms", slots).at_most(30),
        Row("queue", f"pausing a tree of {TREE_SIZE} processes", "ms", pauses).at_most(50),
        *supervisors(bench),
        *waiting(bench),
    ]


def beside(count: int) -> list[Row]:
    """The same with others, where they are installed."""
    return [task_spooler(count), hyperqueue(count)]


def hyperqueue(count: int) -> Row:
    """The same with HyperQueue: a server, and a worker with as many cores."""
    what = f"{count:,} tasks of `true` with HyperQueue, {WIDTH} at a time"
    if find_spec("hyperqueue") is None:
        return Row("queue", what, "s", problem="HyperQueue is not installed")
    command = [sys.executable, "-c", HYPERQUEUE, str(count), str(WIDTH)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return Row("queue", what, "s", (float(ended.stdout.split()[-1]),))


def task_spooler(count: int) -> Row:
    """The same with task-spooler."""
    what = f"{count:,} tasks of `true` with task-spooler, {WIDTH} at a time"
    if shutil.which(TASK_SPOOLER) is None:
        return Row("queue", what, "s", problem="task-spooler is not installed")
    subprocess.run([TASK_SPOOLER, "-S", str(WIDTH)], check=True)
    begun = time.perf_counter()
    for _ in range(count):
        subprocess.run([TASK_SPOOLER, "-n", "true"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([TASK_SPOOLER, "-w"], check=True)
    took = time.perf_counter() - begun
    subprocess.run([TASK_SPOOLER, "-K"], check=True)
    return Row("queue", what, "s", (took,))


def supervisors(bench: Bench) -> list[Row]:
    """One group of a width, run by one supervisor and by four."""
    count = bench.scale.tasks // 5
    rows = {}
    for number in (1, 4):
        bench.say(f"running `true` {count:,} times by {number} supervisors")
        rows[number] = group_run(bench.new_state(), count, number)
    what = f"{count:,} tasks of `true` through a group of width {NARROW}"
    one = Row("queue", f"{what}, by one supervisor", "s", (rows[1][0],))
    return [
        Row("queue", f"{what}, by four", "s", (rows[4][0],)).at_most_times(1.2, one, "one"),
        one,
        Row("queue", "how many of them ran at once, at most", "", (rows[4][1],)).at_most(NARROW),
    ]


def group_run(state: Path, count: int, number: int) -> tuple[float, int]:
    """Run tasks of so many sessions in one group. Returns the seconds, and the most at once."""
    own = ProcessIdentity.own()
    with stores.opened(state) as store:
        store.queue.set_width("few", NARROW)
        store.queue.pause_group("few", time.time())
        sessions = [
            store.sessions.begin(replace(stores.past_session(state), process=own))
            for _ in range(number)
        ]
        for session in sessions:
            start_supervisor(store, session.id)
        with store.database.transaction():
            for index in range(count):
                session = sessions[index % number]
                add(store, session.notebook_key, session.id)
        begun = time.perf_counter()
        store.queue.pause_group("few", None)
        while store.tasks.count(Selection(states=LIVE_STATES)):
            time.sleep(0.05)
        took = time.perf_counter() - begun
        tasks = store.tasks.select(Selection())
        for session in sessions:
            store.sessions.end(session.id, "measured")  # its supervisor leaves
    return took, most_at_once(tasks)


def most_at_once(tasks: Sequence[TaskRecord]) -> int:
    """How many tasks ran at the same time, at most."""
    changes = [(task.started_at, 1) for task in tasks] + [(task.ended_at, -1) for task in tasks]
    running = most = 0
    for _at, change in sorted(change for change in changes if change[0] is not None):
        running += change
        most = max(most, running)
    return most


def waiting(bench: Bench) -> list[Row]:
    """What a supervisor costs that waits for tomorrow."""
    state = bench.new_state()
    with supervised_kernel(bench, state) as kernel:
        kernel.value("launch_later()")
        with stores.opened(state) as store:
            if store.tasks.count(Selection(states=[TaskState.PENDING])) != 1:
                raise BenchmarkError("the task that waits for tomorrow does not wait")
        process = supervisor_of(state)
        shares = tuple(core_percent(process, bench.scale.idle_s) for _ in range(WATCHES))
        memory = process.memory_info().rss / MB
    what = "a supervisor that waits for tomorrow: "
    return [
        Row("queue", f"{what}share of a core", "%", shares).at_most(0.05),
        Row("queue", f"{what}resident memory", "MB", (memory,)).at_most(30),
    ]
