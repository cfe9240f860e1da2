"""Launch cells, commands and functions, each where it is to run; and run ended tasks again."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from ipytaskpersist import (
    librarysettings,
    mentions,
    notebookmagics,
    places,
    provenance,
    reconciling,
    shellcells,
    variables,
)
from ipytaskpersist.elsewhere import Modules
from ipytaskpersist.errors import InvalidRequest, StoreError
from ipytaskpersist.interruption import HeldBack, is_from_outside
from ipytaskpersist.mishaps import class_name, describe
from ipytaskpersist.paths import typed_path
from ipytaskpersist.payload import INPUTS, Payloads, Prepared
from ipytaskpersist.records import Options, SessionRecord, TaskRecord
from ipytaskpersist.references import check_tags
from ipytaskpersist.runners.detached import python_command
from ipytaskpersist.runners.given import Given, Setting
from ipytaskpersist.runners.process import ProcessRunner
from ipytaskpersist.safetext import legible
from ipytaskpersist.secretnames import in_use, is_secret
from ipytaskpersist.shellcells import ShellCommand
from ipytaskpersist.store import NewProcess, NewTask, TaskStore
from ipytaskpersist.store.database import storable

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.cell import Outcome
    from ipytaskpersist.delivery import Delivery
    from ipytaskpersist.runners.thread import ThreadRunner

FUTURE_FLAGS = 0x1FE0000
"""The compiler flags of all ``from __future__`` features."""
THREAD, PROCESS, SHELL = "thread", "process", "shell"
Work = Callable[[Any], "Outcome"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a person said about a task besides its source."""

    name: str = ""
    where: str = ""
    """``thread``, ``process`` or ``shell``; empty for what the source and the trait say."""
    options: Options = field(default_factory=Options)
    tags: Sequence[str] = ()
    notify: bool = False
    """Whether its end is to be told at the usual places."""
    notify_to: Sequence[str] = ()
    """Further places, for this task only."""


@dataclass(frozen=True, slots=True)
class Again:
    """Which task is run again."""

    task: TaskRecord
    once: bool
    """Whether nobody else may have done so."""


class Host(Protocol):
    """What a launcher needs of the manager."""

    shell: InteractiveShell | None
    store: TaskStore
    payloads: Payloads
    runner: Any
    shell_path: Any
    cancel_grace_s: Any
    max_output_bytes: Any
    large_result_bytes: Any
    notify: Any
    notify_after_s: Any

    @property
    def threads(self) -> ThreadRunner:
        """The tasks in threads."""

    @property
    def processes(self) -> ProcessRunner:
        """The tasks in processes of their own."""

    @property
    def delivery(self) -> Delivery:
        """What brings variables back."""

    def session(self) -> SessionRecord:
        """This session, recorded."""

    def store_of(self, task: TaskRecord) -> TaskStore:
        """The store that has a task."""

    def launched(self, task: TaskRecord, directory: str) -> None:
        """A task was launched, and is recorded."""

    def tell_end(self, key: int) -> None:
        """Tell who wants to know that a task has ended."""


