"""Whatever is done to a store, in whatever order: it says what a few dictionaries say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ipytaskpersist.base.records import LIVE_STATES, Options, OutputKind, Progress, TaskState
from ipytaskpersist.errors import AlreadyRunAgain, AmbiguousReference, InvalidRequest, TaskNotFound
from ipytaskpersist.history import importing, search_query, text_search
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.exporting import Export
from ipytaskpersist.store import restoring, transfer
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
from ipytaskpersist.store.transfer import remove_leftovers
from ipytaskpersist.text.encoding import encode_content
from ipytaskpersist.values.payloads import Payloads
from properties.model import LEGAL, Ambiguous, Known, Model, Session, imported
from properties.profiles import is_thorough, tried
from properties.world import Killer, Owner, Templates, World, folder, now, observed

PARTS = 4 if is_thorough() else 1
"""A machine is one test, and a test runs on one core: so many examples are shared out."""
STEPS = 25
LOOK_AT_ALL_EACH = 3
"""After how many steps what takes its time is compared, too; and at the end."""
PAGE_BYTES = 4096
FOR_INDEXES = ("events_task", "tags_tag", "outputs_task", "tasks_created_at")
WORDS = ("alpha", "beta", "gamma", "größe", "42")

picks = st.integers(0, 7)
"""Which of the tasks, sessions and files there are: so many that small numbers mean all of them."""
words = st.sampled_from(WORDS)
names = st.sampled_from(["", "train", "beta run", "2", "-1", "größe", "x-1", "00"])
tags = st.lists(st.sampled_from(["keep", "nightly", "größer"]), max_size=2)
printed = st.lists(
    st.one_of(
        st.sampled_from([f"{word}\n".encode() for word in WORDS]),
        st.sampled_from([b"alp", b"ha ", b"\n", b" ", b"\xc3", b"\xb6", b"\xff\xfe", b"x" * 600]),
        st.binary(max_size=3).map(lambda data: bytes(byte | 0x80 for byte in data)),
    ),
    min_size=1,
    max_size=4,
).map(b"".join)
streams = st.sampled_from([OutputKind.STDOUT, OutputKind.STDERR])
ends = st.sampled_from(
    [
        (TaskState.COMPLETED, None, 0),
        (TaskState.FAILED, "ValueError: 1", 1),
        (TaskState.FAILED, "exit 3", 3),
        (TaskState.CANCELLED, "cancelled", None),
        (TaskState.INTERRUPTED, "kernel restarted", None),
    ]
)
deaths = st.integers(0, 80)
"""At which statement of SQL a process is killed. Opening the store takes about ten."""


@dataclass
class File:
    """A backup or an export, and what the model was when it was made."""

    path: Path
    model: Model


class StoreMachine(RuleBasedStateMachine):
    """People, kernels and supervisors do what they do, and some are killed."""

    def __init__(self) -> None:
        super().__init__()
        self._cleanup = ExitStack()
        self.root = self._cleanup.enter_context(folder())
        self.world = World(self.root / "state")
        self._cleanup.callback(self.world.close)
        self.store = self.world.store
        self.model = Model()
        self.count = self.looks = 0
        self.backups: list[File] = []
        self.exports: list[File] = []
        self.other: dict[str, Known] = {}
        """What another store has, into which exports were imported."""
        self.left: set[str] = set()
        """Tasks whose owner was killed while they printed: nobody prints in them any more."""

    def teardown(self) -> None:
        try:
            self.all_else_follows()
            remove_leftovers(self.store.database)
            self.no_output_is_left_without_its_task()
        finally:
            self._cleanup.close()

    # What there is.

    def new_file(self, suffix: str) -> Path:
        self.count += 1
        return self.root / f"file-{self.count}{suffix}"

    def tasks(self, wanted: Callable[[Known], bool] = lambda _task: True) -> list[Known]:
        return [task for task in self.model.tasks.values() if wanted(task)]

    def task(self, pick: int, wanted: Callable[[Known], bool] = lambda _task: True) -> Known | None:
        """One of the tasks in the store; None where there is no such task."""
        found = self.tasks(wanted)
        return found[pick % len(found)] if found else None

    def owner(self, task: Known) -> Owner | None:
        """The process that runs a task, where it is alive."""
        session = self.model.sessions[task.session]
        if task.runner == "thread":
            return self.world.kernels.get(session.id) if session.is_alive else None
        is_here = session.supervisor and task.id in session.supervised
        return self.world.supervisors[session.id][1] if is_here else None

    def running(self, pick: int) -> tuple[Known, Owner] | None:
        """A task that runs, and its owner."""
        found = self.task(
            pick,
            lambda each: (
                each.state is TaskState.RUNNING
                and each.id not in self.left
                and self.owner(each) is not None
            ),
        )
        if found is None:
            return None
        owner = self.owner(found)
        assert owner is not None
        return found, owner

    def sessions(self, wanted: Callable[[Session], bool]) -> list[Session]:
        return [session for session in self.model.sessions.values() if wanted(session)]

    def session(self, pick: int, wanted: Callable[[Session], bool]) -> Session | None:
        found = self.sessions(wanted)
        return found[pick % len(found)] if found else None

    def key(self, task_id: str) -> int:
        return self.world.record(task_id).key

    def refreshed(self) -> None:
        """What the commands do first: find out what is gone."""
        self.world.manager.runners.reconcile()
        self.model.reconcile()

    # Sessions.

    @initialize(ended=st.lists(ends, min_size=1, max_size=3), data=printed)
    def begin_the_first_session(
        self, ended: list[tuple[TaskState, str | None, int | None]], data: bytes
    ) -> None:
        """There are some tasks of each kind from the start: most rules need one."""
        self.begin_session("a", 0)
        self.begin_supervisor(0)
        for place, end in enumerate(ended):
            runner = "process" if place % 2 else "thread"
            self.launch_task(0, "train", "print('alpha')", ["nightly"], runner)
            self.claim(0)
            task = self.tasks()[-1]
            if task.state is TaskState.PENDING:
                self.start_task(task)
            self.print_in(task.id, OutputKind.STDOUT, data, 2)
            self.end_task(task.id, end)
        for runner in ("thread", "process", "thread"):
            self.launch_task(0, "", "print('beta')", [], runner)
        self.claim(0)
        self.start_task(self.tasks()[-1])

    @rule(name=st.sampled_from("aab"), kernel=st.integers(0, 2))
    def begin_session(self, name: str, kernel: int) -> None:
        """A kernel starts: a new one, one after a restart, or one whose notebook was renamed."""
        if len(self.sessions(lambda each: each.is_alive)) >= 4:
            return
        self.count += 1
        path, uuid = str(self.world.root / f"{name}.ipynb"), f"kernel-{kernel}"
        expected = self.model.notebook_of(path, uuid)
        session_id = f"{os.getpid() % 0xFFFF:04x}{self.count:04x}-{self.count}"
        uid = self.world.begin(session_id, path, uuid)
        if expected is None:
            assert uid not in self.model.notebooks
        else:
            assert uid == expected
        self.model.begin(Session(session_id, uid, path, uuid, place=self.count))

    @rule(pick=picks, goes_on=st.booleans())
    def end_session(self, pick: int, goes_on: bool) -> None:
        """A kernel says that it ends. Where the extension is loaded again the session goes on."""
        session = self.session(pick, lambda each: each.is_alive)
        if session is None:
            return
        owner, at = self.world.kernels[session.id], now()
        owner.store.tasks.interrupt_session(session.id, "thread", "extension unloaded", at)
        owner.store.sessions.end(session.id, "extension unloaded", at)
        self.model.end_session(session, "extension unloaded")
        if goes_on:
            assert self.world.begin(session.id, session.path, session.kernel_uuid) == (
                session.notebook
            )
            session.is_alive, session.end_reason = True, None
        else:
            self.world.kernels.pop(session.id).kill()

    @rule(pick=picks)
    def kill_kernel(self, pick: int) -> None:
        session = self.session(pick, lambda each: each.is_alive)
        if session is not None:
            self.world.kernels.pop(session.id).kill()
            session.is_alive = False

    @rule(pick=picks)
    def begin_supervisor(self, pick: int) -> None:
        session = self.session(pick, lambda each: each.is_alive and not each.supervisor)
        if session is not None:
            owner = self.world.new_owner()
            key = owner.store.supervisors.begin(session.id, owner.identity).key
            self.world.supervisors[session.id] = (key, owner)
            session.supervisor = session.is_supervisor_alive = True

    @rule(pick=picks)
    def kill_supervisor(self, pick: int) -> None:
        session = self.session(pick, lambda each: each.is_supervisor_alive)
        if session is not None:
            self.world.supervisors.pop(session.id)[1].kill()
            session.is_supervisor_alive = False
            self.refreshed()

    @rule(pick=picks)
    def retire_supervisor(self, pick: int) -> None:
        """It goes when it has nothing to do, unless a task waits for it."""
        session = self.session(pick, lambda each: each.is_supervisor_alive)
        if session is None or any(
            task.id in session.supervised for task in self.tasks(lambda each: each.is_live)
        ):
            return
        key, owner = self.world.supervisors[session.id]
        record = owner.store.supervisors.get(key)
        assert record is not None
        is_waited_for = any(
            task.session == session.id
            and task.runner == "process"
            and task.state is TaskState.PENDING
            for task in self.tasks()
        )
        assert owner.store.supervisors.retire(record) is not is_waited_for
        if not is_waited_for:
            self.world.supervisors.pop(session.id)[1].kill()
            session.supervisor = session.is_supervisor_alive = False
            session.supervised.clear()

    @rule()
    def reconcile(self) -> None:
        self.refreshed()

    @rule(pick=picks)
    def delete_session(self, pick: int) -> None:
        session = self.session(pick, lambda each: not each.is_alive)
        if session is None:
            return
        self.refreshed()
        record = self.store.sessions.get(session.id)
        assert record is not None
        tasks = [task for task in self.tasks() if task.session == session.id]
        if any(task.is_live for task in tasks):
            with pytest.raises(InvalidRequest):
                self.world.manager.changes.delete_session(record)
            return
        if session.id in self.world.supervisors:
            self.world.supervisors.pop(session.id)[1].kill()
        self.world.manager.changes.delete_session(record)
        self.model.delete_session(session)

    # Tasks.

    @rule(
        pick=picks, name=names, word=words, tags=tags, runner=st.sampled_from(["thread", "process"])
    )
    def launch(self, pick: int, name: str, word: str, tags: list[str], runner: str) -> None:
        self.launch_task(pick, name, f"print('{word}')", tags, runner)

    @rule(pick=picks, earlier=picks, once=st.booleans())
    def rerun(self, pick: int, earlier: int, once: bool) -> None:
        task = self.task(earlier, lambda each: not each.is_live)
        if task is None:
            return
        if once and task.rerun_as is not None:
            with pytest.raises(AlreadyRunAgain):
                self.launch_task(pick, "", task.source, [], task.runner, task, once=True)
        else:
            self.launch_task(pick, "", task.source, [], task.runner, task, once=once)

    def launch_task(
        self,
        pick: int,
        name: str,
        source: str,
        tags: list[str],
        runner: str,
        earlier: Known | None = None,
        *,
        once: bool = False,
    ) -> None:
        session = self.session(pick, lambda each: each.is_alive and each.end_reason is None)
        if session is None:
            self.begin_session("a", 0)
            session = self.sessions(lambda each: each.is_alive)[-1]
        owner = self.world.kernels[session.id]
        new = NewTask(
            notebook_key=self.world.notebook_key(session.notebook),
            session_id=session.id,
            name=name,
            kind="python",
            runner=runner,
            source=source,
            tags=tags,
            rerun_of=None if earlier is None else self.key(earlier.id),
            once=once,
            provenance={} if earlier is None else {"rerun_of": earlier.id},
        )
        process = NewProcess(["true"], "/", 1.0, Options(), {"SECRET": "1"})

        def complete(connection: Any, key: int, _task_id: str) -> None:
            if runner == "process":
                process.insert(connection, key)

        record = owner.store.tasks.insert(new, complete)
        number = self.model.notebooks[session.notebook].last_number + 1
        known = Known(
            id=f"{session.id[:8]}-{number}",
            number=number,
            notebook=session.notebook,
            session=session.id,
            name=name,
            runner=runner,
            source=source,
            created_at=record.created_at.timestamp(),
            tags=frozenset(tags),
            rerun_of=None if earlier is None else earlier.id,
        )
        assert (record.id, record.number) == (known.id, known.number)
        self.model.launch(known, known.rerun_of)

    @rule(pick=picks)
    def start(self, pick: int) -> None:
        """A kernel's thread begins a task; it does so once."""
        task = self.task(
            pick, lambda each: each.runner == "thread" and self.owner(each) is not None
        )
        if task is not None:
            self.start_task(task)

    def start_task(self, task: Known) -> None:
        owner = self.owner(task)
        assert owner is not None
        is_pending = task.state is TaskState.PENDING
        assert owner.store.tasks.start(self.key(task.id), now()) is is_pending
        if is_pending:
            self.model.change(task.id, lambda each: each.moved(TaskState.RUNNING))

    @rule(pick=picks)
    def claim(self, pick: int) -> None:
        """A supervisor takes what waits for it, but nothing that is to be cancelled."""
        session = self.session(pick, lambda each: each.is_supervisor_alive)
        if session is None:
            return
        key, owner = self.world.supervisors[session.id]
        waiting = [
            task.id
            for task in self.model.of_notebook(session.notebook)
            if task.session == session.id
            and task.runner == "process"
            and task.state is TaskState.PENDING
            and not task.is_cancel_asked
        ]
        claimed = owner.store.processes.claim(session.id, key, now(), limit=1000)
        assert [process.task_id for process in claimed] == waiting
        assert all(process.environment == {"SECRET": "1"} for process in claimed)
        for task_id in waiting:
            kept = self.store.processes.get(self.key(task_id))
            assert kept is not None
            assert (kept.environment, kept.supervisor_key) == ({}, key)
            self.model.change(task_id, lambda each: each.moved(TaskState.RUNNING))
        session.supervised.update(waiting)

    @rule(pick=picks, kind=streams, data=printed, cut=st.integers(1, 4))
    def print(self, pick: int, kind: OutputKind, data: bytes, cut: int) -> None:
        found = self.running(pick)
        if found is not None:
            self.print_in(found[0].id, kind, data, cut)

    def print_in(self, task_id: str, kind: OutputKind, data: bytes, cut: int) -> None:
        owner = self.owner(self.model.tasks[task_id])
        assert owner is not None
        size = max(1, -(-len(data) // cut))
        for start in range(0, len(data), size):
            owner.recording(self.key(task_id)).write(kind, data[start : start + size])
        owner.flush()
        self.model.change(task_id, lambda each: each.with_printed(kind, data))

    @rule(pick=picks, word=words)
    def display(self, pick: int, word: str) -> None:
        found = self.running(pick)
        if found is None:
            return
        task, owner = found
        content = {"data": {"text/plain": f"<{word}>"}, "metadata": {}}
        owner.recording(self.key(task.id)).add(OutputKind.DISPLAY_DATA, content)
        owner.flush()
        data = encode_content(content)
        self.model.change(task.id, lambda each: each.with_printed(OutputKind.DISPLAY_DATA, data))

    @rule(pick=picks, done=st.integers(0, 9), total=st.none() | st.integers(1, 9))
    def progress(self, pick: int, done: int, total: int | None) -> None:
        found = self.running(pick)
        if found is None:
            return
        task, owner = found
        said = Progress(float(done), None if total is None else float(total), "steps")
        recording = owner.recording(self.key(task.id))
        recording.progress(said)
        assert owner.recorder.change(recording.save_progress, 60)
        self.model.change(task.id, lambda each: replace(each, progress=said))

    @rule(pick=picks, end=ends)
    def end(self, pick: int, end: tuple[TaskState, str | None, int | None]) -> None:
        """A task ends, once. One that never began cannot complete."""
        task = self.task(pick, lambda each: self.owner(each) is not None)
        if task is not None:
            self.end_task(task.id, end)

    def end_task(self, task_id: str, end: tuple[TaskState, str | None, int | None]) -> None:
        task = self.model.tasks[task_id]
        owner = self.owner(task)
        assert owner is not None
        state, reason, code = end
        if task.state is TaskState.PENDING and state is TaskState.COMPLETED:
            state, reason, code = TaskState.CANCELLED, "cancelled", None
        ended: list[bool] = []
        key = self.key(task.id)
        recording = owner.recording(key)

        def change(store: TaskStore) -> None:
            recording.finish(store)
            ended.append(store.tasks.end(key, state, reason, code, now()))

        assert owner.recorder.change(change, 60)
        assert ended == [task.is_live]
        if task.is_live:
            self.model.change(task.id, lambda each: each.moved(state, reason, code))

    @rule(pick=picks, state=st.sampled_from([*TaskState]))
    def refuse_illegal_transition(self, pick: int, state: TaskState) -> None:
        """Whoever writes to the file: a trigger refuses what is not drawn."""
        task = self.task(pick, lambda each: (each.state, state) not in LEGAL)
        if task is None:
            return
        with pytest.raises(self.store.database.integrity_error):
            self.store.database.execute(
                "UPDATE tasks SET state = ? WHERE id = ?", (state.value, task.id)
            )

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        task = self.task(pick)
        if task is None:
            return
        assert self.world.manager.changes.cancel(self.world.record(task.id)) is task.is_live
        if task.is_live:
            self.model.change(task.id, lambda each: replace(each, is_cancel_asked=True))

    # What is kept of them.

    @rule(pick=picks, added=tags, removed=tags)
    def tag(self, pick: int, added: list[str], removed: list[str]) -> None:
        task = self.task(pick)
        if task is not None:
            self.store.tasks.tag(self.key(task.id), added, removed)
            now_has = (task.tags | set(added)) - set(removed)
            self.model.change(task.id, lambda each: replace(each, tags=frozenset(now_has)))

    @rule(pick=picks)
    def clear(self, pick: int) -> None:
        uid = [*self.model.notebooks][pick % len(self.model.notebooks)]
        ended = [
            task for task in self.model.of_notebook(uid) if not task.is_live and not task.is_cleared
        ]
        assert self.store.tasks.clear(self.world.notebook_key(uid)) == len(ended)
        for task in ended:
            self.model.change(task.id, lambda each: replace(each, is_cleared=True))

    @rule(pick=picks, count=st.integers(1, 3))
    def archive(self, pick: int, count: int) -> None:
        ids = self.ended(pick, count)
        moved = self.world.archives.archive([self.world.record(each) for each in ids])
        assert sum(moved.values()) == len(ids)
        self.model.archive(ids, self.month_of)

    @rule(pick=picks, count=st.integers(1, 3))
    def unarchive(self, pick: int, count: int) -> None:
        ids = self.archived(pick, count)
        self.world.archives.unarchive(self.archived_records(ids))
        self.model.unarchive(ids)

    @rule(pick=picks, count=st.integers(1, 2))
    def delete(self, pick: int, count: int) -> None:
        everything = sorted(self.model.everything())
        ids = everything[pick % (len(everything) + 1) :][:count]
        live = [each for each in ids if self.model.everything()[each].is_live]
        if live:
            with pytest.raises(InvalidRequest):
                self.world.manager.changes.delete(self.world.records(ids))
        else:
            self.world.manager.changes.delete(self.world.records(ids))
            self.model.delete(ids)

    def ended(self, pick: int, count: int) -> list[str]:
        found = [task.id for task in self.tasks(lambda each: not each.is_live)]
        return found[pick % (len(found) + 1) :][:count]

    def archived(self, pick: int, count: int) -> list[str]:
        """Ids in the archives, of tasks that the store has not."""
        found = [each for there in self.model.archives.values() for each in there]
        found = [each for each in found if each not in self.model.tasks]
        return found[pick % (len(found) + 1) :][:count]

    def archived_records(self, ids: list[str]) -> list[Any]:
        found = self.world.archives.select(Selection())
        return [task for task in found if task.id in ids]

    def month_of(self, task: Known) -> str:
        return next(
            month
            for month in self.world.manager.directory.months()
            if self.world.archives.open(month).tasks.by_id(task.id) is not None
        )

    # Files.

    @rule()
    def back_up(self) -> None:
        path = self.store.back_up(self.new_file(".db"))
        self.backups.append(File(path, self.model.copy()))

    @rule(pick=picks)
    def restore(self, pick: int) -> None:
        if not self.backups:
            return
        backup = self.backups[pick % len(self.backups)]
        if self.model.live():
            with pytest.raises(InvalidRequest):
                restoring.restore(self.store, backup.path)
            return
        before = self.model.copy()
        done = restoring.restore(self.store, backup.path)
        assert done.tasks == len(backup.model.tasks)
        self.model.restore(backup.model)
        # What was there is set aside whole, and can be restored as well.
        path = self.new_file(".db")
        done.set_aside.rename(path)
        self.backups.append(File(path, before))

    @rule(
        pick=picks, count=st.integers(1, 9), form=st.sampled_from([Export.lines, Export.document])
    )
    def export(self, pick: int, count: int, form: Any) -> None:
        everything = sorted(self.model.everything())
        ids = everything[pick % (len(everything) + 1) :][:count]
        path, export = (
            self.new_file(".jsonl"),
            Export(
                self.world.manager.archives, self.world.manager.payloads, self.world.records(ids)
            ),
        )
        path.write_bytes(b"".join(form(export)))
        assert export.count == len(ids)
        model = self.model.copy()
        model.tasks = {each: model.everything()[each] for each in ids}
        model.archives = {}
        self.exports.append(File(path, model))

    @rule(pick=picks)
    def import_here(self, pick: int) -> None:
        """What is there already is left as it is; what was deleted comes back."""
        if not self.exports:
            return
        file = self.exports[pick % len(self.exports)]
        new = self.model.take_in(file.model)
        self.import_file(file, self.store, self.world.archives, new)
        self.import_file(file, self.store, self.world.archives, [])

    @rule(pick=picks)
    def import_elsewhere(self, pick: int) -> None:
        if not self.exports:
            return
        file = self.exports[pick % len(self.exports)]
        root = self.root / "other"
        if not root.exists():
            Templates.state_directory(root)
        with closing(TaskStore(self.world.store.directory.__class__(root)).open()) as store:
            new = [each for each in file.model.tasks if each not in self.other]
            self.other.update({each: imported(file.model.tasks[each]) for each in new})
            for expected in (new, []):
                with closing(Archives(store)) as archives:
                    self.import_file(file, store, archives, expected)
            assert observed(store) == self.other

    @staticmethod
    def import_file(file: File, store: TaskStore, archives: Archives, new: list[str]) -> None:
        payloads = Payloads(store.directory)
        report = importing.import_file(file.path, store, archives.all, payloads)
        assert report.invalid == []
        assert sorted(report.ids) == sorted(new)
        assert report.skipped == len(file.model.tasks) - len(new)

    # Faults.

    @rule(pick=picks)
    def throw_a_transaction_away(self, pick: int) -> None:
        """A transaction that an exception breaks off has changed nothing."""
        store = TaskStore(self.store.directory).open()
        with suppress(InterruptedError), store.database.transaction():
            for task in self.tasks():
                key = self.key(task.id)
                store.tasks.start(key, now())
                store.tasks.end(key, TaskState.FAILED, "never", 1, now())
                store.tasks.request_cancel(key)
                store.tasks.dropped(key, 5)
            store.tasks.clear(self.world.notebook_key(next(iter(self.model.notebooks))))
            raise InterruptedError
        store.close()

    @rule()
    def part_a_transaction_from_its_end(self) -> None:
        """One that nothing will end is rolled back before the thread's next statement."""
        connection = self.store.database.connection
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE tasks SET name = 'never'")

    @rule(pick=picks, statement=deaths)
    def kill_while_launching(self, pick: int, statement: int) -> None:
        session = self.session(pick, lambda each: each.is_alive)
        if session is None:
            return
        key = self.world.notebook_key(session.notebook)
        before = observed(self.store)
        Killer.do(self.world.root, "launch", [key, session.id], statement)
        after = observed(self.store)
        new = {task_id: known for task_id, known in after.items() if task_id not in before}
        for task_id, known in new.items():
            assert task_id == f"{session.id[:8]}-{known.number}"
            assert known.number > self.model.notebooks[session.notebook].last_number
            assert (known.tags, known.history) == ({"a", "b"}, (TaskState.PENDING,))
            self.model.launch(known)

    @rule(pick=picks, texts=st.lists(st.sampled_from(["alpha\n", "be", "ta\n"])), statement=deaths)
    def kill_while_printing(self, pick: int, texts: list[str], statement: int) -> None:
        """Whole pieces are there, the first ones; it has ended only when all of them are."""
        task = self.task(
            pick,
            lambda each: (
                each.state is TaskState.RUNNING and not each.printed and each.id not in self.left
            ),
        )
        if task is None or not texts:
            return
        self.left.add(task.id)
        was_killed = Killer.do(self.world.root, "print", [self.key(task.id), texts], statement)
        states = [task]
        for text in texts:
            states.append(states[-1].with_printed(OutputKind.STDOUT, text.encode()))
        states.append(states[-1].moved(TaskState.COMPLETED, None, 0))
        known = observed(self.store)[task.id]
        assert known in states
        assert was_killed or known == states[-1]
        self.model.tasks[task.id] = known

    @rule(work=st.sampled_from(["archive", "unarchive", "delete"]), pick=picks, statement=deaths)
    def kill_while_moving(self, work: str, pick: int, statement: int) -> None:
        """Each task is where it was or where it goes, or in both, and whole in each."""
        ids = self.archived(pick, 3) if work == "unarchive" else self.ended(pick, 3)
        if not ids:
            return
        after = self.model.copy()
        months = {each.id: f"{each.created_at:%Y-%m}" for each in self.world.records(ids)}
        was_killed = Killer.do(self.world.root, work, [ids], statement)
        if work == "archive":
            after.archive(ids, lambda task: months[task.id])
        else:
            (after.unarchive if work == "unarchive" else after.delete)(ids)
        self.adopt(after, was_killed)

    @rule(pick=picks, statement=deaths)
    def kill_while_importing(self, pick: int, statement: int) -> None:
        if not self.exports:
            return
        file = self.exports[pick % len(self.exports)]
        after = self.model.copy()
        after.take_in(file.model)
        was_killed = Killer.do(self.world.root, "import", [str(file.path)], statement)
        self.adopt(after, was_killed)
        # The rest comes with another attempt, and only the rest.
        new = self.model.take_in(file.model)
        self.import_file(file, self.store, self.world.archives, new)

    @rule(pick=picks, statement=deaths)
    def kill_while_restoring(self, pick: int, statement: int) -> None:
        """All is as it was, or all is restored."""
        if not self.backups or self.model.live():
            return
        backup = self.backups[pick % len(self.backups)]
        after = self.model.copy()
        after.restore(backup.model)
        was_killed = Killer.do(self.world.root, "restore", [str(backup.path)], statement)
        if not was_killed or observed(self.store) != self.model.tasks:
            self.model = after
        self.forget_copies_set_aside()

    @rule(index=st.sampled_from(FOR_INDEXES), statement=st.none() | deaths)
    def repair(self, index: str, statement: int | None) -> None:
        """An index is damaged: all that the tables say is saved, also by a second attempt."""
        (page,) = self.store.database.row(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (index,)
        )
        self.world.close_connections()
        with self.store.database.path.open("r+b") as file:
            file.seek((page - 1) * PAGE_BYTES)
            file.write(b"\xa5" * PAGE_BYTES)
        self.store.directory.damage_mark.touch(mode=0o600)
        if statement is not None:
            Killer.do(self.world.root, "open", [], statement)
        self.store.open()
        self.forget_copies_set_aside()

    def forget_copies_set_aside(self) -> None:
        """Nothing but the store itself is there for the next repair."""
        for file in self.store.directory.backups.glob("*.db"):
            file.unlink()

    def adopt(self, after: Model, was_killed: bool) -> None:
        """Each task is as before or as after, in each place by itself. So it is from now on."""
        before = self.model
        found = observed(self.store)
        _assert_between(before.tasks, after.tasks, found)
        archives = {
            month: observed(self.world.archives.open(month))
            for month in self.world.manager.directory.months()
        }
        for month in {*before.archives, *after.archives, *archives}:
            there = archives.get(month, {})
            _assert_between(before.archives.get(month, {}), after.archives.get(month, {}), there)
        assert {*found}.union(*archives.values()) >= {*before.everything()} & {*after.everything()}
        if not was_killed:
            assert found == after.tasks
        for session_id, session in after.sessions.items():
            if self.store.sessions.get(session_id) is not None:
                before.sessions.setdefault(session_id, session)
        before.tasks, before.archives = found, archives

    # Looking.

    @rule(text=names | st.sampled_from(["1", "2", "3", "-2", "-9", "0", "x"]))
    def find(self, text: str) -> None:
        self.assert_found(text)

    @rule(pick=picks, characters=st.integers(1, 10), is_number=st.booleans())
    def find_one(self, pick: int, characters: int, is_number: bool) -> None:
        everything = [*self.model.everything().values()]
        if everything:
            task = everything[pick % len(everything)]
            self.assert_found(str(task.number) if is_number else task.id[:characters])
            self.assert_found(task.id)

    def assert_found(self, text: str) -> None:
        self.refreshed()
        notebook = self.model.notebook_of(str(self.world.root / "a.ipynb"), "")
        try:
            expected = self.model.meant(notebook, text or "-1")
        except Ambiguous:
            with pytest.raises(AmbiguousReference):
                self.world.manager.tasks.find(text or None)
            return
        if expected is None:
            with pytest.raises(TaskNotFound):
                self.world.manager.tasks.find(text or None)
        else:
            assert self.world.manager.tasks.find(text or None).id == expected

    @rule(word=words)
    def search(self, word: str) -> None:
        found = text_search.search(
            self.store,
            self.world.archives,
            search_query.parse([word]),
            search_query.Scope(archived=True, limit=1000),
            lambda _done, _total: None,
        )
        expected = {task.id for task in self.model.everything().values() if task.says(word)}
        assert {hit.task.id for hit in found.hits} == expected

    # What must always hold.

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        self.the_store_says_what_the_model_says()
        self.numbers_are_never_given_again()
        self.looks += 1
        if self.looks % LOOK_AT_ALL_EACH == 0:
            self.all_else_follows()

    def all_else_follows(self) -> None:
        self.lists_are_in_order_and_counts_right()
        self.sessions_stand_as_the_model_says()
        self.the_file_is_whole()
        self.links_to_earlier_tasks_are_right()
        self.no_output_is_left_without_its_task()

    def the_store_says_what_the_model_says(self) -> None:
        assert observed(self.store) == self.model.tasks
        for month in self.world.manager.directory.months():
            there = observed(self.world.archives.open(month))
            assert there == self.model.archives.get(month, {})

    def numbers_are_never_given_again(self) -> None:
        for notebook in self.store.sessions.notebooks():
            (last,) = self.store.database.row(
                "SELECT last_number FROM notebooks WHERE key = ?", (notebook.key,)
            )
            known = self.model.notebooks[notebook.uid]
            assert last == known.last_number, notebook
            numbers = [
                task.number
                for task in self.model.everything().values()
                if task.notebook == notebook.uid
            ]
            assert len(set(numbers)) == len(numbers)
            assert max(numbers, default=0) <= last

    def lists_are_in_order_and_counts_right(self) -> None:
        tasks = self.store.tasks
        times = [task.created_at for task in tasks.select(Selection())]
        assert times == sorted(times)
        for uid, key in self.notebook_keys().items():
            own = self.model.of_notebook(uid)
            assert [task.id for task in tasks.select(Selection(key))] == [each.id for each in own]
            last = [task.id for task in tasks.select(Selection(key, limit=2))]
            assert last == [each.id for each in own[-2:]]
            shown = [each.id for each in own if not each.is_cleared]
            selection = Selection(key, cleared=False)
            assert [task.id for task in tasks.select(selection)] == shown
            assert tasks.count(selection) == len(shown)
            live = [each for each in own if each.is_live]
            assert tasks.count(Selection(key, LIVE_STATES)) == len(live)
            assert len(tasks.live(key)) == len(live)
            kept = [each for each in own if "keep" in each.tags]
            assert tasks.count(Selection(key, tags=["keep"])) == len(kept)
            interrupted = [task.id for task in tasks.interrupted(key)]
            assert interrupted == self.model.to_resume(uid)
        archived = self.world.archives.select(Selection())
        expected = self.model.everything().keys() - self.model.tasks.keys()
        assert {task.id for task in archived} == expected

    def sessions_stand_as_the_model_says(self) -> None:
        found = {session.id: session for session in self.store.sessions.select(None)}
        assert found.keys() == self.model.sessions.keys()
        for session_id, session in self.model.sessions.items():
            assert found[session_id].end_reason == session.end_reason
            own = [task for task in self.tasks() if task.session == session_id]
            counts = {state.value: [task.state for task in own].count(state) for state in TaskState}
            expected = {state: count for state, count in counts.items() if count}
            assert dict(found[session_id].task_counts) == expected
            asked = [task.id for task in own if task.is_live and task.is_cancel_asked]
            keys = self.store.tasks.cancel_requested(session_id)
            assert sorted(keys) == sorted(map(self.key, asked))

    def the_file_is_whole(self) -> None:
        assert self.store.database.row("PRAGMA integrity_check") == ("ok",)

    def links_to_earlier_tasks_are_right(self) -> None:
        for task in self.store.tasks.select(Selection()):
            if task.rerun_of is not None:
                earlier = self.store.tasks.get(task.rerun_of)
                assert earlier is not None
                assert earlier.id == task.provenance["rerun_of"]

    def no_output_is_left_without_its_task(self) -> None:
        removed = self.store.database.rows("SELECT task_key FROM removed_tasks")
        for table, row, _parent, _number in self.store.database.rows("PRAGMA foreign_key_check"):
            assert table == "outputs"
            query = "SELECT task_key FROM outputs WHERE sequence = ?"
            assert self.store.database.row(query, (row,)) in removed

    def notebook_keys(self) -> dict[str, int]:
        return {notebook.uid: notebook.key for notebook in self.store.sessions.notebooks()}


def _assert_between(
    before: dict[str, Known], after: dict[str, Known], found: dict[str, Known]
) -> None:
    for task_id in {*before, *after, *found}:
        assert found.get(task_id) in (before.get(task_id), after.get(task_id)), task_id


@pytest.fixture(scope="module", autouse=True)
def _the_killer_ends() -> Iterator[None]:
    """Its process is used by all examples."""
    yield
    Killer.stop()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else prints, whom a removal would let come in between."""
    monkeypatch.setattr(transfer, "PAUSE_S", 0)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_store_says_what_the_model_says_whatever_is_done_to_it(part: int) -> None:
    chosen = tried(15, steps=STEPS)
    few = -(-chosen.max_examples // PARTS)
    run_state_machine_as_test(StoreMachine, settings=type(chosen)(chosen, max_examples=few))
