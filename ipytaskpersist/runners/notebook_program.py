"""The process of a task that runs a whole notebook, in a kernel of its own, cell by cell.

The supervisor starts it as it starts the process of a Python cell, and receives what the notebook
shows. It is asked what to run on its standard input. nbclient speaks with the kernel.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from traitlets import TraitError

from ipytaskpersist.base.detached import show_inspection
from ipytaskpersist.base.process_tree import MARK, signal_name
from ipytaskpersist.base.records import OutputKind, Progress, TaskState
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.runners import adoption, notebook_content
from ipytaskpersist.runners.channel import DESCRIPTOR, Sender
from ipytaskpersist.runners.notebook_plan import Plan, number, plan
from ipytaskpersist.runners.notebook_spec import NotebookRun
from ipytaskpersist.text.formatting import shorten

FAILED = 1
HEAD_CHARACTERS = 72
"""Length of the line that stands before a cell's outputs."""
REASON_CHARACTERS = 300
LATE_OUTPUT_S = 60
"""How long to wait for outputs that are still on their way when the kernel says a cell is done."""
SESSION_NAME = "JPY_SESSION_NAME"
"""Tells a kernel which notebook it runs, as a Jupyter server does."""
CONTENT = {
    OutputKind.DISPLAY_DATA: ("data", "metadata", "transient"),
    OutputKind.UPDATE_DISPLAY_DATA: ("data", "metadata", "transient"),
    OutputKind.EXECUTE_RESULT: ("data", "metadata", "execution_count"),
    OutputKind.ERROR: ("ename", "evalue", "traceback"),
}
"""What is handed on of a message."""


class Outputs:
    """Hands what a notebook shows on to its task."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._is_in_line = False
        """Whether the last line is not finished, so that a head needs a new one."""
        self._displays: list[str] = []
        """Ids of the displays of this cell that have none of their own."""
        self._shown = 0
        """How many of them are shown since the cell has last cleared its output."""

    def begin(self, line: str) -> None:
        """Begin a cell, with this line before its outputs."""
        self._displays, self._shown = [], 0
        self.say(line)

    def say(self, line: str) -> None:
        """Send a line of our own."""
        self._stream(OutputKind.STDOUT, ("\n" if self._is_in_line else "") + line + "\n")

    def hand_on(self, message: Mapping[str, Any]) -> None:
        """Send an output of the kernel.

        A request to clear is not handed on: it would take away what earlier cells have shown. What
        the cell displays after it takes the places of its earlier displays.
        """
        content = message["content"]
        if message["msg_type"] == "stream":
            self._stream(OutputKind(content["name"]), content["text"])
        elif message["msg_type"] == "clear_output":
            self._shown = 0
        elif message["msg_type"] in CONTENT:
            kind = OutputKind(message["msg_type"])
            if kind is OutputKind.DISPLAY_DATA and not (content.get("transient") or {}):
                kind, content = self._placed(content)
            self._sender.add(
                kind, {name: content[name] for name in CONTENT[kind] if name in content}
            )
            self._is_in_line = False

    def _placed(self, content: Mapping[str, Any]) -> tuple[OutputKind, Mapping[str, Any]]:
        """Return a display as an update of the one whose place it takes, or with an id."""
        is_new = self._shown == len(self._displays)
        if is_new:
            self._displays.append(uuid4().hex)
        transient = {"display_id": self._displays[self._shown]}
        self._shown += 1
        kind = OutputKind.DISPLAY_DATA if is_new else OutputKind.UPDATE_DISPLAY_DATA
        return kind, {**content, "transient": transient}

    def _stream(self, kind: OutputKind, text: str) -> None:
        if text:
            self._sender.write(kind, text)
            self._is_in_line = not text.endswith("\n")


class Client(NotebookClient):
    """Runs cells as nbclient does, and hands on each output as it comes."""

    def __init__(self, notebook: NotebookNode, outputs: Outputs, kernel: str) -> None:
        super().__init__(notebook, kernel_name=kernel, timeout=None, iopub_timeout=LATE_OUTPUT_S)
        self._outputs = outputs

    def process_message(
        self, msg: dict[str, Any], cell: NotebookNode, cell_index: int
    ) -> NotebookNode | None:
        """Take an output into the notebook, and hand it on."""
        self._outputs.hand_on(msg)
        return super().process_message(msg, cell, cell_index)

    def create_kernel_manager(self) -> KernelManager:
        """Create the kernel's manager, which encrypts what is said with the kernel if it can."""
        manager = super().create_kernel_manager()
        if manager.has_trait("transport_encryption"):
            with suppress(TraitError):  # the messaging library cannot encrypt
                manager.transport_encryption = "auto"
        return manager

    async def why_dead(self) -> str:
        """Return in words how the kernel has ended."""
        provisioner = getattr(self.km, "provisioner", None)
        status = None if provisioner is None else await provisioner.poll()
        if not isinstance(status, int):
            return "its kernel died"
        how = f"killed by {signal_name(-status)}" if status < 0 else f"exit status {status}"
        return f"its kernel died ({how})"


