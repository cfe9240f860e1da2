"""Run one cell's source as IPython would, but without the foreground's own state.

The cell is transformed, parsed and compiled at its launch, so that a mistake shows at once. It runs
in the notebook's namespace. ``Out``, ``_``, ``In``, the history and the execution count remain the
foreground's. That is why this does not call ``run_cell``.
"""

from __future__ import annotations
import __future__

import ast
import asyncio
import inspect
import itertools
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import CodeType
from typing import TYPE_CHECKING, Any, cast

from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult, InteractiveShell

from ipytaskpersist.base.foreign_errors import describe, one_line
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.capture import figures
from ipytaskpersist.capture.installation import show_result
from ipytaskpersist.errors import TaskCancelled
from ipytaskpersist.isolation.event_loops import new_loop
from ipytaskpersist.running import forks
from ipytaskpersist.running.interruption import HeldBack
from ipytaskpersist.running.running_task import RunningTask, active_task

if TYPE_CHECKING:
    from ipytaskpersist.base.patches import Patches

NOTHING: Any = object()
END_TASKS_S = 1.0
FOR_ERRORS = ("stack_data", "pygments.formatters.terminal256", "pygments.styles")
"""Modules that IPython imports when it first shows an error."""


def be_ready_for_errors() -> None:
    """Import what is needed to show an error, which may be removed while the cell runs."""
    for name in FOR_ERRORS:
        with suppress(ImportError):  # other versions of IPython may not need it
            import_module(name)


class CellSyntaxError(Exception):
    """The cell does not compile. IPython displays this error like that of a foreground cell."""

    def __init__(self, error: BaseException, rendered: list[str]) -> None:
        super().__init__(str(error))
        self._rendered = rendered

    def _render_traceback_(self) -> list[str]:
        return self._rendered


def syntax_error(shell: InteractiveShell, error: BaseException) -> CellSyntaxError:
    """Return the error to raise for a cell that does not compile, named like the original."""
    no_frames: Any = []
    if isinstance(error, SyntaxError):
        rendered = shell.SyntaxTB.structured_traceback(type(error), error, no_frames)
    else:
        rendered = shell.InteractiveTB.get_exception_only(type(error), error)
    named = type(type(error).__name__, (CellSyntaxError,), {"__module__": "builtins"})
    raised: CellSyntaxError = named(error, rendered)
    return raised


@dataclass(frozen=True, slots=True)
class Step:
    """One compiled top-level statement."""

    code: CodeType
    value_name: str | None = None
    """Variable that receives the value of an expression whose value is displayed.

    It is in the notebook's namespace between the statement and its display. IPython only runs
    statements, and its own way of passing on a value is a hook that all threads share.
    """

    @property
    def is_async(self) -> bool:
        """Whether the statement awaits."""
        return bool(self.code.co_flags & inspect.CO_COROUTINE)