class Launcher:
    """Launches the tasks of one process."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def launch(self, source: str, request: Request, again: Again | None = None) -> TaskRecord:
        """Run a source in the background. Returns when the task is durably recorded.

        Raises `InvalidRequest` for an empty source and for options that make no sense,
        `cell.CellSyntaxError` for a cell that does not compile, and `StoreError` when the store
        cannot be written; no task is made then.
        """
        if not source.strip():
            raise InvalidRequest(
                "the cell is empty: write the code to run in the background below %%background"
            )
        check(request.options)
        check_tags(request.tags)
        command = self._shell_command(source, request)
        if command is not None:
            return self._launch_command(source, request, command, again)
        if (request.where or self._host.runner) == PROCESS:
            return self._launch_python(source, request, again)
        refuse(request.options, ("cwd", "env", "timeout_s", "inputs", "outputs"), NEEDS_PROCESS)
        refuse(request.options, ("pty", "shell_path"), NEEDS_SHELL)
        return self._launch_thread(source, request, again)

    def _launch_thread(
        self, source: str, request: Request, again: Again | None = None
    ) -> TaskRecord:
        from ipytaskpersist.cell import compile_cell, run_cell

        shell = self._require_shell()
        cell = compile_cell(shell, source, self._execution_count())
        new = self._new(source, request, "python", THREAD, again)
        record = self._run_in_thread(new, lambda task: run_cell(shell, cell, task))
        _say_history(record, variables.of_history(source, shell), OF_NOTEBOOK)
        return record

    def launch_function(self, call: Callable[[], Any], source: str, request: Request) -> TaskRecord:
        """Run a function in the background. Returns when the task is durably recorded."""
        if request.where == PROCESS:
            setting = self._setting()
            inputs = self._prepare(setting, Given(call=call), {"the call": call})
            new = self._new(source, request, "python", PROCESS, is_call=True)
            return self._launch_process(new, self._python_process(request.options), inputs)
        from ipytaskpersist.cell import run_function

        shell = self._require_shell()
        new = self._new(source, request, "python", THREAD, is_call=True)
        return self._run_in_thread(new, lambda task: run_function(shell, call, task))

    def _run_in_thread(self, new: NewTask, work: Work) -> TaskRecord:
        threads = self._host.threads
        with HeldBack():  # a task that is recorded has a thread
            worker = threads.reserve()
            try:
                record = self._host.store.tasks.insert(new)
            except BaseException:
                threads.give_back(worker)
                raise
            self._host.launched(record, provenance.current_directory())
            threads.launch(record, work, lambda: self._host.tell_end(record.key), worker)
        return record

    # Shell commands.

    def _shell_command(self, source: str, request: Request) -> ShellCommand | None:
        """The command that a source is; None for Python."""
        if request.where == SHELL:
            path = request.options.shell_path or self._host.shell_path
            if shutil.which(path) is None:
                raise InvalidRequest(f"there is no shell '{path}'; give the path of one that is")
            if os.sep in path:
                path = str(Path(path).absolute())  # not looked up from where the task runs
            return shellcells.of_shell(source, path)
        if request.where == THREAD or self._host.shell is None:
            return None
        return shellcells.of_cell(self._host.shell, source)

    def _launch_command(
        self, source: str, request: Request, command: ShellCommand, again: Again | None
    ) -> TaskRecord:
        refuse(request.options, ("inputs", "outputs"), NEEDS_PYTHON)
        if not is_passable(source):
            raise InvalidRequest(
                "the command has a character that no program can be given: a null character, or "
                "half of a surrogate pair"
            )
        process = NewProcess(
            command=command.command,
            script=command.script,
            script_as=command.script_as,
            pty=command.pty or request.options.pty,
            directory=directory_of(request.options),
            grace_s=self._host.cancel_grace_s,
            options=request.options,
        )
        return self._launch_process(self._new(source, request, "shell", PROCESS, again), process)

    def _launch_process(
        self, new: NewTask, process: NewProcess, inputs: Prepared | None = None
    ) -> TaskRecord:
        directory = storable(process.directory)
        new = replace(new, provenance={**new.provenance, "directory": directory})
        with HeldBack():  # a task that is recorded has a supervisor
            record = self._host.processes.launch(new, process, inputs)
            self._host.launched(record, process.directory)
        return record

    # Python in a process of its own.

    def _launch_python(
        self, source: str, request: Request, again: Again | None = None
    ) -> TaskRecord:
        from ipytaskpersist.cell import compile_cell

        refuse(request.options, ("pty", "shell_path"), NEEDS_SHELL)
        process = self._python_process(request.options)
        shell = self._require_shell()
        compile_cell(shell, source, self._execution_count())  # a mistake shows at once
        inputs = self._inputs(shell, ast.parse(shell.transform_cell(source)), request.options)
        record = self._launch_process(
            self._new(source, request, "python", PROCESS, again), process, inputs
        )
        self._host.delivery.expect(record)
        _say_history(record, variables.of_history(source, shell), OF_PROCESS)
        return record

    def _python_process(self, options: Options) -> NewProcess:
        command = [
            *python_command("runners.child", "-u"),
            str(self._host.store.directory.root),
        ]
        return NewProcess(command, directory_of(options), self._host.cancel_grace_s, options)

    def to_assign(self, task: TaskRecord) -> Sequence[str]:
        """The variables that a Python task's cell assigns, or those that were asked for."""
        process = self._host.store_of(task).processes.get(task.key)
        if process is not None and process.options.outputs is not None:
            return process.options.outputs
        tree = ast.parse(self._require_shell().transform_cell(task.source))
        return variables.assigned(tree)

    def imports(self, task: TaskRecord) -> set[str]:
        """The names that a Python task's cell binds by importing."""
        return variables.imported(ast.parse(self._require_shell().transform_cell(task.source)))

    def _inputs(self, shell: InteractiveShell, tree: ast.Module, options: Options) -> Prepared:
        """What a cell is given: the variables that it reads, and those that its strings name."""
        namespace = shell.user_ns
        used = variables.used(tree) if options.inputs is None else options.inputs
        given = self._given(shell, options.inputs, used)
        mentioned = {}
        if options.inputs is None:
            names = [*mentions.in_strings(tree), *mentions.in_values(given.values())]
            mentioned = self._given(shell, None, [name for name in names if name not in given])
        submodules = mentions.submodules(tree, namespace)
        setting = replace(self._setting(), submodules=submodules)
        modules = self._modules([*mentions.imports(tree), *submodules], given)
        named = given | {module.__name__: module for module in modules}
        if not mentioned:
            return self._prepare(setting, Given(given, modules=modules), named)
        try:
            return self._prepare(setting, Given(given | mentioned, modules=modules), named)
        except InvalidRequest:
            # A string may be no code at all: what only it names does not stop the launch.
            kept = {name: v for name, v in mentioned.items() if self._is_picklable(v)}
            return self._prepare(setting, Given(given | kept, modules=modules), named)

    def _modules(self, names: Sequence[str], given: dict[str, Any]) -> list[ModuleType]:
        """Of what the cell needs, or a function that it is given, what only this process finds."""
        known = Modules()
        imported = known.not_found(names)
        perhaps = known.not_found(mentions.in_code(given.values()))
        return [*imported, *(m for m in perhaps if m not in imported and self._is_picklable(m))]

    def _setting(self) -> Setting:
        """What a task in a process of its own finds besides variables."""
        setting = setting_of(self._host.shell)
        magics = notebookmagics.of_notebook(self._host.shell, self._namespace())
        large_bytes = self._host.large_result_bytes
        return replace(setting, magics=magics, large_result_bytes=large_bytes)

    def _is_picklable(self, value: Any) -> bool:
        try:
            self._host.payloads.prepare([value], self._namespace()).discard()
        except BaseException as error:  # whatever a class raises when it is pickled
            if is_from_outside(error):
                raise
            return False
        return True

    @staticmethod
    def _given(
        shell: InteractiveShell, asked: Sequence[str] | None, used: Sequence[str]
    ) -> dict[str, Any]:
        """The variables to hand over."""
        namespace, hidden, missing = shell.user_ns, shell.user_ns_hidden, object()
        for name in asked or ():
            if name not in namespace:
                raise InvalidRequest(f"there is no variable '{name}' to hand over with --in")
        return {
            name: namespace[name]
            for name in used
            if name in namespace and hidden.get(name, missing) is not namespace[name]
        }

    def _namespace(self) -> dict[str, Any]:
        shell = self._host.shell
        return vars(sys.modules["__main__"]) if shell is None else shell.user_ns

    def _prepare(self, setting: Setting, given: Given, named: dict[str, Any]) -> Prepared:
        """Pickle what a task is given. Raises `InvalidRequest` for what cannot be pickled."""
        try:
            return self._host.payloads.prepare([setting, *given.apart()], self._namespace())
        except StoreError:
            raise
        except BaseException as error:  # whatever a class raises when it is pickled
            if is_from_outside(error):
                raise
            kept = {k: v for k, v in setting.libraries.items() if self._is_picklable(v)}
            if kept.keys() == setting.libraries.keys():
                raise self._unpicklable(named, self._namespace(), error) from error
        missing = ", ".join(sorted(setting.libraries.keys() - kept.keys()))
        print(
            f"the task begins without the notebook's settings of {missing}: they cannot be pickled",
            file=sys.stderr,
        )
        return self._prepare(replace(setting, libraries=kept), given, named)

    def _unpicklable(
        self, named: dict[str, Any], namespace: dict[str, Any], error: BaseException
    ) -> InvalidRequest:
        """The error that names each variable that cannot be handed over, and why."""
        bad = {}
        for name, value in named.items():
            try:
                self._host.payloads.prepare([value], namespace).discard()
            except BaseException as problem:  # whatever a class raises when it is pickled
                if is_from_outside(problem):
                    raise
                bad[name] = f"{name} ({class_name(value)}): {describe(problem)}"
        good = ",".join(name for name in named if name not in bad)
        what = "; ".join(bad.values()) or describe(error)
        return InvalidRequest(
            f"cannot be handed to another process: {what}. "
            f"--in {good or chr(39) * 2} leaves it out, --thread needs no handing over"
        )

    # Again.

    def rerun(self, task: TaskRecord, *, once: bool = False) -> TaskRecord:
        """Run an ended task's source again with the same options, as a new task.

        With `once`, raises `AlreadyRunAgain` when somebody has run it again before.
        """
        again = Again(task, once)
        if task.runner == THREAD:
            if task.is_call:
                raise InvalidRequest(
                    f"task {task.label} was a call of a function in a thread, whose arguments "
                    "were not kept; submit it again"
                )
            reconciling.end_left(task)  # or both would run
            return self._launch_thread(task.source, Request(task.name), again)
        return self._rerun_process(task, again)

    def _rerun_process(self, task: TaskRecord, again: Again) -> TaskRecord:
        if task.is_imported:
            # Its command and environment may be others than its source lets people think.
            raise InvalidRequest(
                f"task {task.label} was imported, and what a file says is not run as a process; "
                f"%bg_show {task.number} shows its source, for a cell of your own"
            )
        store = self._host.store_of(task)
        before, inputs = store.processes.get(task.key), None
        if before is None:
            raise InvalidRequest(f"what task {task.label} ran is not known any more")
        if not Path(before.directory).is_dir():
            raise InvalidRequest(
                f"the directory of task {task.label}, {before.directory}, does not exist any more"
            )
        process = NewProcess(
            command=before.command,
            directory=before.directory,
            grace_s=self._host.cancel_grace_s,
            options=_with_secrets_of_now(task, before.options),
            script=before.script,
            script_as=before.script_as,
            pty=before.pty,
        )
        if task.kind == "python":
            process = replace(process, command=self._python_process(Options()).command)
            given = store.results.get(task.key, INPUTS)
            inputs = self._host.payloads.copy(task, given) if given is not None else None
        new = self._new(
            task.source, Request(task.name), task.kind, PROCESS, again, is_call=task.is_call
        )
        record = self._launch_process(new, process, inputs)
        if task.kind == "python":
            self._host.delivery.expect(record)
        return record

    # What every task has.

    def _new(
        self,
        source: str,
        request: Request,
        kind: str,
        runner: str,
        again: Again | None = None,
        *,
        is_call: bool = False,
    ) -> NewTask:
        session = self._host.session()
        self._host.store.require_writable()
        before = {"rerun_of": again.task.id} if again else {}
        return NewTask(
            notebook_key=session.notebook_key,
            session_id=session.id,
            name=request.name,
            kind=kind,
            runner=runner,
            source=source,
            cell_id=self._cell_id(),
            execution_count=self._execution_count(),
            is_call=is_call,
            # One that is archived is known by its id alone, which `provenance` keeps.
            rerun_of=again.task.key if again and not again.task.archive else None,
            once=again.once if again else False,
            tags=again.task.tags if again else request.tags,
            max_output_bytes=self._host.max_output_bytes,
            notify=self._places(request),
            provenance={**provenance.of_launch(), **before},
        )

    def _places(self, request: Request) -> tuple[str, ...]:
        """Where the end of a task is to be told, as the store keeps it."""
        host = self._host
        return places.wanted(
            request.notify, request.notify_to, host.notify, host.notify_after_s
        ).kept()

    def _require_shell(self) -> InteractiveShell:
        if self._host.shell is None:
            raise InvalidRequest(
                "a Python cell can only be launched from IPython or a notebook; start one, and "
                "type %load_ext ipytaskpersist"
            )
        return self._host.shell

    def _execution_count(self) -> int:
        # IPython 9 counts at the beginning of a cell, IPython 8 at its end; the hook knows.
        hook: Any = self._host.shell.displayhook if self._host.shell else None
        return int(hook.prompt_count) if hook is not None else 0

    def _cell_id(self) -> str | None:
        get_parent = getattr(self._host.shell, "get_parent", None)
        parent = get_parent() if get_parent is not None else None
        cell_id = ((parent or {}).get("metadata") or {}).get("cellId")
        return str(cell_id) if cell_id else None


