"""The process of one Python task: a fresh interpreter that runs a cell as a notebook would.

The supervisor starts it and receives its output. Its inputs and results are signed files.

Everything needed when the task ends is imported before the cell begins. By the end, perhaps hours
later, the environment may have been upgraded or removed. These imports also precede the notebook's
``sys.path``, where any file may shadow a module that is needed here.
"""

from __future__ import annotations

import ast
import os
import reprlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import get_ident
from types import ModuleType
from typing import Any, NoReturn

from ipykernel.compiler import XCachingCompiler
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.profiledir import ProfileDir, ProfileDirError

from ipytaskpersist.base import redaction
from ipytaskpersist.base.detached import show_inspection
from ipytaskpersist.base.foreign_errors import class_name, describe, plain_text
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.base.records import (
    CHANGED_HERE,
    NOT_ASKED,
    OutputKind,
    ResultRecord,
    TaskState,
)
from ipytaskpersist.capture import kept_widgets, progress
from ipytaskpersist.cells import execution, mentions, notebook_magics, variables
from ipytaskpersist.cells.execution import Outcome, compile_cell, run_cell, run_function
from ipytaskpersist.cells.install import install_in_process
from ipytaskpersist.cells.notebook_magics import Carried
from ipytaskpersist.inspection import listening
from ipytaskpersist.isolation import random_states
from ipytaskpersist.isolation.carried_settings import Left, OfProcess
from ipytaskpersist.runners import prepared_shell, task_rows
from ipytaskpersist.runners.bystanders import Bystanders
from ipytaskpersist.runners.channel import DESCRIPTOR, Sender
from ipytaskpersist.runners.far_python import NoCheckpoints
from ipytaskpersist.runners.given import Given, NotebookSetup, Setting
from ipytaskpersist.runners.task_rows import TaskRows
from ipytaskpersist.running import forks
from ipytaskpersist.running.ending import Termination
from ipytaskpersist.running.running_task import FOREGROUND, RunningTask, active_task
from ipytaskpersist.running.sinks import Sink
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values import cell_sources, handed_results, mappings
from ipytaskpersist.values.bundles import Bundle
from ipytaskpersist.values.cell_sources import Source
from ipytaskpersist.values.checkpoints import Checkpoints
from ipytaskpersist.values.handed_results import Call, CallWithResults
from ipytaskpersist.values.originals import Changed, Originals
from ipytaskpersist.values.payloads import SETTINGS, Payloads
from ipytaskpersist.values.pickling import Failed

__all__ = ["Given", "Setting", "main"]
"""Pickles and rows in stores of earlier versions name these here."""
FAILED = 1
DELETED = "it was deleted there"
WHAT_IT_WAS_GIVEN = "what it was given"


class OwnStreams:
    """Streams of a process whose descriptors 1 and 2 belong to the task."""

    have_streams = True

    def __init__(self) -> None:
        self._owner = os.getpid()

    @property
    def in_child(self) -> bool:
        """Whether this is a forked copy in a child of the task."""
        return os.getpid() != self._owner

    def silent(self, sink: Sink) -> OwnStreams:
        """Return the same streams: output that bypasses Python always belongs to the task."""
        return self

    def drain(self) -> None:
        """Do nothing: the sender waits until the supervisor has read the streams."""

    def stream(self, kind: OutputKind) -> int:
        """Return the file descriptor of a stream."""
        return 1 if kind is OutputKind.STDOUT else 2

    def terminate(self, whole: bool) -> None:
        """Do nothing: the supervisor ends the task's child processes."""

    def close(self) -> None:
        """Do nothing: the supervisor reads the streams until they are closed."""

    def leave_to_foreground(self) -> None:
        """Do nothing: this process has no foreground."""


