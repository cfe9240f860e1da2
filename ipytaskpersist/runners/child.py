"""The process of one Python task: a fresh interpreter that runs a cell as a notebook would.

It is started by the supervisor, to which it sends what the cell prints, displays and returns. What
it is given and what it leaves are signed files.

All that its end needs is imported before the cell begins: by the end, hours later perhaps, the
environment may have been upgraded or removed. So it is before the notebook's ``sys.path`` holds, on
which any file may have the name of a module that is needed here.
"""

from __future__ import annotations

import ast
import os
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from threading import get_ident
from typing import Any, NoReturn

from ipykernel.compiler import XCachingCompiler
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.profiledir import ProfileDir, ProfileDirError

from ipytaskpersist import (
    capture,
    cell,
    cellsources,
    figures,
    foregroundonly,
    forked,
    inherit,
    mentions,
    notebookmagics,
    progress,
    secretnames,
    variables,
)
from ipytaskpersist.active import FOREGROUND, ActiveTask, active_task
from ipytaskpersist.capture import keptwidgets
from ipytaskpersist.cell import Outcome, compile_cell, run_cell, run_function
from ipytaskpersist.cellsources import Source
from ipytaskpersist.librarysettings import Left, OfProcess
from ipytaskpersist.mishaps import class_name, describe, plain_text
from ipytaskpersist.notebookmagics import Carried
from ipytaskpersist.patches import Patches
from ipytaskpersist.paths import StateDirectory
from ipytaskpersist.payload import INPUTS, SETTINGS, Payloads
from ipytaskpersist.pickling import Failed, load
from ipytaskpersist.processes import MARK
from ipytaskpersist.records import OutputKind, ResultRecord
from ipytaskpersist.runners.channel import DESCRIPTOR, Sender
from ipytaskpersist.runners.detached import show_inspection
from ipytaskpersist.runners.given import Given, Setting
from ipytaskpersist.store import TaskStore

__all__ = ["Given", "Setting", "main"]

FAILED = 1


class OwnStreams:
    """Stands for `children.Children` in a process whose descriptors 1 and 2 are the task's."""

    have_streams = True

    def __init__(self) -> None:
        self._owner = os.getpid()

    @property
    def in_child(self) -> bool:
        """Whether this is a forked copy, in a child of the task."""
        return os.getpid() != self._owner

    def silent(self, recording: Any) -> OwnStreams:
        """The same: what is written past Python is the task's in any case."""
        return self

    def drain(self) -> None:
        """Nothing to do: the sender waits until the supervisor has read the streams."""

    def stream(self, kind: OutputKind) -> int:
        """The file descriptor of a stream."""
        return 1 if kind is OutputKind.STDOUT else 2