OF_NOTEBOOK = (
    "the notebook's, as it stands when the task reads it: of cells in the foreground, not of tasks"
)
OF_PROCESS = "empty in a process: assign what the task needs to a variable before it is launched"


def _say_history(task: TaskRecord, names: Sequence[str], what: str) -> None:
    """Say what `_`, `Out` and `In` are in a task that reads them."""
    if names:
        each = "each " if len(names) > 1 else ""
        said = f"task {task.label} reads {', '.join(names)}, {each}{what}"
        print(legible(said), file=sys.stderr)


def _with_secrets_of_now(task: TaskRecord, options: Options) -> Options:
    """The options with the values that were not kept. Raises `InvalidRequest` for a missing one."""
    env = {
        name: os.environ.get(name) if value is None else value
        for name, value in options.env.items()
    }
    missing = [name for name, value in env.items() if value is None]
    if missing:
        raise InvalidRequest(
            f"task {task.label} was given {', '.join(missing)}, and what looks like a secret by "
            f"its name is not kept; set os.environ[{missing[0]!r}], then rerun it"
        )
    return replace(options, env=env)


def _without_secrets(config: Any) -> Any:
    """IPython's configuration as a file may have it: without what may be secret."""
    from traitlets.config import Config

    kept = Config()
    for section, settings in config.items():
        kept[section] = (
            Config(
                {
                    name: value
                    for name, value in settings.items()
                    if name != "notify" and not is_secret(name)
                }
            )
            if isinstance(settings, Config)
            else settings
        )
    return kept