class Child:
    """The one task of this process."""

    def __init__(self, root: Path, rows: TaskRows, sender: Sender) -> None:
        self._record, self._process, self._inputs, self._inputs_of = rows
        self._directory = StateDirectory(root)
        self._payloads = Payloads(self._directory)
        self._sender = sender
        self._kept: list[ResultRecord] = []
        self._originals: Originals | None = None
        """What the cell was given, to be compared when it has ended."""
        self._given_names: list[str] = []
        self._bystanders: Bystanders | None = None
        """What the cell may change although it was not given, such as variables of modules."""
        self._tree = ast.Module([], [])
        """The cell, parsed."""
        self._damage = ""
        """What makes it uncertain that the cell was given what was handed over."""
        self._given_again: Callable[[], Bundle] | None = None

    def run(self) -> int:
        """Run the task, send how it ended, and return the exit status."""
        module = sys.modules["__main__"] = type(sys)("__main__")
        inputs = self._payloads.inputs(self._inputs_of, self._inputs, module.__dict__)
        setting = load_setting(inputs.values)
        shell, task = self._prepare(setting, module)
        given, name = task.context.run(
            _load_given, inputs.values, getattr(setting, "submodules", [])
        )
        if isinstance(given, Failed):
            return self._refuse(shell, name, given.error)
        shell.user_ns.update(given.variables)
        if given.call is None:
            self._originals, self._given_again = inputs.originals(), inputs.again
            self._given_names = list(given.variables)
        del inputs
        show_figures_inline()
        outcome, names = self._run_given(shell, task, given)
        if task.is_forked:
            forks.end(outcome.exit_code)
        return self._end(shell, task, outcome, names, getattr(setting, "large_result_bytes", None))

    def _prepare(self, setting: NotebookSetup, module: ModuleType) -> tuple[Any, RunningTask]:
        """Make this process like the notebook, but for variables. Returns its shell and the task.

        Inputs pickled by an earlier version, for a task that is run again, lack some of this.
        """
        redaction.use(getattr(setting, "secret_names", ()))
        is_durable = getattr(setting, "is_durable", False)
        self._payloads = Payloads(self._directory, is_durable=is_durable)
        shell, task = make_shell(setting, module), self._task()
        task.checkpoints = self._checkpoints(shell)
        self._termination = Termination(task.ending)
        patches = install(shell, task)
        if (listener := listening.begin(task)) is not None:
            listener.install(patches)
        execution.be_ready_for_errors()
        self._payloads.be_ready()
        if self._process.place is None:
            sys.path[:] = setting.path
        else:
            sys.path.insert(0, "")
        random_states.install(patches)
        # Run in the cell's context, where some libraries keep their settings.
        given, apart = getattr(setting, "libraries", {}), getattr(setting, "apart", [])
        self._settings = task.context.run(OfProcess, given, patches, apart)
        task.context.run(_bring_magics, shell, task, setting)
        return shell, task

    def _checkpoints(self, shell: Any) -> Checkpoints | NoCheckpoints:
        if self._process.place is not None:
            return NoCheckpoints()
        return Checkpoints(self._directory, self._record, shell.user_ns)

    def _run_given(self, shell: Any, task: RunningTask, given: Given) -> tuple[Outcome, list[str]]:
        """Run the call or the cell. Returns how it ended, and the variables to save."""
        if given.call is not None:
            return run_function(shell, self._call(given.call, shell.user_ns), task), []
        compiled = compile_cell(shell, self._record.source, self._record.execution_count or 0)
        self._tree, before = compiled.tree, dict(shell.user_ns)
        with _silent(task):  # pickling may run any code of a class
            self._bystanders = Bystanders(self._tree, before)
        outcome = run_cell(shell, compiled, task)
        return outcome, self._names(shell, before, outcome)

    def _call(self, call: Call, namespace: dict[str, Any]) -> Callable[[], Any]:
        """Return what is to be called: with the results of other tasks, if it is to have some."""
        if not isinstance(call, CallWithResults):
            return call

        def call_with_results() -> Any:
            store = TaskStore(self._directory).open()
            try:
                value_of = partial(handed_results.load, store, self._payloads, namespace)
                bound = call.with_values(value_of)
            finally:
                store.close()
            return bound()

        return call_with_results

    def _end(
        self,
        shell: Any,
        task: RunningTask,
        outcome: Outcome,
        names: list[str],
        large_bytes: int | None,
    ) -> int:
        """Keep what there is to keep, and send how the task ended. Returns the exit status."""
        task.ending.close(self._process.grace_s)
        self._termination.stop()
        kept_widgets.end(task)
        progress.end(task)
        outcome = self._unless_damaged(task, outcome)
        self._keep(shell, task, outcome, names)
        self._say_large(task, large_bytes)
        if task.post_mortem is not None:
            self._sender.post_mortem(task.post_mortem)
        return self._tell(outcome.state.value, outcome.reason, outcome.exit_code)

    def _refuse(self, shell: Any, name: str, error: BaseException) -> int:
        """End without running the cell, because one of its inputs could not be loaded."""
        shell.showtraceback((type(error), error, error.__traceback__))
        reason = f"{name} cannot be unpickled ({describe(error)})"
        return self._tell("failed", reason, FAILED)

    def _tell(self, state: str, reason: str | None, code: int | None) -> int:
        """Send how the task ended. Returns the matching exit status."""
        self._sender.outcome(state, reason, code)
        return FAILED if code is None else code

    def _task(self) -> RunningTask:
        return RunningTask(self._record, self._sender, OwnStreams(), copy_context())

    def _names(self, shell: Any, before: dict[str, Any], outcome: Outcome) -> list[str]:
        """Return the variables to save: the requested ones, or else all that the cell assigned."""
        wanted = self._process.options.outputs
        if wanted is not None:
            return list(wanted)
        return assigned_names(self._tree, shell, before, is_whole=outcome.exit_code == 0)

    def _keep(self, shell: Any, task: RunningTask, outcome: Outcome, names: list[str]) -> None:
        with _silent(task), _staying():
            if self._damage:
                self._keep_texts(shell, outcome, names)
            else:
                self._keep_values(shell, task, outcome, names)

    def _keep_values(
        self, shell: Any, task: RunningTask, outcome: Outcome, names: list[str]
    ) -> None:
        if not outcome.has_no_value and outcome.value is not None:
            self._save(shell, "", outcome.value, outcome.text or _short_text(outcome.value))
        self._save_variables(shell, names, self._changed(shell))
        if not self._record.is_call:
            self._save_settings(shell, task)

    def _unless_damaged(self, task: RunningTask, outcome: Outcome) -> Outcome:
        """Return how the cell ended, as failed if a file was changed whose arrays it was given."""
        for path in mappings.changed_files():
            self._damage = (
                f"{path} was changed on the disk while this task ran: arrays that it was given may "
                "be wrong"
            )
            task.write(OutputKind.STDERR, f"{self._damage}\n")
        if not self._damage or outcome.state is not TaskState.COMPLETED:
            return outcome
        return replace(outcome, state=TaskState.FAILED, reason=self._damage, exit_code=FAILED)

    def _keep_texts(self, shell: Any, outcome: Outcome, names: list[str]) -> None:
        """Keep modules, and say why nothing else is kept: it may come from wrong numbers."""
        values = {name: shell.user_ns[name] for name in names if name in shell.user_ns}
        modules = [name for name, value in values.items() if type(value) is ModuleType]
        self._save_variables(shell, modules, Changed())
        if not outcome.has_no_value and outcome.value is not None:
            values[""] = outcome.value
        for name in [name for name in values if name not in modules]:
            text = _short_text(values[name])
            self._sender.result(ResultRecord(name, None, None, None, None, text, self._damage))

    def _save(self, shell: Any, name: str, value: Any, text: str) -> None:
        self._send(self._payloads.save(self._record.id, name, value, text, shell.user_ns))

    def _send(self, kept: ResultRecord) -> None:
        self._kept.append(kept)
        self._sender.result(kept)

    def _say_large(self, task: RunningTask, large_bytes: int | None) -> None:
        for kept in self._kept:
            task.say_large(kept, large_bytes)

    def _changed(self, shell: Any) -> Changed:
        """Return what the cell has changed of what it was given."""
        if self._originals is None or self._given_again is None:
            return Changed()
        try:
            return self._originals.compare(shell.user_ns, self._given_again)
        except Exception as error:  # pickling and loading may run any code
            return Changed(problems={WHAT_IT_WAS_GIVEN: f"cannot be compared: {describe(error)}"})

    def _save_variables(self, shell: Any, names: list[str], changed: Changed) -> None:
        values = {name: shell.user_ns[name] for name in names if name in shell.user_ns}
        asked = self._process.options.outputs
        changed = changed.without(values)
        if asked is None:
            values |= changed.values
        texts = {name: _short_text(value) for name, value in values.items()}
        for kept in self._payloads.save_together(
            self._record.id, values, texts, shell.user_ns, changed
        ):
            self._send(_not_brought_back(kept) if kept.problem and kept.name not in names else kept)
        deleted = dict.fromkeys(set(self._given_names) - shell.user_ns.keys(), DELETED)
        others = {} if self._bystanders is None else self._bystanders.changed(shell.user_ns)
        for name, why in {**deleted, **changed.problems, **others}.items():
            if name not in values:
                self._sender.result(_changed_only_here(name, why))
        if asked is not None:
            for name in changed.names.keys() - values.keys():
                self._sender.result(_changed_only_here(name, NOT_ASKED))
        for name in names:
            if name not in values:
                self._sender.result(_missing(name))

    def _save_settings(self, shell: Any, task: RunningTask) -> None:
        """Save the library settings that the cell changed and the submodules that it imported."""
        changes = task.context.run(self._settings.changes)
        imported = [name for name in mentions.imports(self._tree) if name in sys.modules]
        submodules = [name for name in imported if "." in name]
        if changes or submodules:
            self._save(shell, SETTINGS, Left(changes, submodules).as_value, "")