_value_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell ready to run."""

    tree: ast.Module
    steps: tuple[Step, ...]
    quiet: bool
    """Whether a final semicolon keeps the last value from being shown and saved."""
    warnings: tuple[Any, ...] = ()
    """Warnings of the compiler, shown with the task's output rather than the launching cell's."""

    @property
    def is_async(self) -> bool:
        """Whether any of the statements awaits."""
        return any(step.is_async for step in self.steps)


def compile_cell(
    shell: InteractiveShell, source: str, execution_count: int, interactivity: str = ""
) -> Cell:
    """Compile a cell as IPython would. Raises `CellSyntaxError`."""
    with kept_warnings() as warned:
        return _compile_cell(shell, source, execution_count, interactivity, warned)


@contextmanager
def kept_warnings() -> Iterator[list[Any]]:
    """Collect the warnings of the calling thread in a list instead of showing them.

    `warnings.catch_warnings` would make all other threads repeat theirs.
    """
    kept: list[Any] = []
    module: Any = warnings
    plain, here = module._showwarnmsg, threading.get_ident()

    def keep(message: Any) -> None:
        if threading.get_ident() == here:
            kept.append(message)
        else:
            plain(message)

    module._showwarnmsg = keep
    try:
        yield kept
    finally:
        module._showwarnmsg = plain


def show_warnings(messages: Iterable[Any]) -> None:
    """Show collected warnings."""
    module: Any = warnings
    for message in messages:
        module._showwarnmsg(message)


def _compile_cell(
    shell: InteractiveShell,
    source: str,
    execution_count: int,
    interactivity: str,
    warned: list[Any],
) -> Cell:
    try:
        transformed = shell.transform_cell(source)
        name = shell.compile.cache(transformed, execution_count, raw_code=source)
        tree = shell.transform_ast(shell.compile.ast_parse(transformed, filename=name))
        mode = interactivity or shell.ast_node_interactivity
        steps = tuple(_steps(shell, tree.body, name, mode))
    except (SyntaxError, OverflowError, ValueError, TypeError, MemoryError) as error:
        raise syntax_error(shell, error) from None
    quiet = shell.displayhook.semicolon_at_end_of_expression(transformed)
    return Cell(tree, steps, quiet, tuple(warned))


def _steps(shell: InteractiveShell, body: list[ast.stmt], name: str, mode: str) -> list[Step]:
    if mode == "last_expr_or_assign":
        body = [*body, *_value_of_assignment(body)]
    shown = _shown(body, "last_expr" if mode == "last_expr_or_assign" else mode)
    steps = []
    for node in body:
        if node in shown and isinstance(node, ast.Expr):
            value_name = f"_ipytaskpersist_value_{next(_value_numbers)}"
            target = ast.copy_location(ast.Name(value_name, ast.Store()), node)
            node = ast.copy_location(ast.Assign([target], node.value), node)  # noqa: PLW2901
            steps.append(Step(_compile(shell, node, name), value_name))
        else:
            steps.append(Step(_compile(shell, node, name)))
    return steps


def _compile(shell: InteractiveShell, node: ast.stmt, name: str) -> CodeType:
    """Compile as the shell does, including ``from __future__`` imports of earlier cells.

    The shell's own compiler is not used, because another thread may be changing its flags.
    """
    flags = shell.compile.flags | (ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if shell.autoawait else 0)
    code: CodeType = compile(ast.Module([node], []), name, "exec", flags, dont_inherit=True)
    for feature in __future__.all_feature_names:
        shell.compile.flags |= code.co_flags & getattr(__future__, feature).compiler_flag
    return code


def _shown(body: list[ast.stmt], mode: str) -> list[ast.stmt]:
    """Return the statements whose value is displayed, by IPython's ``ast_node_interactivity``."""
    if mode == "all":
        return body
    return body[-1:] if mode in ("last", "last_expr") else []


def _value_of_assignment(body: list[ast.stmt]) -> list[ast.stmt]:
    last = body[-1] if body else None
    if isinstance(last, ast.Assign) and len(last.targets) == 1:
        target: ast.expr | None = last.targets[0]
    elif isinstance(last, ast.AugAssign | ast.AnnAssign):
        target = last.target
    else:
        target = None
    if not isinstance(target, ast.Name):
        return []
    return [ast.fix_missing_locations(ast.Expr(ast.Name(target.id, ast.Load())))]


@dataclass(slots=True)
class Outcome:
    """How a cell ended."""

    state: TaskState
    reason: str | None = None
    exit_code: int | None = None
    value: Any = NOTHING
    """Value of the last expression, or `NOTHING`."""
    text: str | None = None
    """The value's text form, if it has been shown."""
    error: BaseException | None = None

    @property
    def has_no_value(self) -> bool:
        """Whether the cell did not end with an expression."""
        return self.value is NOTHING


