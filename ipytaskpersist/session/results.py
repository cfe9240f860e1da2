"""What tasks leave: results, errors, and variables that reach the notebook between cells."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.cell_events import call_between_cells
from ipytaskpersist.base.foreign_errors import describe
from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.base.records import (
    CHANGED_HERE,
    INPUTS,
    NOT_ASKED,
    ResultRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.cells import variables
from ipytaskpersist.errors import (
    BackgroundError,
    InvalidRequest,
    PlaceNotTrusted,
    ResultUnavailable,
    TaskFailed,
    TaskNotDone,
)
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.isolation import carried_settings
from ipytaskpersist.isolation.carried_settings import Left
from ipytaskpersist.running.running_task import is_own_command
from ipytaskpersist.session.foreground_names import ForegroundNames
from ipytaskpersist.session.runners import Runners
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.values import handed_results, mappings
from ipytaskpersist.values.bundles import INSIDE
from ipytaskpersist.values.changeable import belongs_to_process
from ipytaskpersist.values.handed_results import Call, CallWithResults
from ipytaskpersist.values.importable import MAIN
from ipytaskpersist.values.originals import Present
from ipytaskpersist.values.payloads import SETTINGS, Payloads

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.cells.execution import Outcome

BOTH_CHANGED = "changed in the task, and in the notebook, which keeps its own"
BOTH_ASSIGNED = "assigned in the task, and in the notebook, which keeps its own"
OLD_ONE = "what else holds the old object does not see it"
SHOWN_AT_MOST = 4
"""Number of settings that are named; the rest are counted: a seaborn theme sets thirty."""


@dataclass(slots=True)
class Loaded:
    """The outcome of loading a task's variables."""

    names: list[str] = field(default_factory=list)
    """The names that are now in the notebook."""
    settings: list[str] = field(default_factory=list)
    """The library settings that now apply."""
    problems: dict[str, str] = field(default_factory=dict)
    """What is missing, with the reason for each."""

    changed: list[str] = field(default_factory=list)
    """The names among `names` whose value is the notebook's own, changed in place."""
    replaced: list[str] = field(default_factory=list)
    """The names among `names` whose value is a changed copy of the notebook's."""
    modules: list[str] = field(default_factory=list)
    """The modules among `names`."""

    def only(self, remarkable: Set[str]) -> Loaded:
        """Return a copy with only these names, and what is changed: they are worth mentioning."""
        kept = {*remarkable, *self.changed, *self.replaced} - {*self.modules}
        return replace(self, names=[name for name in self.names if name in kept])

    def __bool__(self) -> bool:
        return bool(self.names or self.settings or self.problems)

    def in_words(self, task: TaskRecord) -> str:
        """Return one line about what is in the notebook now, and what is not."""
        which = f"task {task.label}"
        if task.state is not TaskState.COMPLETED:
            which += f", which {_VERBS.get(task.state, 'was ' + task.state.value)}"
        parts = [_problem(why, names, task) for why, names in _by_reason(self.problems).items()]
        if self.settings:
            parts.insert(0, f"{_some(self.settings)} {_are(self.settings)} set")
        if self.names:
            shown = f"{', '.join(self.names)} {_are(self.names)} in the notebook{self._how()}"
            parts.insert(0, shown)
        return f"{which}: " + ("; ".join(parts) or "it has left no variables")

    def _how(self) -> str:
        """Return how variables came there that the notebook had before."""
        changed = [name for name in self.changed if name in self.names]
        copies = [name for name in self.replaced if name in self.names]
        how = [f"{', '.join(changed)} {_were(changed)} changed in place"] if changed else []
        if copies:
            how.append(f"{', '.join(copies)} {_were(copies)} changed and replaced: {OLD_ONE}")
        return f" ({'; '.join(how)})" if how else ""