@contextmanager
def _silent(task: RunningTask) -> Iterator[None]:
    """Leave out of the cell's output what the block prints, as classes may that are pickled."""
    active_task.set(task.silent())
    try:
        yield
    finally:
        active_task.set(task)


@contextmanager
def _staying() -> Iterator[None]:
    """Keep a value that calls `os._exit` while it is pickled from ending the process."""
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


def load_setting(inputs: Iterator[tuple[str, Any]]) -> NotebookSetup:
    """Load what comes first. Raises what its loading raises: without it, no cell can be run."""
    setting = next(inputs)[1]
    if isinstance(setting, Failed):
        raise setting.error
    assert isinstance(setting, NotebookSetup)
    return setting


def _load_given(
    inputs: Iterator[tuple[str, Any]], submodules: list[str]
) -> tuple[Given | Failed, str]:
    """Import `submodules` and load the cell's inputs, or report the input that failed to load."""
    for name in submodules:
        with suppress(Exception):  # if the cell needs it, the cell itself raises the error
            import_module(name)
    given = next(inputs)[1]
    if isinstance(given, Failed):
        return given, "what it was given"
    for name in getattr(given, "names", ()):
        value = next(inputs)[1]
        if isinstance(value, Failed):
            return value, f"{name}, which it was given,"
        given.variables[name] = value
    return given, ""