class Child:
    """One task in this process."""

    def __init__(self, root: Path, task_id: str, sender: Sender) -> None:
        directory = StateDirectory(root)
        store = TaskStore(directory).open()
        record = store.tasks.by_id(task_id)
        assert record is not None, "the supervisor starts tasks of the store"
        process, inputs = store.processes.get(record.key), store.results.get(record.key, INPUTS)
        assert process is not None
        assert inputs is not None
        store.close()
        self._record = record
        self._process = process
        self._inputs = inputs
        self._payloads = Payloads(directory)
        self._sender = sender
        self._kept: list[ResultRecord] = []

    def run(self) -> int:
        """Run the task, send how it ended, and return the exit status."""
        module = sys.modules["__main__"] = type(sys)("__main__")
        inputs = self._payloads.unpickler(self._record, self._inputs, module.__dict__)
        setting: Setting = inputs.load()
        # What an earlier version has pickled, for a task that is run again, says nothing of them.
        secretnames.use(getattr(setting, "secret_names", ()))
        shell = make_shell(setting, module)
        task = self._task()
        patches = install(shell, task)
        cell.be_ready_for_errors()
        self._payloads.be_ready()
        sys.path[:] = setting.path
        given_settings = getattr(setting, "libraries", {})
        # In the cell's context: some libraries keep their settings there.
        self._settings = task.context.run(OfProcess, given_settings, patches)
        task.context.run(_bring_magics, shell, task, setting)
        given, name = task.context.run(_load_given, inputs, getattr(setting, "submodules", []))
        if isinstance(given, Failed):
            return self._refuse(shell, name, given.error)
        shell.user_ns.update(given.variables)
        show_figures_inline()
        before = dict(shell.user_ns)
        if given.call is not None:
            outcome = run_function(shell, given.call, task)
            names: list[str] = []
        else:
            compiled = compile_cell(shell, self._record.source, self._record.execution_count or 0)
            outcome = run_cell(shell, compiled, task)
            names = self._names(shell, before, outcome)
        if task.is_forked:
            forked.end(outcome.exit_code)
        keptwidgets.end(task)
        progress.end(task)
        self._keep(shell, task, outcome, names)
        self._say_large(task, getattr(setting, "large_result_bytes", None))
        if task.post_mortem is not None:
            self._sender.post_mortem(task.post_mortem)
        return self._tell(outcome.state.value, outcome.reason, outcome.exit_code)

    def _refuse(self, shell: Any, name: str, error: BaseException) -> int:
        """End without having run the cell: what it was given cannot be had."""
        shell.showtraceback((type(error), error, error.__traceback__))
        reason = f"{name} cannot be unpickled ({describe(error)})"
        return self._tell("failed", reason, FAILED)

    def _tell(self, state: str, reason: str | None, code: int | None) -> int:
        """Send how the task has ended. Returns the exit status that goes with it."""
        self._sender.outcome(state, reason, code)
        return FAILED if code is None else code

    def _task(self) -> ActiveTask:
        sender: Any = self._sender
        streams: Any = OwnStreams()
        return ActiveTask(self._record, sender, streams, copy_context())

    def _names(self, shell: Any, before: dict[str, Any], outcome: Outcome) -> list[str]:
        """The variables to keep: those that were asked for, or that the cell has assigned."""
        wanted = self._process.options.outputs
        if wanted is not None:
            return list(wanted)
        return assigned_names(self._tree(shell), shell, before, is_whole=outcome.exit_code == 0)

    def _tree(self, shell: Any) -> ast.Module:
        tree: ast.Module = ast.parse(shell.transform_cell(self._record.source))
        return tree

    def _keep(self, shell: Any, task: ActiveTask, outcome: Outcome, names: list[str]) -> None:
        # What a class prints while it is pickled is no output of the cell.
        active_task.set(task.silent())
        with _staying():
            if not outcome.has_no_value and outcome.value is not None:
                self._save(shell, "", outcome.value, outcome.text or _short_text(outcome.value))
            self._save_variables(shell, names)
            if not self._record.is_call:
                self._save_settings(shell, task)
        active_task.set(task)

    def _save(self, shell: Any, name: str, value: Any, text: str) -> None:
        self._send(self._payloads.save(self._record.id, name, value, text, shell.user_ns))

    def _send(self, kept: ResultRecord) -> None:
        self._kept.append(kept)
        self._sender.result(kept)

    def _say_large(self, task: ActiveTask, large_bytes: int | None) -> None:
        for kept in self._kept:
            task.say_large(kept, large_bytes)

    def _save_variables(self, shell: Any, names: list[str]) -> None:
        values = {name: shell.user_ns[name] for name in names if name in shell.user_ns}
        texts = {name: _short_text(value) for name, value in values.items()}
        for kept in self._payloads.save_together(self._record.id, values, texts, shell.user_ns):
            self._send(kept)
        for name in names:
            if name not in values:
                self._sender.result(_missing(name))

    def _save_settings(self, shell: Any, task: ActiveTask) -> None:
        """What the cell has changed that is no variable: what libraries keep, and submodules."""
        changes = task.context.run(self._settings.changes)
        imported = [name for name in mentions.imports(self._tree(shell)) if name in sys.modules]
        submodules = [name for name in imported if "." in name]
        if changes or submodules:
            self._save(shell, SETTINGS, Left(changes, submodules).as_value, "")