class CellRun:
    """One run of a cell in the calling thread, for the task of the calling context."""

    def __init__(self, shell: InteractiveShell, cell: Cell, task: RunningTask) -> None:
        self._shell: Any = shell
        self._cell = cell
        self._task = task
        self.value: Any = NOTHING
        self.text: str | None = None

    def run(self) -> Outcome:
        """Run the cell until the asyncio tasks that it started have ended.

        A kernel runs its cells inside an event loop, and so does this: ``asyncio.create_task``
        works in a cell without ``await``, and ``asyncio.run`` reports that a loop is running.
        """
        if hasattr(self._shell, "kernel") or self._cell.is_async:
            return self._run_in_loop()
        try:
            return self._outcome(self._task.context.run(self.run_without_loop))
        except BaseException as error:
            return self._outcome(error)

    def run_without_loop(self) -> BaseException | None:
        """Run a cell that does not await, in the calling context. Returns what it raised."""
        steps = self._steps()
        try:
            steps.send(None)
        except StopIteration as stop:
            error: BaseException | None = stop.value
            return error
        steps.close()
        return RuntimeError("a cell inside a cell cannot await")

    def _run_in_loop(self) -> Outcome:
        loop = self._task.cancellation.loop = _loop_of_thread()
        try:
            main = loop.create_task(self._with_its_tasks(), context=self._task.context)
            return self._outcome(loop.run_until_complete(main))
        except BaseException as error:
            return self._outcome(error)
        finally:
            self._task.cancellation.loop = None
            _end_tasks(loop)
            if self._task.cancelled:
                # A cancellation may have hit the loop itself.
                close_loop_of_thread()

    async def _with_its_tasks(self) -> BaseException | None:
        error = await self._steps()
        if self._task.is_forked:
            # Do not return to the event loop, which waits on resources shared with the parent.
            forks.end(self._outcome(error).exit_code)
        own = asyncio.current_task()
        while error is None and (others := asyncio.all_tasks() - {own}):
            await asyncio.wait(others)
        return error

    async def _steps(self) -> BaseException | None:
        """Run the statements. Returns the exception raised, once IPython has shown it."""
        show_warnings(self._cell.warnings)
        for step in self._cell.steps:
            self._task.cancellation.look()
            result: Any = ExecutionResult(None)
            if await self._shell.run_code(step.code, result, async_=step.is_async):
                error: BaseException | None = result.error_in_exec
                return RuntimeError("the cell failed") if error is None else error
            if step.value_name is not None:
                value = self._shell.user_ns.pop(step.value_name, None)
                failed = self._show(value)
                if failed is not None:
                    return failed
        return None

    def _show(self, value: Any) -> BaseException | None:
        """Show a value; return what the task's own ``sys.displayhook`` raised, once it is shown."""
        own_hook = self._task.assigned.get("displayhook")
        if not self._cell.quiet:
            self.value = value
            if own_hook is None:
                self.text = show_result(self._shell, self._task, value)
        # Only IPython's own hook looks for a semicolon.
        return None if own_hook is None else self._call_hook(own_hook, value)

    def _call_hook(self, hook: Callable[[Any], object], value: Any) -> BaseException | None:
        try:
            hook(value)
        except BaseException as error:
            self._shell.showtraceback(running_compiled_code=True)
            return error
        return None

    def _outcome(self, error: BaseException | None) -> Outcome:
        if error is not None:
            return outcome_of(self._task, error)
        return Outcome(TaskState.COMPLETED, None, 0, self.value, self.text)


def outcome_of(task: RunningTask, error: BaseException) -> Outcome:
    """Return the outcome of a task whose code raised this error."""
    # Use the type, because `__class__` may be anything.
    kind = type(error)
    if task.cancelled and issubclass(kind, TaskCancelled | asyncio.CancelledError):
        return Outcome(TaskState.CANCELLED, "cancelled", error=error)
    if issubclass(kind, SystemExit):
        return _exit_outcome(cast(SystemExit, error))
    return Outcome(TaskState.FAILED, describe(error), 1, error=error)


def _exit_outcome(error: SystemExit) -> Outcome:
    """Return what the interpreter would make of it: no code is 0, and a message is 1."""
    given = error.code
    is_number = issubclass(type(given), int)
    code = int.__int__(given) if is_number else 0 if given is None else 1  # type: ignore[arg-type]
    if abs(code) >= 2**31:
        code = 255  # as the interpreter does with a number that is too large
    if code == 0:
        return Outcome(TaskState.COMPLETED, None, 0, error=error)
    return Outcome(TaskState.FAILED, f"exit status {code}", code, error=error)