_VERBS = {TaskState.FAILED: "failed"}


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _were(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _problem(why: str, names: Sequence[str], task: TaskRecord) -> str:
    """Return one part of the line: what is missing, and why."""
    shown = ", ".join(names)
    if why.startswith(CHANGED_HERE):
        return f"{CHANGED_HERE}: {shown} ({why.removeprefix(CHANGED_HERE).lstrip(': ')})"
    if why in (BOTH_CHANGED, BOTH_ASSIGNED):
        them = "it" if len(names) == 1 else "them"
        command = f"%bg_load {task.number} {' '.join(names)}"
        return f"{shown} {_were(names)} {why}; {command} takes {them}"
    return f"{shown} {_are(names)} not ({why})"


def _by_reason(problems: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, why in problems.items():
        names.setdefault(why, []).append(name)
    return names


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_AT_MOST
    return ", ".join(names[:SHOWN_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def load(
    store: TaskStore,
    payloads: Payloads,
    task: TaskRecord,
    namespace: dict[str, Any],
    names: Sequence[str] = (),
    *,
    keep_own: bool = False,
    assigned: Set[str] = frozenset(),
) -> Loaded:
    """Load what a task left into a namespace: everything with settings, or the named variables.

    What the task was given and has changed is changed in the namespace. With `keep_own`, a variable
    that the namespace has changed as well stays, and so do those `assigned` since the launch. Raise
    `InvalidRequest` for a name that the task has not left.
    """
    kept = {result.name: result for result in store.results.variables(task.key)}
    for name in names:
        if name not in kept:
            there = ", ".join(kept) or "none"
            raise InvalidRequest(f"task {task.label} has left no variable '{name}'; there: {there}")
    loaded = Loaded()
    left = Left({}, []) if names else _left(store, payloads, task, loaded)
    # Before the variables, which may need a path from which the task has imported.
    path = carried_settings.bring(
        {name: left.changes[name] for name in left.changes if name == "sys"}
    )
    wanted = [kept[name] for name in names or kept]
    _take(_Taking(store, payloads, task, namespace, keep_own, assigned), wanted, loaded)
    submodules = carried_settings.bring_submodules(left.submodules)
    # After the variables: settings made by importing a library are equal by now, and not named.
    brought = carried_settings.bring(left.changes)
    loaded.settings += brought.names
    loaded.problems |= path.problems | submodules.problems | brought.problems
    return loaded


@dataclass(frozen=True, slots=True)
class _Taking:
    """How the variables of a task are brought into a namespace."""

    store: TaskStore
    payloads: Payloads
    task: TaskRecord
    namespace: dict[str, Any]
    keep_own: bool
    assigned: Set[str]
    """The variables that the notebook has assigned since the launch."""

    def present(self) -> Present:
        """Return what the namespace still has of what the task was given."""
        first = self.store.tasks.with_inputs(self.task)
        inputs = self.store.results.get(first.key, INPUTS)
        if inputs is None:
            return Present()
        return self.payloads.present(first, inputs, self.namespace)


def _take(taking: _Taking, wanted: Sequence[ResultRecord], loaded: Loaded) -> None:
    """Bring variables into a namespace."""
    present, namespace = cache(taking.present), taking.namespace
    classes = _classes(namespace) if taking.keep_own else {}
    returned = taking.payloads.load_all(taking.task, wanted, namespace, present)
    if classes and returned.changes:
        _keep_classes(classes, present().other, namespace)
    problems = {result.name: result.problem for result in wanted}
    for name, value in returned.values.items():
        how = returned.changes.get(name)
        if isinstance(value, ResultUnavailable):
            if taking.keep_own and (problems[name] or "").endswith(NOT_ASKED):
                continue  # the person has said so, and `%bg_show` says it
            for each in (name, *_of_same_figure(name, namespace)):
                loaded.problems[each] = problems[name] or _why(value)
        elif how and taking.keep_own and not (name in present().same or name in returned.found):
            loaded.problems[name] = BOTH_CHANGED
        elif not how and name in taking.assigned:
            loaded.problems[name] = BOTH_ASSIGNED
        else:
            is_own = how == INSIDE and name in present().same
            is_replaced = not is_own and _bind(namespace, name, value, how)
            loaded.names.append(name)
            if how:
                (loaded.replaced if is_replaced else loaded.changed).append(name)
            if issubclass(type(value), ModuleType):
                loaded.modules.append(name)


def _of_same_figure(name: str, namespace: dict[str, Any]) -> list[str]:
    """Return the variables with another part of the figure that a variable is part of.

    A figure stays in its process as a whole.
    """
    figure = getattr(namespace.get(name), "figure", None)
    if figure is None or "matplotlib" not in sys.modules:
        return []
    return [
        each
        for each, value in namespace.items()
        if each != name
        and not each.startswith("_")
        and belongs_to_process(value)
        and getattr(value, "figure", None) is figure
    ]


def _classes(namespace: dict[str, Any]) -> dict[type, dict[str, Any]]:
    """Return the notebook's classes with their attributes: loading an instance sets them."""
    found = [each for each in namespace.values() if issubclass(type(each), type)]
    return {each: dict(vars(each)) for each in found if each.__module__ == MAIN}


def _keep_classes(
    classes: dict[type, dict[str, Any]], changed: Collection[str], namespace: dict[str, Any]
) -> None:
    """Give classes their attributes again, if the notebook has changed them or their instances."""
    values = [namespace[name] for name in changed if name in namespace]
    for each, attributes in classes.items():
        if any(value is each or type(value) is each for value in values):
            for name in vars(each).keys() - attributes.keys():
                delattr(each, name)
            for name, attribute in attributes.items():
                if vars(each).get(name) is not attribute:
                    setattr(each, name, attribute)


def _bind(namespace: dict[str, Any], name: str, value: Any, how: str | None) -> bool:
    """Give a variable its value, and also all other names of the object that it replaces.

    Returns whether a changed value has replaced another object.
    """
    before = namespace.get(name)
    is_replaced = bool(how) and before is not None and before is not value
    if is_replaced:
        aliases = [each for each, held in namespace.items() if held is before]
        namespace.update(dict.fromkeys(aliases, value))
    namespace[name] = value
    return is_replaced


def _left(store: TaskStore, payloads: Payloads, task: TaskRecord, loaded: Loaded) -> Left:
    kept = store.results.get(task.key, SETTINGS)
    if kept is None:
        return Left({}, [])
    try:
        return Left(*payloads.load(task, kept))
    except ResultUnavailable as error:
        loaded.problems["what it set in libraries"] = kept.problem or _why(error)
        return Left({}, [])


def _why(error: ResultUnavailable) -> str:
    return error.why if isinstance(error, PlaceNotTrusted) else str(error)


class Results:
    """What tasks have left, and the variables of process tasks, which come back automatically."""

    def __init__(
        self,
        shell: InteractiveShell | None,
        store: TaskStore,
        archives: Archives,
        payloads: Payloads,
        runners: Runners,
    ) -> None:
        self._shell = shell
        self._store = store
        self._archives = archives
        self._payloads = payloads
        self._runners = runners
        self._expected: set[int] = set()
        self._unsaid: list[tuple[TaskRecord, Loaded]] = []
        self._is_following = False
        """Whether it is called before cells."""
        self._foreground = None if shell is None else ForegroundNames(shell)
        self._changed_files: set[Path] = set()
        """Files that were reported as changed on the disk."""

    def outcome(self, task: TaskRecord) -> Outcome | None:
        """Return how a task of this very process ended, with the value and exception objects."""
        threads = self._runners.existing_threads
        return None if threads is None or task.archive else threads.outcome(task.key)

    def value(self, task: TaskRecord) -> Any:
        """Return the value of a completed task; None if its last statement is not an expression.

        In the process that ran the task this is the object itself, elsewhere it is loaded from its
        signed pickle.
        """
        outcome = self.outcome(task)
        if outcome is not None:
            return None if outcome.has_no_value else outcome.value
        kept = self._archives.store_of(task).results.get(task.key)
        self._follow_cells()
        return None if kept is None else self._payloads.load(task, kept)

    def handed_to(self, call: Call) -> Callable[[], Any]:
        """Return a call that takes the results of other tasks, if it is to have some, when made.

        It raises `ResultUnavailable` then. Of a task of this process it takes the object itself.
        """
        if not isinstance(call, CallWithResults):
            return call

        def value_of(task_id: str) -> Any:
            outcome = self.outcome(handed_results.completed(self._store, task_id))
            if outcome is not None:
                return None if outcome.has_no_value else outcome.value
            return handed_results.load(self._store, self._payloads, None, task_id)

        def call_with_results() -> Any:
            return call.with_values(value_of)()

        return call_with_results

    def load_variables(self, task: TaskRecord, names: Sequence[str] = ()) -> Loaded:
        """Load the variables that a process task left into the notebook: all, or those named.

        Raise `TaskNotDone` if it has not ended, and `InvalidRequest` for a name that it has not
        left.
        """
        if not task.state.is_final:
            raise TaskNotDone(
                f"task {task.label} is {task.state.value}, so it has left nothing yet; "
                f"%bg_wait {task.number} waits for it"
            )
        store, namespace = self._archives.store_of(task), self._require_shell().user_ns
        self._follow_cells()
        return load(store, self._payloads, task, namespace, names)

    def _require_shell(self) -> InteractiveShell:
        assert self._shell is not None, "variables come back into a notebook"
        return self._shell

    def expect(self, task: TaskRecord) -> None:
        """Bring back this task's variables once it has ended."""
        self._follow_cells()
        self._expected.add(task.key)
        if self._foreground is not None:
            self._foreground.begin(task.key)

    def _follow_cells(self) -> None:
        runners = self._runners
        if not self._is_following and self._shell is not None and self._foreground is not None:
            self._is_following = True
            _ = runners.contexts  # created first, so that it is notified of a cell before this
            after_cell = self._foreground.after_cell
            call_between_cells(self._shell, runners.on_close.append, self.before_cell, after_cell)

    def before_cell(self, info: Any = None) -> None:
        """Bring back whatever has become ready before a cell runs, and report it.

        Report nothing in the output of this package's own commands, which show only what they were
        asked for.
        """
        for key in sorted(self._expected):
            try:
                self._deliver(key)
            except BackgroundError:
                return  # the store cannot be read at the moment: try again before the next cell
        if not is_own_command(str(getattr(info, "raw_cell", ""))):
            self._say_changed_files()
            unsaid, self._unsaid = self._unsaid, []
            for task, loaded in unsaid:
                _say(task, loaded)

    def _say_changed_files(self) -> None:
        """Report files of loaded arrays that were changed on the disk, each once."""
        for path in mappings.changed_files():
            if path not in self._changed_files:
                self._changed_files.add(path)
                print(
                    f"{path} was changed on the disk: arrays that were loaded from it may be "
                    f"wrong; %bg_rerun {path.parent.name} computes them again",
                    file=sys.stderr,
                )

    def _deliver(self, key: int) -> None:
        task = self._store.tasks.get(key)
        task = None if task is None else self._store.tasks.last_try(task)
        if task is not None and (not task.state.is_final or task.declared_dead == "presumed"):
            return  # a task only presumed dead may go on
        loaded = Loaded() if task is None else self._loaded(task, key)
        # Not earlier: when the store cannot be read now, they come before the next cell.
        self._expected.discard(key)
        if self._foreground is not None:
            self._foreground.end(key, loaded.names)
        if task is None:
            return
        if not loaded and task.state is not TaskState.COMPLETED:
            loaded.problems = dict.fromkeys(self._missing(task), task.reason or "it left nothing")
        worth_saying = self._worth_saying(task, loaded)
        if worth_saying:
            self._unsaid.append((task, worth_saying))

    def _loaded(self, task: TaskRecord, launched: int) -> Loaded:
        """Load what a task has left, but keep what the notebook has changed or assigned since.

        `launched` is the row of its first try, with which that time began.
        """
        foreground = self._foreground
        assert foreground is not None, "only a notebook expects variables"
        store, namespace = self._archives.store_of(task), self._require_shell().user_ns
        try:
            return self._runners.contexts.change(
                lambda: load(
                    store,
                    self._payloads,
                    task,
                    namespace,
                    keep_own=True,
                    assigned=foreground.assigned(launched),
                )
            )
        except BackgroundError:
            raise
        except BaseException as error:  # in an IPython hook it would end the kernel
            why = f"{describe(error)}; %bg_load {task.number} loads them"
            return Loaded(problems={"its variables": why})

    def _worth_saying(self, task: TaskRecord, loaded: Loaded) -> Loaded:
        """Return what is worth saying: no modules, nothing only defined, and no loop variables."""
        tree, asked = self._tree(task), self._asked(task)
        said = loaded.only(variables.values(tree) if asked is None else {*asked})
        imported = variables.imported(tree)
        said.problems = {
            name: why
            for name, why in loaded.problems.items()
            if why != BOTH_ASSIGNED or name not in imported
        }
        return said

    def _missing(self, task: TaskRecord) -> Sequence[str]:
        """Return what a task would have left if its process had not ended too early.

        A task that ended by an error of its cell has left what the cell had assigned.
        """
        is_by_error = task.exit_code == 1 and not (task.reason or "").startswith("exit status")
        imported = variables.imported(self._tree(task))
        return () if is_by_error else [n for n in self.to_assign(task) if n not in imported]

    def to_assign(self, task: TaskRecord) -> Sequence[str]:
        """Return the variables that a task's cell assigns, or the requested ones."""
        if task.kind != "python" or task.is_call:
            return ()
        asked = self._asked(task)
        return variables.assigned(self._tree(task)) if asked is None else asked

    def _asked(self, task: TaskRecord) -> Sequence[str] | None:
        """Return the variables that ``--out`` names; None without it."""
        process = self._archives.store_of(task).processes.get(task.key)
        return None if process is None else process.options.outputs

    def _tree(self, task: TaskRecord) -> ast.Module:
        tree: ast.Module = ast.parse(self._require_shell().transform_cell(task.source))
        return tree


def _say(task: TaskRecord, loaded: Loaded) -> None:
    stream = sys.stderr if loaded.problems else sys.stdout
    print(legible_lines(loaded.in_words(task)), file=stream)


def failure(task: TaskRecord, task_outputs: list[dict[str, Any]]) -> BackgroundError:
    """Return the error for a task that did not complete, with its traceback."""
    why = f" ({task.reason})" if task.reason and task.reason != task.state.value else ""
    message = f"task {task.label} {_was(task.state)}{why}; %bg_output {task.number} shows the rest"
    tracebacks = [out["traceback"] for out in task_outputs if out["output_type"] == "error"]
    error = TaskFailed(message)
    if tracebacks:
        error.add_note("\n".join(tracebacks[-1]))
    return error


def _was(state: TaskState) -> str:
    return "failed" if state is TaskState.FAILED else f"was {state.value}"