@contextmanager
def _staying() -> Iterator[None]:
    """A class that ends the process while a value is pickled loses that value alone."""
    plain, owner, thread = os._exit, os.getpid(), get_ident()

    def leave(status: int) -> NoReturn:
        if os.getpid() == owner and get_ident() == thread:
            raise SystemExit(f"os._exit({status}) was called")
        plain(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = plain


def _load_given(inputs: Any, submodules: list[str]) -> tuple[Given | Failed, str]:
    """What the cell works on, with which libraries are imported; or what of it cannot be had."""
    for name in submodules:
        with suppress(Exception):  # the cell itself will say so, if it needs it
            import_module(name)
    given = load(inputs)
    if isinstance(given, Failed):
        return given, "what it was given"
    for name in getattr(given, "names", ()):
        value = load(inputs)
        if isinstance(value, Failed):
            return value, f"{name}, which it was given,"
        given.variables[name] = value
    return given, ""


def _bring_magics(shell: Any, task: ActiveTask, setting: Setting) -> None:
    """Have the notebook's extensions and magics. What they print is no output of the cell."""
    problems: list[str] = []
    active_task.set(task.silent())
    try:
        notebookmagics.bring(shell, getattr(setting, "magics", Carried()), problems.append)
    finally:
        active_task.set(task)
    for problem in problems:
        task.write(OutputKind.STDERR, f"{problem}\n")


def _missing(name: str) -> ResultRecord:
    return ResultRecord(name, None, None, None, None, "", "the cell has not assigned it")


def _short_text(value: Any) -> str:
    try:
        return plain_text(reprlib.repr(value))
    except BaseException as error:  # a repr may raise anything
        return f"<{class_name(value)} whose repr raised {class_name(error)}>"


def assigned_names(
    tree: ast.Module, shell: Any, before: dict[str, Any], *, is_whole: bool
) -> list[str]:
    """What a cell has assigned: by its text, and what has another value than before.

    Of a cell that did not run to its end, what its text alone says may not have happened.
    """
    now, missing = shell.user_ns, object()
    changed = [
        name
        for name, value in now.items()
        if before.get(name, missing) is not value
        and type(name) is str  # `globals()` may have been given anything
        and not name.startswith("_")
    ]
    named = variables.assigned(tree)
    if not is_whole:
        in_place = variables.augmented(tree)
        named = [name for name in named if name in changed or name in in_place]

    def is_unassigned(name: str) -> bool:
        """Whether it is still IPython's own, as `_` is after a loop over nothing."""
        is_history = variables.OF_HISTORY.fullmatch(name)
        return is_history is not None and before.get(name, missing) is now[name]

    return [
        name
        for name in dict.fromkeys([*named, *changed])
        if name in now and name not in shell.user_ns_hidden and not is_unassigned(name)
    ]


class ProcessShell(ZMQInteractiveShell):
    """Knows no graphical event loop, and shares no history."""

    is_of_process_task = True

    def enable_gui(self, gui: Any = None) -> None:
        """A process task has no event loop of a window system."""


def _like(shell_class: tuple[str, str] | None) -> type[ProcessShell]:
    """The class under the name of the notebook's, by which libraries know where they run."""
    module, name = shell_class or (ZMQInteractiveShell.__module__, ZMQInteractiveShell.__name__)
    ProcessShell.__module__ = module
    ProcessShell.__name__ = ProcessShell.__qualname__ = name
    return ProcessShell


def _profile(folder: str) -> ProfileDir | None:
    try:
        found: ProfileDir = ProfileDir.find_profile_dir(folder)
    except ProfileDirError:
        return None  # IPython takes its default
    return found


def make_shell(setting: Setting, module: Any) -> Any:
    """An IPython shell as a kernel's, but without a front end."""
    config = setting.config
    config.HistoryManager.enabled = False
    shell = _like(getattr(setting, "shell_class", None)).instance(
        config=config,
        profile_dir=_profile(getattr(setting, "profile", "")),
        user_module=module,
        user_ns=module.__dict__,
        compiler_class=XCachingCompiler,
    )
    shell.ast_node_interactivity = setting.interactivity
    shell.compile.flags |= setting.compiler_flags
    for name, (number, text) in setting.cells.items():
        cellsources.have_here(Source(name, text, number), shell)
    return shell


def show_figures_inline() -> None:
    """Let figures that the task was given show themselves, as those that it makes will."""
    if "matplotlib.figure" in sys.modules and "inline" in os.environ.get("MPLBACKEND", ""):
        import_module("matplotlib_inline.backend_inline")


def install(shell: Any, task: ActiveTask) -> Patches:
    """Make all that is printed and displayed in this process the task's."""
    patches = Patches()
    capture.install(shell, patches)
    inherit.install_for_threads(patches)
    figures.install(shell, patches)
    cell.install(shell, patches)
    progress.install(patches)
    foregroundonly.install(shell, patches)
    FOREGROUND.end_cell()
    active_task.set(task)
    return patches


def main() -> None:
    """Run the task of this process's environment; the state directory is the argument."""
    show_inspection()
    channel = int(os.environ.pop(DESCRIPTOR))
    os.set_inheritable(channel, False)
    # Copies, because the cell may do with its own what it likes.
    sender = Sender(channel, [os.dup(1), os.dup(2)])
    status = Child(Path(sys.argv[1]), os.environ[MARK], sender).run()
    sys.exit(status)