def _bring_magics(shell: Any, task: RunningTask, setting: NotebookSetup) -> None:
    """Load the notebook's extensions and magics. Their output is not the cell's."""
    problems: list[str] = []
    with _silent(task):
        notebook_magics.bring(shell, getattr(setting, "magics", Carried()), problems.append)
    for problem in problems:
        task.write(OutputKind.STDERR, f"{problem}\n")


def _changed_only_here(name: str, why: str) -> ResultRecord:
    return ResultRecord(name, None, None, None, None, "", f"{CHANGED_HERE}: {why}")


def _not_brought_back(kept: ResultRecord) -> ResultRecord:
    return replace(kept, problem=f"{CHANGED_HERE}: {kept.problem}")


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
    """Return the names that the cell assigns in its source, or whose values changed.

    If the cell did not run to its end, an assignment in the source alone is no proof that it
    happened.
    """
    now, missing = shell.user_ns, object()
    changed = [
        name
        for name, value in now.items()
        if before.get(name, missing) is not value
        and type(name) is str  # `globals()` may contain keys of any type
        and not name.startswith("_")
    ]
    named = variables.assigned(tree)
    if not is_whole:
        in_place = variables.augmented(tree)
        named = [name for name in named if name in changed or name in in_place]

    def is_unassigned(name: str) -> bool:
        """Whether the value is still IPython's own, as `_` is after a loop over nothing."""
        is_history = variables.OF_HISTORY.fullmatch(name)
        return is_history is not None and before.get(name, missing) is now[name]

    return [
        name
        for name in dict.fromkeys([*named, *changed])
        if name in now and name not in shell.user_ns_hidden and not is_unassigned(name)
    ]