FLAGS = {
    "cwd": "--cwd",
    "env": "--env",
    "timeout_s": "--timeout",
    "pty": "--pty",
    "shell_path": "--shell-path",
    "inputs": "--in",
    "outputs": "--out",
}
NEEDS_PROCESS = "needs a process: add --process, or --shell for a shell command"
NEEDS_SHELL = "is for shell commands: add --shell"
NEEDS_PYTHON = "is for Python in a process: a shell command has no variables"


def setting_of(shell: Any) -> Setting:
    """What a cell finds in this notebook besides variables."""
    if shell is None:
        from traitlets.config import Config

        return Setting(
            list(sys.path),
            Config(),
            "last_expr",
            0,
            secret_names=list(in_use()),
            libraries=librarysettings.of_notebook(),
        )
    return Setting(
        path=list(sys.path),
        config=_without_secrets(shell.config),
        secret_names=list(in_use()),
        libraries=librarysettings.of_notebook(),
        interactivity=shell.ast_node_interactivity,
        compiler_flags=shell.compile.flags & FUTURE_FLAGS,
        shell_class=_class_of_kernel(shell),
        profile=str(getattr(shell.profile_dir, "location", "")),
    )


def _class_of_kernel(shell: Any) -> tuple[str, str] | None:
    """Module and name of the class of a kernel's shell; None for a terminal's."""
    kernel: Any = sys.modules.get("ipykernel.zmqshell")
    if kernel is None or not isinstance(shell, kernel.ZMQInteractiveShell):
        return None
    return type(shell).__module__, type(shell).__name__


