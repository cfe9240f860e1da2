"""A place on loopback as a notebook uses it, and what came of the tasks there."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
from engines import SshServer
from kernels import NotebookKernel, until

import ipytaskpersist
from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import ProcessRecord, TaskRecord
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

PACKAGE_FOLDER = Path(ipytaskpersist.__file__).parent.parent


class Far:
    """A place, the notebook that uses it, and the store with what came of that."""

    def __init__(self, server: SshServer, folder: Path, notebook: Path, store: TaskStore) -> None:
        self.server, self.folder, self.notebook, self.store = server, folder, notebook, store
        spec = {key: value for key, value in server.spec.items() if key != "name"}
        # A Python there that has the package that is tested.
        python = f"env PYTHONPATH={PACKAGE_FOLDER} {sys.executable}"
        self.spec = {**spec, "python": python, "folder": str(folder / "tasks there")}
        self.stop = folder / "stop"

    def use(self, kernel: NotebookKernel) -> NotebookKernel:
        kernel.run(f"%config BackgroundTasks.places = {{'far': {self.spec!r}}}")
        return kernel

    def task(self, number: int = 1) -> TaskRecord:
        (task,) = [each for each in self.store.tasks.select(Selection()) if each.number == number]
        return task

    def process(self, number: int = 1) -> ProcessRecord:
        process = self.store.processes.get(self.task(number).key)
        assert process is not None
        return process

    def text(self, number: int = 1) -> str:
        outputs = self.store.outputs.of(self.task(number).key)
        return b"".join(output.data for output in outputs).decode()

    def counts(self, more_than: int = 5) -> bool:
        before = self.text().count("\n")
        return bool(until(lambda: self.text().count("\n") > before + more_than, message="lines"))

    def ended(self, number: int = 1) -> TaskRecord:
        until(lambda: self.task(number).state.is_final, message=f"the end of task {number}")
        return self.task(number)

    def left(self) -> list[Path]:
        """The folders of tasks that are there."""
        return [each for each in Path(self.spec["folder"]).glob("*") if each.name != "buffers"]

    def shared(self) -> set[tuple[str, int]]:
        """The files there that tasks share."""
        files = Path(self.spec["folder"], "buffers").glob("*")
        return {(each.name, each.stat().st_ino) for each in files}

    def has_arrivals(self) -> bool:
        """Whether a part of a file is here that a task has left there."""
        return any(self.store.directory.payloads.glob(".*.part"))

    def is_whole(self) -> bool:
        *counted, last = self.text().splitlines()
        return counted == [f"line {number}" for number in range(len(counted))] and last == "done"

    def kill_supervisor(self) -> None:
        (supervisor,) = self.store.supervisors.unfinished()
        psutil.Process(supervisor.pid).kill()
        until(lambda: ProcessIdentity.of(supervisor.pid) is None, message="its death")
