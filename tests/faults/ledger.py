"""What was promised of the tasks of one store, and whether it has been kept.

Each job prints lines that follow from its name, so that what is stored can be compared with what
was printed, wherever it was cut off.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.values.payloads import Payloads

LEGAL = {
    "pending": {"running", "failed", "cancelled", "interrupted"},
    "running": {"completed", "failed", "cancelled", "interrupted"},
}


@dataclass(frozen=True)
class Job:
    """One background cell: how it runs, and how many lines it prints."""

    name: str
    how: str
    """``thread``, ``process`` or ``shell``."""
    lines: int
    pause_s: float
    is_endless: bool = False
    """Whether it goes on without a word when it has printed them."""
    launches: tuple[Job, ...] = ()
    """The jobs that it launches from within, of which it prints a line each."""
    group: str = ""
    after: str = ""
    """The job that has to complete first."""

    @property
    def cell(self) -> str:
        """The cell that launches it."""
        options = "" if self.how == "thread" else f" --{self.how}"
        options += f" --group {self.group}" if self.group else ""
        options += f" --after {self.after}" if self.after else ""
        source = self._shell if self.how == "shell" else self._python
        return f"%%background{options} {self.name}\n{source}"

    @property
    def _python(self) -> str:
        if self.launches:
            return self._launching
        pause = f"    time.sleep({self.pause_s})\n" if self.pause_s else ""
        end = "while True:\n    time.sleep(0.1)\n" if self.is_endless else ""
        line = f"line_of_{self.name}"  # tasks in threads share the notebook's variables
        return (
            f"import time\nfor {line} in range({self.lines}):\n"
            f"    print(f'{self.name} line {{{line}}}')\n{pause}{end}{self.value!r}"
        )

    @property
    def _launching(self) -> str:
        given = [job.as_arguments for job in self.launches]
        return (
            f"import ipytaskpersist\ndef {self.name}():\n"
            f"    for line, (source, how) in enumerate({given!r}):\n"
            f"        ipytaskpersist.background(source, **how)\n"
            f"        print(f'{self.name} line {{line}}')\n{self.name}()\n{self.value!r}"
        )

    @property
    def as_arguments(self) -> tuple[str, dict[str, Any]]:
        """What `ipytaskpersist.background` is given to launch it."""
        source = self._shell if self.how == "shell" else self._python
        how = {} if self.how == "thread" else {self.how: True, "env": {"JOB": self.name}}
        return source, {"name": self.name, **how}

    @property
    def _shell(self) -> str:
        pause = f"sleep {self.pause_s}; " if self.pause_s else ""
        end = "; while :; do sleep 0.1; done" if self.is_endless else ""
        return (
            f"i=0; while [ $i -lt {self.lines} ]; do echo {self.name} line $i; {pause}"
            f"i=$((i+1)); done{end}"
        )

    def printed(self, size_bytes: int) -> bytes:
        """The first so many bytes of what it prints."""
        text = bytearray()
        for line in range(self.lines):
            text += f"{self.name} line {line}\n".encode()
            if len(text) >= size_bytes:
                break
        return bytes(text[:size_bytes])

    def whole(self) -> bytes:
        """All that it prints."""
        return self.printed(self.lines * 100)

    @property
    def value(self) -> Any:
        return {"name": self.name, "lines": self.lines}


@dataclass(frozen=True)
class Seen:
    """A task as it was once read."""

    place: tuple[str, int]
    """Its notebook and its number there."""
    name: str
    state: TaskState
    stdout: bytes
    history: tuple[str, ...]


@dataclass
class Ledger:
    """What has been seen of each task, and what may have happened to it."""

    state_dir: Path
    jobs: dict[str, Job] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    """The names of jobs whose launch was acknowledged."""
    seen: dict[str, Seen] = field(default_factory=dict)
    """By id, what was last read of every task."""
    numbers: dict[tuple[str, int], str] = field(default_factory=dict)
    """The id of every task that was ever seen, by notebook and number."""
    may_be_missing: set[str] = field(default_factory=set)
    """The ids of tasks that somebody was asked to delete."""
    may_lack_values: bool = False
    """Whether the disk was full, so that a value may be kept as text alone."""
    may_be_either: list[set[str]] = field(default_factory=list)
    """The ids before a restore and after it: one of these sets is there, and tasks begun since."""

    def look(self) -> None:
        """Read everything, and compare it with what was there and what was promised."""
        now = self.read()
        self._nothing_is_lost(now)
        for task_id, task in now.items():
            if task_id in self.seen:
                _follows(task_id, self.seen[task_id], task)
            self._is_as_printed(task_id, task)
        self._numbers_are_unique(now)
        self.seen = now

    def read(self) -> dict[str, Seen]:
        """All tasks of the store and its archives, by id. None is there twice."""
        store = TaskStore(StateDirectory(self.state_dir)).open()
        with closing(store), closing(Archives(store)) as archives:
            found: dict[str, Seen] = {}
            for place in [store, *archives.all()]:
                tasks = place.tasks.select(Selection())
                for task in tasks if place is store else archives.without_own(tasks):
                    assert task.id not in found, f"{task.id} is there twice"
                    found[task.id] = _seen(place, task)
            return found

    def _nothing_is_lost(self, now: dict[str, Seen]) -> None:
        missing = self.seen.keys() - now.keys() - self.may_be_missing
        if self.may_be_either and missing:
            before, after = self.may_be_either
            assert now.keys() & (before | after) in (before, after), "half of a restore"
            missing = set()
        assert not missing, f"lost: {sorted(missing)}"
        names = {task.name for task in now.values()}
        lost = {name for name in self.acknowledged if name not in names}
        assert not lost or self.may_be_missing or self.may_be_either, f"lost jobs: {sorted(lost)}"

    def _numbers_are_unique(self, now: dict[str, Seen]) -> None:
        """Also among those that are no longer there."""
        for task_id, task in now.items():
            other = self.numbers.setdefault(task.place, task_id)
            assert other == task_id, f"{task.place} was given to {other} and to {task_id}"

    def _is_as_printed(self, task_id: str, task: Seen) -> None:
        """Whether what is stored is what was printed, from the first byte to where it was cut."""
        job = self.jobs.get(task.name)
        if job is None:
            return
        expected = job.printed(len(task.stdout))
        assert task.stdout == expected, (
            f"{task_id} ({job.how}) is no prefix: {_difference(task.stdout, expected)}"
        )
        if task.state is TaskState.COMPLETED:
            assert task.stdout == job.whole(), f"{task_id} completed with {len(task.stdout)} bytes"

    def launches_are_there(self) -> None:
        """Whether every launch that a task has acknowledged, which has ended, is a task."""
        now = self.read()
        names = {task.name for task in now.values()}
        for task in now.values():
            job = self.jobs.get(task.name)
            acknowledged = job.launches[: task.stdout.count(b"\n")] if job is not None else ()
            lost = [launched.name for launched in acknowledged if launched.name not in names]
            assert not lost, f"{task.name} has launched {lost}, which are not there"

    def queue_is_kept(self, group: str, width: int) -> None:
        """Whether no more tasks run than may, and none began before the one that it waited for."""
        with closing(TaskStore(StateDirectory(self.state_dir)).open()) as store:
            tasks = {task.name: task for task in store.tasks.select(Selection())}
            running = [
                name
                for name, task in tasks.items()
                if task.group == group and task.state is TaskState.RUNNING and not task.paused_at
            ]
            assert len(running) <= width, f"{running} run at once, and may be {width}"
            for name, job in self.jobs.items():
                first = tasks.get(job.after)
                if first is None or name not in tasks:
                    continue
                began = _event(store, tasks[name].key, TaskState.RUNNING)
                done = _event(store, first.key, TaskState.COMPLETED)
                assert began is None or (done is not None and done < began), (
                    f"{name} began though {job.after} is {first.state.value}"
                )

    def results_are_there(self) -> None:
        """Whether every task that completed gives its value."""
        directory = StateDirectory(self.state_dir)
        with closing(TaskStore(directory).open()) as store:
            for task in store.tasks.select(Selection(states=[TaskState.COMPLETED])):
                job = self.jobs.get(task.name)
                if job is None or job.how == "shell":
                    continue
                result = store.results.get(task.key)
                assert result is not None, f"{task.id} completed without its value"
                if self.may_lack_values and result.problem:
                    assert "no more than" in result.problem, result.problem
                    continue
                assert Payloads(directory).load(task, result) == job.value

    def is_sound(self) -> None:
        """Whether SQLite finds nothing wrong in any file."""
        store = TaskStore(StateDirectory(self.state_dir)).open()
        with closing(store), closing(Archives(store)) as archives:
            for place in [store, *archives.all()]:
                assert place.database.rows("PRAGMA integrity_check") == [("ok",)]
                wrong = place.database.rows("PRAGMA foreign_key_check")
                assert {row[0] for row in wrong} <= {"outputs"}, wrong

    def live(self) -> list[TaskRecord]:
        """The tasks that have not ended."""
        states = (TaskState.PENDING, TaskState.RUNNING)
        with closing(TaskStore(StateDirectory(self.state_dir)).open()) as store:
            return list(store.tasks.select(Selection(states=states)))

    def without_an_owner(self) -> list[str]:
        """The live tasks whose kernel or supervisor is gone."""
        with closing(TaskStore(StateDirectory(self.state_dir)).open()) as store:
            orphans = []
            for task in store.tasks.select(Selection(states=[TaskState.RUNNING])):
                owners = _owners(store, task)
                if not any(is_alive(pid, start) for pid, start in owners):
                    orphans.append(f"{task.id} ({task.runner}, {task.name})")
            return orphans


def _event(store: TaskStore, key: int, state: TaskState) -> int | None:
    """The place of a change among all changes of the store."""
    query = "SELECT min(key) FROM events WHERE task_key = ? AND state = ?"
    return store.database.rows(query, (key, state.value))[0][0]


def _seen(store: TaskStore, task: TaskRecord) -> Seen:
    # The history first: what is read after an end must be whole.
    history = tuple(event.state.value for event in store.tasks.history(task.key))
    assert history, f"{task.id} has no history"
    assert history[0] == "pending", f"{task.id} began as {history[0]}"
    for before, after in pairwise(history):
        assert after in LEGAL.get(before, set()), f"{task.id}: {' → '.join(history)}"
    outputs = store.outputs.of(task.key, kinds=[OutputKind.STDOUT])
    stdout = b"".join(output.data for output in outputs)
    place = (task.notebook, task.number)
    return Seen(place, task.name, TaskState(history[-1]), stdout, history)


def _follows(task_id: str, before: Seen, now: Seen) -> None:
    """Whether nothing that was there once has gone or changed."""
    assert now.place == before.place, f"{task_id} has another number"
    assert now.stdout[: len(before.stdout)] == before.stdout, f"{task_id}: output has changed"
    assert now.history[: len(before.history)] == before.history, (
        f"{task_id}: {before.history} became {now.history}"
    )


def _owners(store: TaskStore, task: TaskRecord) -> Iterable[tuple[int, str]]:
    if task.runner == "thread":
        session = store.sessions.get(task.session)
        assert session is not None
        return [(session.pid, session.process_start)]
    process = store.processes.get(task.key)
    assert process is not None
    owners = []
    if process.supervisor_key is not None:
        supervisor = store.supervisors.get(process.supervisor_key)
        assert supervisor is not None
        owners.append((supervisor.pid, supervisor.process_start))
    return owners


def is_alive(pid: int, start: str) -> bool:
    """Whether this very process is there and no zombie, asked of the system itself."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    fields = stat[stat.rindex(b")") + 2 :].split()
    return fields[19].decode() == start and fields[0] not in (b"Z", b"X")


def _difference(found: bytes, expected: bytes) -> str:
    pairs = enumerate(zip(found, expected, strict=False))
    at = next(
        (place for place, pair in pairs if pair[0] != pair[1]), min(len(found), len(expected))
    )
    return f"at byte {at}: {found[max(0, at - 40) : at + 40]!r}, not {expected[at : at + 40]!r}"
