"""What the queue knew of a task stays with it: in archives, exports and imports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kernels import NotebookKernel, until
from programs import run_command

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import Options, TaskRecord, TaskState
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.base.schedules import Schedule
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.queue import Admission
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

HOUR = 3600.0
RETRIES = Retries(3, ("error", "oom"), memory_factor=1.5)
SHOWN = ("try", "schedule", "group", "cpus", "memory_bytes", "gpus", "gpu_memory_bytes")
"""Members of a task's JSON document that the queue knows, besides `SHOWN_TOO`."""
SHOWN_TOO = ("gpu_ids", "paused_s", "elapsed_s")


class Past:
    """A session of a notebook in a store, whose tasks end as the test says."""

    def __init__(self, store: TaskStore, notebook: Path) -> None:
        self.store = store
        self.notebook = notebook
        identity = replace(session_identity(None, str(notebook)), id=str(uuid4()))
        self.session = store.sessions.begin(identity)
        self.supervisor = store.supervisors.begin(self.session.id, ProcessIdentity.own())

    def add(self, name: str, **more: Any) -> TaskRecord:
        place = (self.session.notebook_key, self.session.id)
        new = NewTask(*place, name, "shell", "process", "true", **more)
        process = NewProcess(["true"], "/", 1.0, Options(), is_whole=True)
        return self.store.tasks.insert(
            new, lambda connection, key, _id: process.insert(connection, key)
        )

    def fail(self, name: str, code: int = 7) -> None:
        """Start the pending task of this name, and let it fail."""
        (task,) = (task for task in self.named(name) if task.state is TaskState.PENDING)
        self.store.tasks.start(task.key, time.time())
        self.store.tasks.end(task.key, TaskState.FAILED, f"exit status {code}", code, time.time())

    def named(self, name: str) -> list[TaskRecord]:
        return [task for task in self.store.tasks.select(Selection()) if task.name == name]

    def flaky(self) -> list[TaskRecord]:
        """Three tries of a task that asks for a share of the machine, of which none completed."""
        demands = Demands(cpus=2.0, memory_bytes=10**9, gpus=1, gpu_memory_bytes=4 * 10**9)
        admission = Admission("gpu", 3, demands=demands)
        self.store.queue.set_width("gpu", 2)
        self.add("flaky", admission=admission, retries=RETRIES)
        for _ in range(3):
            self.fail("flaky")
        (last,) = self.named("flaky")[3:]
        self.store.tasks.request_cancel(last.key)
        self.store.tasks.cancel_pending(self.session.id)
        return self.named("flaky")[:3]


@pytest.fixture
def past(store: TaskStore, tmp_path: Path) -> Past:
    return Past(store, tmp_path / "a.ipynb")


def shown(state_dir: Path, tasks: Sequence[TaskRecord]) -> list[dict[str, Any]]:
    """What `show` says of each task, as a document, as far as the queue knows it."""
    said = [run_command(state_dir, "show", task.id, "--json").stdout for task in tasks]
    names = (*SHOWN, *SHOWN_TOO)
    return [{name: json.loads(each)[name] for name in names} for each in said]


def test_an_archived_try_keeps_its_place_in_the_chain(
    past: Past, archives: Archives, state_dir: Path
) -> None:
    others = [past.add(name) for name in ("one", "two")]
    for other in others:
        past.store.tasks.start(other.key, time.time())
        past.store.tasks.end(other.key, TaskState.COMPLETED, None, 0, time.time())
    tries = past.flaky()
    before = shown(state_dir, tries)
    assert before[1]["try"] == {"number": 2, "of": 4, "first_task": 3, "causes": ["error", "oom"]}

    # The second alone, then the first: in the archive they have other rows than in the store.
    for task in (tries[1], tries[0]):
        archives.archive([task])
    assert shown(state_dir, tries) == before
    said = run_command(state_dir, "show", tries[1].id).stdout
    assert "try 2 of 4 of task 3" in said
    assert "2 CPUs, 1 GB of memory, 1 GPU with 4 GB" in said
    assert past.store.tasks.last_try(tries[2]).number == 6, "the last try, which was cancelled"
    archived = archives.select(Selection())
    assert {task.try_of for task in archived} == {None, archived[0].key}

    archives.unarchive(archived)
    assert shown(state_dir, tries) == before
    back = past.named("flaky")
    assert {task.try_of for task in back[1:]} == {back[0].key}
    assert past.store.tasks.last_try(back[0]).number == 6
    assert past.store.tasks.last_try(others[0]).id == others[0].id