class Program:
    """The one notebook of this process."""

    def __init__(self, run: NotebookRun, task_id: str, sender: Sender) -> None:
        self._run = run
        self._task_id = task_id
        self._sender = sender
        self._outputs = Outputs(sender)
        self._path = run.saved_as(task_id)
        self._is_to_end = False
        """Whether a signal has asked this process to end."""

    def main(self) -> int:
        """Run the notebook, send how the task ended, and return the exit status."""
        try:
            notebook = notebook_content.read(Path(self._run.path))
            notebook_content.forget_outputs(notebook)
            notebook_content.assign(notebook, self._run.parameters)
            what = plan(self._run, notebook)
            notebook_content.set_task(notebook, self._task_id)
            notebook_content.save(notebook, self._path)
            if what.said:
                self._outputs.say(what.said)
            reason = asyncio.run(self._execute(notebook, what)) if what.cells else ""
        except InvalidRequest as error:
            reason = str(error)
        except OSError as error:
            reason = f"{self._path} cannot be written: {error.strerror}"
        state = TaskState.FAILED if reason else TaskState.COMPLETED
        self._sender.outcome(state.value, reason or None, FAILED if reason else 0)
        return FAILED if reason else 0

    async def _execute(self, notebook: NotebookNode, what: Plan) -> str:
        """Run the cells. Returns why the notebook failed; empty if it has not."""
        client = Client(notebook, self._outputs, self._run.kernel)
        try:
            async with client.async_setup_kernel(**self._kernel_options()):
                self._be_cancelled_by(signal.SIGTERM)
                return await self._run_cells(client, what)
        except (RuntimeError, OSError) as error:
            return f"the kernel {self._run.kernel} could not be started: {error}"

    def _kernel_options(self) -> dict[str, Any]:
        """Return how the kernel is started."""
        environment = {**os.environ, SESSION_NAME: self._run.path}
        before: Callable[[], None] | None = None
        if sys.platform == "linux":
            # A kernel learns late, or never, that this process was killed.
            before = adoption.ending_with_this_process(signal.SIGKILL)
        return {"env": environment, "preexec_fn": before}

    def _be_cancelled_by(self, number: int) -> None:
        """Have the cell end at a signal, so that the notebook is saved as far as it is.

        nbclient's own handler ends the kernel, and the cell may then wait for it without end.
        """
        running = asyncio.current_task()
        assert running is not None

        def cancel() -> None:
            self._is_to_end = True
            running.cancel()

        asyncio.get_running_loop().add_signal_handler(number, cancel)

    async def _run_cells(self, client: Client, what: Plan) -> str:
        places = notebook_content.to_run(client.nb)
        for done, place in enumerate(what.cells):
            self._sender.progress(Progress(done, len(what.cells)))
            reason = await self._run_cell(client, places[place], place)
            if reason:
                return f"cell {number(place)}: {reason}"
        self._sender.progress(Progress(len(what.cells), len(what.cells)))
        client.set_widgets_metadata()
        notebook_content.save(client.nb, self._path)
        return ""

    async def _run_cell(self, client: Client, index: int, place: int) -> str:
        """Run a cell and save the notebook. Returns why the cell failed; empty if it has not."""
        cell = client.nb.cells[index]
        self._outputs.begin(head(place, cell.source))
        cell.outputs, reached = [], TaskState.INTERRUPTED
        try:
            await client.async_execute_cell(cell, index)
            reached = TaskState.COMPLETED
        except CellExecutionError as error:
            reached = TaskState.FAILED
            return shorten(f"{error.ename}: {error.evalue}".rstrip(": "), REASON_CHARACTERS)
        except DeadKernelError:  # nbclient's word for a cell that was cancelled, too
            reached = TaskState.INTERRUPTED if self._is_to_end else TaskState.FAILED
            return await client.why_dead()
        finally:
            _number_outputs(cell, place + 1)
            notebook_content.set_state(cell, reached.value)
            notebook_content.save(client.nb, self._path)
        return ""


def head(place: int, source: str) -> str:
    """Return the line that stands before a cell's outputs: ``[3] frame.describe()``."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    telling = next((line for line in lines if not line.startswith("#")), lines[0])
    return f"{number(place)} {shorten(telling, HEAD_CHARACTERS)}"


def _number_outputs(cell: NotebookNode, count: int) -> None:
    """Number a cell by its place. The kernel of a resumed run counts only those that it runs."""
    cell.execution_count = count
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = count


def main() -> None:
    """Run the notebook that standard input names, for the task named in the environment."""
    show_inspection()
    channel = int(os.environ.pop(DESCRIPTOR))
    os.set_inheritable(channel, False)
    sender = Sender(channel, [os.dup(1), os.dup(2)])
    run = NotebookRun.from_json(sys.stdin.read())
    with suppress(BrokenPipeError):
        sys.exit(Program(run, os.environ[MARK], sender).main())
