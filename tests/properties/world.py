"""A real state directory with real processes: what the model says is compared with this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipytaskpersist
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import STREAM_KINDS, TaskRecord
from ipytaskpersist.output.recorder import Recorder
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from properties import dying
from properties.model import Known, joined

SHARED_MEMORY = Path("/dev/shm")
SLEEP_S = 300
"""How long a process stays that nobody has ended, because this one was killed."""


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example, in memory where that is possible."""
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="ipytaskpersist-", dir=place))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Templates:
    """An empty store, made once: to migrate it takes ten times as long as to copy it."""

    _content: bytes = b""

    @classmethod
    def state_directory(cls, root: Path) -> Path:
        """A state directory with an empty store."""
        directory = StateDirectory(root)
        if not cls._content:
            TaskStore(directory).open().close()
            cls._content = directory.store.read_bytes()
            return root
        directory.create()
        directory.store.write_bytes(cls._content)
        return root


class Owner:
    """A kernel or a supervisor: a process that lives, and what it does to the store.

    The process does nothing but live and die. What it would do is done here, by connections and a
    writer thread of its own.
    """

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(["sleep", str(SLEEP_S)])
        identity = ProcessIdentity.of(self._process.pid)
        assert identity is not None
        self.identity = identity
        self.store = TaskStore(StateDirectory(root)).open()
        self.warnings: list[str] = []
        self._recorder: Recorder | None = None
        self._recordings: dict[int, Recording] = {}

    @property
    def recorder(self) -> Recorder:
        if self._recorder is None:
            self._recorder = Recorder(self.store, warn=self.warnings.append, heartbeat=lambda: None)
            self._recorder.start()
        return self._recorder

    def recording(self, key: int) -> Recording:
        if key not in self._recordings:
            self._recordings[key] = Recording(self.recorder, key)
        return self._recordings[key]

    def flush(self) -> None:
        """Have what was printed committed."""
        if self._recorder is not None:
            assert self._recorder.change(lambda _store: None, 60)

    def kill(self) -> None:
        """Kill the process. What it has written stays."""
        if self._recorder is not None:
            self._recorder.stop(60)
        self.store.close()
        self._process.kill()
        self._process.wait()