def test_an_imported_task_says_what_it_had_and_is_no_try_of_a_task_here(
    past: Past, archives: Archives, state_dir: Path, tmp_path: Path
) -> None:
    tries = past.flaky()
    schedule = Schedule(cron="0 22 * * 1-5", zone="Europe/Berlin").begun(1_800_000_000.0)
    nightly = past.add("nightly", schedule=schedule)
    past.store.tasks.start(nightly.key, time.time())
    past.store.tasks.end(nightly.key, TaskState.COMPLETED, None, 0, time.time())
    tasks = [*tries, nightly]
    before = shown(state_dir, tasks)
    file, elsewhere = tmp_path / "tasks.jsonl", tmp_path / "elsewhere"
    refs = [task.id for task in tasks]
    assert run_command(state_dir, "export", *refs, "--output", str(file)).returncode == 0
    imported = run_command(elsewhere, "import", str(file))
    assert imported.stdout == "imported 4 tasks of 1 notebook\n"
    assert shown(elsewhere, tasks) == before
    again = tmp_path / "again.jsonl"
    run_command(elsewhere, "export", *refs, "--output", str(again))
    # The session counts as ended from then on.
    assert again.read_text().splitlines()[2:] == file.read_text().splitlines()[2:]
    assert "try 3 of 4 of task 1" in run_command(elsewhere, "show", tries[2].id).stdout
    assert "Europe/Berlin" in run_command(elsewhere, "show", nightly.id).stdout

    # Here the first one is still there, and the imported ones stay apart from it.
    archives.delete(tries[1:])
    assert run_command(state_dir, "import", str(file)).stdout.startswith("imported 2 tasks")
    second = past.store.tasks.by_id(tries[1].id)
    assert second is not None
    assert (second.try_number, second.first_try, second.try_of) == (2, 1, None)
    archives.archive([second])
    archives.unarchive(archives.select(Selection()))
    second = past.store.tasks.by_id(tries[1].id)
    assert second is not None
    assert (second.first_try, second.try_of) == (1, None)
    assert not past.store.tasks.select(Selection(states=[TaskState.PENDING]))


@pytest.mark.parametrize(
    ("member", "value", "said"),
    [
        ("retries", {"count": 1, "causes": ["rain"]}, "retries.causes are not all of oom"),
        ("retries", {"count": -1, "causes": []}, "retries.count is not between 0"),
        ("schedule", {"zone": "UTC", "missed": "run"}, "exclude each other, and one is needed"),
        ("schedule", {"every_s": 1, "zone": "", "missed": "often"}, "schedule.missed is 'often'"),
        ("demands", {"cpus": -2}, "demands.cpus is not between 0"),
        ("group", "a\nb", "group is not printable"),
        ("gpu_ids", "all", "gpu_ids is not a list"),
        ("try_number", 0, "try_number is not between 1"),
    ],
)
def test_what_no_queue_knows_is_refused(
    past: Past, state_dir: Path, tmp_path: Path, member: str, value: object, said: str
) -> None:
    (first, *_others) = past.flaky()
    exported = run_command(state_dir, "export", first.id).stdout
    lines = [json.loads(line) for line in exported.splitlines()]
    (task,) = (line for line in lines if line["type"] == "task")
    task[member] = value
    file = tmp_path / "wrong.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    refused = run_command(tmp_path / "elsewhere", "import", str(file))
    assert refused.returncode == 1
    assert said in refused.stderr


def test_a_file_of_an_earlier_version_lacks_all_of_it(
    past: Past, state_dir: Path, tmp_path: Path
) -> None:
    (first, *_others) = past.flaky()
    exported = run_command(state_dir, "export", first.id).stdout
    lines = [json.loads(line) for line in exported.splitlines()]
    for name in (
        *("group", "priority", "demands", "gpu_ids", "paused_s", "try_number", "retries"),
        "schedule",
    ):
        next(line for line in lines if line["type"] == "task").pop(name)
    file = tmp_path / "earlier.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run_command(tmp_path / "elsewhere", "import", str(file)).returncode == 0
    ((found),) = shown(tmp_path / "elsewhere", [first])
    assert (found["group"], found["try"], found["cpus"]) == ("default", None, None)


def test_what_a_later_try_needs_is_neither_archived_nor_removed_by_age(past: Past) -> None:
    store = past.store
    past.add("again", retries=replace(RETRIES, delay_s=HOUR))
    past.fail("again")
    first, second = past.named("again")
    assert store.tasks.ended_before(2 * time.time(), except_tag="") == []
    refused = run_command(store.directory.root, "archive", first.id)
    assert f"is tried again as task {second.label}; cancel that first" in refused.stderr


def test_a_later_run_by_a_schedule_is_run_again_from_the_archive(
    make_kernel: Callable[..., NotebookKernel], store: TaskStore, tmp_path: Path
) -> None:
    kernel = make_kernel(notebook=tmp_path / "a.ipynb")

    def say(line: str) -> str:
        return kernel.run(line, check=False).text

    def tasks() -> list[TaskRecord]:
        return store.tasks.select(Selection())

    say("rows = [1, 2]\n%load_ext ipytaskpersist")
    say("%%background --process --every 1s sums\nsum(rows)")
    until(lambda: len(tasks()) > 2 and tasks()[1].state.is_final, 60, "the second run")
    refused = say("%bg_archive 1")
    assert "task 1 (sums) has what task" in refused
    assert "cancel that first: %bg_cancel" in refused

    def has_been_cancelled() -> bool:
        """Whether no run waits. One may begin just before it is cancelled, and leaves another."""
        say("%bg_cancel --all")
        return all(task.state.is_final for task in tasks())

    until(has_been_cancelled, 60, "the end of the schedule")

    def run_again() -> TaskRecord:
        """Run the second one again, which sums up what the first was given."""
        said = say("%bg_rerun 2")
        again = tasks()[-1]
        until(lambda: tasks()[-1].state.is_final, 60, said)
        assert say(f"%bg_result {again.number}").strip() == "3"
        return again

    assert "moved 2 tasks" in say("%bg_archive 1 2")
    assert run_again().schedule is None

    # In whatever place the first run is, but not when it was deleted.
    say("%bg_unarchive 1")
    run_again()
    say("%bg_delete 1 --yes")
    gone = say("%bg_rerun 2")
    assert "what task 2 (sums) was given was kept with task" in gone
    assert "%bg_show 2 shows its source" in gone
