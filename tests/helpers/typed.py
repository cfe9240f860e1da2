"""The verbs as they are typed in a notebook and in the terminal beside it."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels import Cell, NotebookKernel, until
from programs import run_command

from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

Document = dict[str, Any]
Run = Callable[..., "Answer"]
MakeKernel = Callable[..., NotebookKernel]
SURFACES = ("underscored", "spaced", "in_terminal")


@dataclass(frozen=True)
class Answer:
    """What a command gave, on whichever surface."""

    stdout: str
    stderr: str
    failed: bool
    status: int | None = None
    """The exit status, in a terminal."""
    cell: Cell | None = None

    @property
    def text(self) -> str:
        """Everything that a person would read."""
        return (self.cell.text if self.cell else self.stdout) + self.stderr

    def json(self) -> Any:
        assert not self.failed, self.stderr
        return json.loads(self.stdout)


class Notebook:
    """A kernel with the extension loaded, and the terminal beside it."""

    def __init__(self, kernel: NotebookKernel, state_dir: Path, path: Path) -> None:
        self.kernel = kernel
        self.state_dir = state_dir
        self.path = path

    def type(self, source: str) -> Answer:
        """Run a cell, which may fail."""
        cell = self.kernel.run(source, check=False)
        return Answer(cell.stream("stdout"), cell.stream("stderr"), bool(cell.error), cell=cell)

    def underscored(self, verb: str, *arguments: str) -> Answer:
        return self.type(f"%bg_{verb} {shlex.join(arguments)}")

    def spaced(self, verb: str, *arguments: str) -> Answer:
        return self.type(f"%bg {verb} {shlex.join(arguments)}")

    def in_terminal(self, verb: str, *arguments: str) -> Answer:
        ended = run_command(self.state_dir, verb, *arguments, notebook=self.path)
        return Answer(ended.stdout, ended.stderr, ended.returncode != 0, ended.returncode)

    def launch(self, source: str, name: str = "") -> Document:
        """Launch a task and return what `show` says of it."""
        self.kernel.run(f"%%background {shlex.quote(name) if name else ''}\n{source}")
        return self.show()

    def finish(self, source: str, name: str = "") -> Document:
        """Launch a task and return what `show` says of it after its end."""
        task = self.launch(source, name)
        return self.ended(task)

    def ended(self, task: Document) -> Document:
        return until(lambda: (now := self.show(task["id"]))["ended_at"] and now)

    def show(self, *reference: str) -> Document:
        return self.underscored("show", *reference, "--json").json()

    @contextmanager
    def running(self, name: str = "", before: str = "", after: str = "") -> Iterator[Document]:
        """A task that has done `before` and runs until the block is left, then does `after`."""
        gate, begun = (self.state_dir.parent / uuid.uuid4().hex for _ in range(2))
        task = self.launch(
            f"import pathlib, time\n{before}\npathlib.Path({str(begun)!r}).touch()\n"
            f"while not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.01)\n{after}",
            name,
        )
        try:
            until(begun.exists)
            task["gate"] = gate
            yield task
        finally:
            gate.touch()
            self.ended(task)


def record(
    store: TaskStore, *names: str, path: str = "/a.ipynb", session: str = "a1b2c3d4-x"
) -> list[TaskRecord]:
    """Tasks of a session that is alive, as long as these tests are."""
    identity = SessionIdentity(session, "program", path, True, None, ProcessIdentity.own())
    begun = store.sessions.begin(identity)
    return [
        store.tasks.insert(NewTask(begun.notebook_key, begun.id, name, "python", "thread", "1"))
        for name in names
    ]


def kinds(outputs: Sequence[Document]) -> list[str]:
    """The kind of each output."""
    return [output.get("name") or output["output_type"] for output in outputs]