_threads = threading.local()


def _loop_of_thread() -> asyncio.AbstractEventLoop:
    """Return the calling thread's event loop, which its cells share along with asyncio locks."""
    loop: asyncio.AbstractEventLoop | None = getattr(_threads, "loop", None)
    if loop is None:
        with HeldBack():  # half a loop cannot be closed
            loop = _threads.loop = new_loop()
    return loop


def close_loop_of_thread() -> None:
    """Close the calling thread's event loop, if it has one, after its last cell."""
    loop = _threads.__dict__.pop("loop", None)
    if loop is not None:
        loop.close()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """End the asyncio tasks that a failed or cancelled cell has left."""
    pending = asyncio.all_tasks(loop)
    for task in pending:
        task.cancel()
    if pending:
        loop.run_until_complete(asyncio.wait(pending, timeout=END_TASKS_S))


def run_cell(shell: InteractiveShell, cell: Cell, task: RunningTask) -> Outcome:
    """Run a task's cell in the calling thread and context, including its figures."""
    outcome = CellRun(shell, cell, task).run()
    if outcome.error is None and task.shown_error is not None:
        # A magic such as %%time shows its cell's error and returns.
        outcome = _outcome_of_shown(task, *task.shown_error)
    if outcome.state is not TaskState.CANCELLED:
        figures.flush(task)
    return outcome


def _outcome_of_shown(task: RunningTask, name: str, message: str) -> Outcome:
    if task.error is not None and issubclass(type(task.error), SystemExit):
        return outcome_of(task, task.error)  # a script ended this way
    return Outcome(TaskState.FAILED, one_line(name, message), 1)


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Make ``get_ipython().run_cell`` inside a task run its cell as part of that task."""
    patches.replace(shell, "run_cell", partial(_run_part, shell))


def _run_part(
    shell: InteractiveShell, plain: Callable[..., ExecutionResult]
) -> Callable[..., ExecutionResult]:
    def run_cell(
        raw_cell: str, store_history: bool = False, silent: bool = False, *args: Any, **options: Any
    ) -> ExecutionResult:
        task = active_task.get()
        if task is None:
            return plain(raw_cell, store_history, silent, *args, **options)
        return _run_nested(shell, raw_cell, task, silent=silent)

    return run_cell


def _run_nested(
    shell: InteractiveShell, source: str, task: RunningTask, *, silent: bool
) -> ExecutionResult:
    result = ExecutionResult(ExecutionInfo(source, False, silent, True, None))
    count = task.record.execution_count or 0
    try:
        cell = compile_cell(shell, source, count, "none" if silent else "")
    except CellSyntaxError as error:
        result.error_before_exec = error
        shell._showtraceback(type(error), error, error._render_traceback_())
    else:
        nested = CellRun(shell, cell, task)
        result.error_in_exec = nested.run_without_loop()
        result.result = None if nested.value is NOTHING else nested.value
    # Flush here rather than at the task's end, so that %%capture gets the figures of its cell.
    figures.flush(task)
    return result


def run_function(shell: InteractiveShell, call: Callable[[], Any], task: RunningTask) -> Outcome:
    """Run a function as a task, in the calling thread and context."""
    try:
        value = task.context.run(call)
        if inspect.isawaitable(value):
            value = task.context.run(_run_to_end, value)
        outcome = Outcome(TaskState.COMPLETED, None, 0, value)
    except BaseException as error:
        outcome = outcome_of(task, error)
        if outcome.state is TaskState.CANCELLED:
            return outcome
        if not issubclass(type(error), SystemExit):
            shell.showtraceback(tb_offset=0)
    figures.flush(task)
    return outcome


def _run_to_end(value: Awaitable[Any]) -> Any:
    """Return the result of an awaitable, run in a separate event loop."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_wait_for(value))


async def _wait_for(value: Awaitable[Any]) -> Any:
    return await value
