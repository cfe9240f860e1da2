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
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.base.retries import causes_of
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
    retries: int = 0
    """How often it is tried again."""
    fails: int = 0
    """How many of its runs fail, when they have printed all."""
    every: str = ""
    """After how long it runs again."""
    memory: str = ""
    """How much memory it books."""
    notes: str = ""
    """The file to which each of its runs adds its task's id; empty for none."""

    @property
    def cell(self) -> str:
        """The cell that launches it."""
        options = "" if self.how == "thread" else f" --{self.how}"
        options += f" --group {self.group}" if self.group else ""
        options += f" --after {self.after}" if self.after else ""
        options += f" --retries {self.retries}" if self.retries else ""
        options += f" --every {self.every}" if self.every else ""
        options += f" --memory {self.memory}" if self.memory else ""
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
            f"    print(f'{self.name} line {{{line}}}')\n{pause}{end}{self._noted}{self.value!r}"
        )

    @property
    def _noted(self) -> str:
        if not self.notes:
            return ""
        return (
            f"import os, pathlib\nwith open({self.notes!r}, 'a') as file_of_{self.name}:\n"
            f"    print(os.environ[{MARK!r}], file=file_of_{self.name})\n"
            f"assert len(pathlib.Path({self.notes!r}).read_text().split()) > {self.fails}\n"
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
            f"i=$((i+1)); done{end}{self._noted_by_shell}"
        )

    @property
    def _noted_by_shell(self) -> str:
        if not self.notes:
            return ""
        has_run_often = f"[ $(wc -l < {self.notes}) -gt {self.fails} ]"
        return f"; echo ${MARK} >> {self.notes}; {has_run_often} || exit 7"

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

    def tries_are_kept(self) -> None:
        """Whether each try has one successor at most, and one if its end asks for it."""
        with closing(TaskStore(StateDirectory(self.state_dir)).open()) as store:
            chains: dict[int, list[TaskRecord]] = {}
            for task in store.tasks.select(Selection()):
                if task.retries is not None:
                    chains.setdefault(task.try_of or task.key, []).append(task)
            for tries in chains.values():
                _is_one_chain(tries)
                last, retries = tries[-1], tries[-1].retries
                assert retries is not None
                causes = causes_of(last.state.value, last.reason, last.exit_code)
                is_lost = retries.follow(last.try_number, causes) and not last.cancel_requested_at
                assert not is_lost, f"{last.id} ({last.reason}) was not tried again"

    def runs_are_kept(self) -> None:
        """Whether each run of a schedule that was claimed has one successor, due after it."""
        with closing(TaskStore(StateDirectory(self.state_dir)).open()) as store:
            series: dict[str, list[TaskRecord]] = {}
            for task in store.tasks.select(Selection()):
                if task.schedule is not None:
                    series.setdefault(task.schedule.first_task or task.id, []).append(task)
            for runs in series.values():
                due = [task.schedule.due_at for task in runs if task.schedule is not None]
                assert due == sorted({*due}), f"{[task.id for task in runs]} are due at {due}"
                waiting = [task.id for task in runs if task.started_at is None]
                assert waiting == [runs[-1].id], f"{waiting} have not begun of {len(runs)} runs"

    def all_ran_once(self) -> None:
        """Whether no task ran twice, of those jobs that note it."""
        for job in self.jobs.values():
            if job.notes and Path(job.notes).exists():
                ran = Path(job.notes).read_text().split()
                assert len(ran) == len({*ran}), f"of {job.name} ran {ran}"
                assert {*ran} <= self.read().keys(), f"of {job.name} ran {ran}"

    def shares_are_kept(self) -> None:
        """Whether no more than one task runs of those of which two would not fit."""
        with closing(TaskStore(StateDirectory(self.state_dir)).open()) as store:
            tasks = store.tasks.select(Selection(states=[TaskState.RUNNING]))
            booked = [task.id for task in tasks if task.demands.memory_bytes]
            assert len(booked) <= 1, f"{booked} run at once"

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


def _is_one_chain(tries: list[TaskRecord]) -> None:
    """Whether these are the tries of one task, each but the last one followed by the next."""
    ids = [task.id for task in tries]
    numbers = [task.try_number for task in tries]
    assert numbers == [*range(1, len(tries) + 1)], f"{ids} are the tries {numbers}"
    for task, following in pairwise(tries):
        assert task.state.is_final, f"{task.id} is {task.state.value}, and was tried again"
        assert task.provenance["rerun_as"] == following.id, task.provenance
    assert "rerun_as" not in tries[-1].provenance


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