class Killer:
    """Has something done by a process that is killed in the middle of it."""

    _program: subprocess.Popen[str] | None = None

    @classmethod
    def do(cls, root: Path, work: str, arguments: list[Any], statement: int) -> bool:
        """Returns whether it was killed: otherwise it had come to its end before."""
        program = cls._program = cls._program or cls._start()
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps([str(root), work, arguments, statement]) + "\n")
        program.stdin.flush()
        status = int(program.stdout.readline())
        assert status in (0, 9), f"{work} failed: {status}"
        return status == 9

    @classmethod
    def _start(cls) -> subprocess.Popen[str]:
        source = str(Path(ipytaskpersist.__file__).parents[1])
        return subprocess.Popen(
            [sys.executable, dying.__file__],
            env={**os.environ, "PYTHONPATH": source},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @classmethod
    def stop(cls) -> None:
        """End the process."""
        if cls._program is not None:
            cls._program.communicate()
            cls._program = None


class World:
    """One state directory, and the processes that use it."""

    def __init__(self, root: Path) -> None:
        self.root = Templates.state_directory(root)
        self._before = {name: os.environ.get(name) for name in ("IPYTASKPERSIST_DIR", "IPYTHONDIR")}
        os.environ.update(IPYTASKPERSIST_DIR=str(root), IPYTHONDIR=str(root / "ipython"))
        self.manager = BackgroundTasks(None, notebook=str(root / "a.ipynb"))
        self.store = self.manager.store.open()
        self.archives = self.manager.archives
        self.kernels: dict[str, Owner] = {}
        self.supervisors: dict[str, tuple[int, Owner]] = {}
        self._owned: list[Owner] = []

    def owners(self) -> list[Owner]:
        return [*self.kernels.values(), *(owner for _key, owner in self.supervisors.values())]

    def close(self) -> None:
        """End every process and let go of the files."""
        for owner in self.owners():
            owner.kill()
        self.manager.close()
        warnings = [warning for owner in self._owned for warning in owner.warnings]
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        assert warnings == []

    def new_owner(self) -> Owner:
        """A process that will own tasks."""
        self._owned.append(Owner(self.root))
        return self._owned[-1]

    def close_connections(self) -> None:
        """Nobody has the store open any more, until somebody uses it again."""
        for owner in self.owners():
            owner.flush()
            owner.store.close()
        self.archives.close()
        self.store.close()

    def begin(self, session_id: str, path: str, kernel_uuid: str) -> str:
        """A session of a new process, or one that goes on. Returns its notebook's uid."""
        owner = self.kernels.get(session_id) or self.new_owner()
        self.kernels[session_id] = owner
        record = owner.store.sessions.begin(
            SessionIdentity(session_id, "kernel", path, True, kernel_uuid, owner.identity)
        )
        return str(owner.store.sessions.uid_of_notebook(record.notebook_key))

    def notebook_key(self, uid: str) -> int:
        key = self.store.sessions.notebook_of_uid(uid)
        assert key is not None
        return key

    def record(self, task_id: str) -> TaskRecord:
        """What the store itself knows of a task."""
        found = self.store.tasks.by_id(task_id)
        assert found is not None, f"{task_id} is lost"
        return found

    def records(self, ids: list[str]) -> list[TaskRecord]:
        """What is known of tasks, wherever they are."""
        found = []
        for task_id in ids:
            places = (self.store, *self.archives.all())
            found.append(next(task for each in places if (task := each.tasks.by_id(task_id))))
        return found


def observed(store: TaskStore) -> dict[str, Known]:
    """All that a store knows of its tasks, whose times and reasons go together."""
    for task in store.tasks.select(Selection()):
        _check_times(store, task)
    return as_told(store)


def as_told(store: TaskStore) -> dict[str, Known]:
    """All that a store knows of its tasks, of which some came in a file that somebody changed."""
    notebooks = {notebook.key: notebook.uid for notebook in store.sessions.notebooks()}
    return {
        task.id: _known(store, task, notebooks[task.notebook_key])
        for task in store.tasks.select(Selection())
    }


def _check_times(store: TaskStore, task: TaskRecord) -> None:
    history = store.tasks.history(task.key)
    assert [event.at for event in history] == sorted(event.at for event in history), task
    times = [task.created_at, task.started_at, task.ended_at]
    assert (given := [at for at in times if at is not None]) == sorted(given), task
    assert history[0].at == task.created_at
    assert history[-1].reason == task.reason


def _known(store: TaskStore, task: TaskRecord, notebook: str) -> Known:
    return Known(
        id=task.id,
        number=task.number,
        notebook=notebook,
        session=task.session,
        name=task.name,
        runner=task.runner,
        source=task.source,
        created_at=task.created_at.timestamp(),
        tags=frozenset(task.tags),
        state=task.state,
        reason=task.reason,
        exit_code=task.exit_code,
        history=tuple(event.state for event in store.tasks.history(task.key)),
        printed=_printed(store, task),
        progress=task.progress,
        is_cancel_asked=task.cancel_requested_at is not None,
        is_cleared=task.cleared_at is not None,
        is_imported=task.is_imported,
        rerun_of=task.provenance.get("rerun_of"),
        rerun_as=task.provenance.get("rerun_as"),
    )


def _printed(store: TaskStore, task: TaskRecord) -> Any:
    records = list(store.outputs.of(task.key))
    for kind in STREAM_KINDS:
        written = b"".join(record.data for record in records if record.kind is kind)
        size = store.outputs.stream_size(task.key, kind)
        assert (size.size_bytes, size.lines) == (len(written), written.count(b"\n")), task
    if task.state.is_final:
        assert task.output_bytes == sum(len(record.data) for record in records), task
    return joined([(record.kind, record.data) for record in records])


def now() -> float:
    return time.time()