def refuse(options: Options, names: Sequence[str], why: str) -> None:
    """Raise `InvalidRequest` when one of these options is given."""
    for name in names:
        if getattr(options, name) not in (None, False, {}):
            raise InvalidRequest(f"{FLAGS[name]} {why}")


def check(options: Options) -> None:
    """Raise `InvalidRequest` for an option that no process can be given."""
    timeout_s = options.timeout_s
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidRequest(f"--timeout is a number of seconds greater than 0, not {timeout_s}")
    for name, value in options.env.items():
        if not is_passable(name) or not is_passable(value):
            raise InvalidRequest(f"the value of {name!r} cannot be that of an environment variable")
        if not name or "=" in name:
            raise InvalidRequest(f"{name!r} cannot be the name of an environment variable")


def is_passable(text: object) -> bool:
    """Whether this can be an argument of a program, or a part of its environment."""
    try:
        return isinstance(text, str) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def directory_of(options: Options) -> str:
    """The directory in which a task is to run. Raises `InvalidRequest` when there is none."""
    path = typed_path(options.cwd or ".")
    if not is_passable(str(path)) or not path.is_dir():
        shown = str(path) if str(path).isprintable() else ascii(str(path))
        raise InvalidRequest(f"the directory {shown} does not exist; give another with --cwd")
    return str(path)