class ProcessShell(ZMQInteractiveShell):
    """An IPython shell without a GUI event loop and without shared history."""

    is_of_process_task = True

    def enable_gui(self, gui: Any = None) -> None:
        """Do nothing: a process task has no GUI event loop."""

    def atexit_operations(self) -> None:
        """Drop the variables only if no daemon thread is left, which would miss them."""
        self._atexit_once_called = len(sys._current_frames()) > 1
        super().atexit_operations()  # type: ignore[no-untyped-call]


def _like(shell_class: tuple[str, str] | None) -> type[ProcessShell]:
    """Name the class like the notebook's shell class, by which libraries detect a front end."""
    module, name = shell_class or (ZMQInteractiveShell.__module__, ZMQInteractiveShell.__name__)
    ProcessShell.__module__ = module
    ProcessShell.__name__ = ProcessShell.__qualname__ = name
    return ProcessShell


def _profile(folder: str) -> ProfileDir | None:
    try:
        found: ProfileDir = ProfileDir.find_profile_dir(folder)
    except ProfileDirError:
        return None  # IPython uses its default
    return found


def make_shell(setting: NotebookSetup, module: Any) -> Any:
    """Create an IPython shell like a kernel's, but without a front end."""
    config = setting.config
    config.HistoryManager.enabled = False
    profile = getattr(setting, "profile", "")
    shell_class = _like(getattr(setting, "shell_class", None))
    shell = prepared_shell.take(config, profile, module) or shell_class.instance(
        config=config,
        profile_dir=_profile(profile),
        user_module=module,
        user_ns=module.__dict__,
        compiler_class=XCachingCompiler,
    )
    shell.ast_node_interactivity = setting.interactivity
    shell.compile.flags |= setting.compiler_flags
    for name, (number, text) in setting.cells.items():
        cell_sources.have_here(Source(name, text, number), shell)
    return shell


def show_figures_inline() -> None:
    """Make figures among the inputs display inline, like those that the cell creates."""
    if "matplotlib.figure" in sys.modules and "inline" in os.environ.get("MPLBACKEND", ""):
        import_module("matplotlib_inline.backend_inline")


def install(shell: Any, task: RunningTask) -> Patches:
    """Make all that is printed and displayed in this process the task's."""
    patches = install_in_process(shell)
    FOREGROUND.end_cell()
    active_task.set(task)
    return patches


def main(rows: TaskRows | None = None) -> None:
    """Run the task named in the environment. The argument is the state directory.

    `rows` is what the store has of the task, if that has been read already.
    """
    show_inspection()
    channel = int(os.environ.pop(DESCRIPTOR))
    os.set_inheritable(channel, False)
    # Use copies, because the cell may close or redirect the originals.
    sender = Sender(channel, [os.dup(1), os.dup(2)])
    root = Path(sys.argv[1])
    status = Child(root, rows or task_rows.read(root, os.environ[MARK]), sender).run()
    sys.exit(status)
