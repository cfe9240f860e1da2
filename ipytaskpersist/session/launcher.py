"""Launch cells, commands and functions in the right runner, and run ended tasks again."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.detached import python_command
from ipytaskpersist.base.foreign_errors import class_name, describe
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import (
    FRESH_ASKED,
    FRESH_SETTING,
    INPUTS,
    PLACE,
    WHOLE_NOTEBOOK,
    Options,
    TaskRecord,
)
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.cells import mentions, notebook_magics, shell_commands, variables
from ipytaskpersist.cells.shell_commands import ShellCommand
from ipytaskpersist.errors import AlreadyLaunched, InvalidRequest, NamesMissing
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.upkeep import UpkeepTimer
from ipytaskpersist.notify import targets
from ipytaskpersist.places.connecting import HERE
from ipytaskpersist.runners import far_python, reconciling
from ipytaskpersist.runners.given import Given, NotebookSetup
from ipytaskpersist.running.interruption import HeldBack, is_from_outside
from ipytaskpersist.session import (
    far_versions,
    going_on,
    launch_keys,
    missing_names,
    places,
    provenance,
    whole_notebooks,
)
from ipytaskpersist.session.cell_runs import CellRuns
from ipytaskpersist.session.demanding import within_machine
from ipytaskpersist.session.finding import check_name, check_tags
from ipytaskpersist.session.going_on import GoesOn
from ipytaskpersist.session.notebook_setup import setting_of
from ipytaskpersist.session.own_session import OwnSession
from ipytaskpersist.session.provenance import GitWatch
from ipytaskpersist.session.queueing import Queueing
from ipytaskpersist.session.requests import (
    ATTACH,
    NEEDS_INTERPRETER,
    NEEDS_PLACE,
    NEEDS_PROCESS,
    NEEDS_PYTHON,
    NEEDS_SHELL,
    NEW,
    PROCESS,
    REPLACE,
    SHELL,
    THREAD,
    Request,
    WholeNotebook,
    check,
    directory_of,
    is_passable,
    refuse,
    refuse_elsewhere,
    refuse_in_thread,
    with_files,
)
from ipytaskpersist.session.results import Results
from ipytaskpersist.session.runners import Runners
from ipytaskpersist.session.scheduling import begun
from ipytaskpersist.session.task_settings import TaskSettings
from ipytaskpersist.store.claiming import starts_at_once
from ipytaskpersist.store.file.database import storable
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import CellRun, NewTask
from ipytaskpersist.values.handed_results import Call, CallWithResults
from ipytaskpersist.values.importable import Modules
from ipytaskpersist.values.payloads import GIVEN, SETTING, Payloads
from ipytaskpersist.values.pickle_files import Prepared
from ipytaskpersist.values.pickling import Unpicklable, require_picklable
from ipytaskpersist.values.unpicklable_parts import unpicklable_part

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.cells.execution import Outcome

Work = Callable[[Any], "Outcome"]


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launch has come to."""

    task: TaskRecord
    """The new task, or the one of an earlier run of the cell that still runs."""
    is_new: bool = True
    replaced: Sequence[TaskRecord] = ()
    """The tasks of earlier runs of the cell that it was to replace."""


@dataclass(frozen=True, slots=True)
class Again:
    """The task that is run again."""

    task: TaskRecord
    once: bool
    """Whether to fail if it has already been run again."""


class Launcher:
    """Launches the tasks of one process."""

    def __init__(
        self,
        settings: TaskSettings,
        store: TaskStore,
        archives: Archives,
        payloads: Payloads,
        session: OwnSession,
        runners: Runners,
        results: Results,
        git: GitWatch,
        upkeep: UpkeepTimer,
        cell_runs: CellRuns,
        queueing: Queueing,
    ) -> None:
        self._settings = settings
        self._shell = settings.shell
        self._store = store
        self._archives = archives
        self._payloads = payloads
        self._session = session
        self._runners = runners
        self._results = results
        self._git = git
        self._upkeep = upkeep
        self._cell_runs = cell_runs
        self._queueing = queueing

    def launch(self, source: str, request: Request) -> Launched:
        """Run a source in the background. Return when the task is durably recorded.

        If the task of an earlier run of the cell still runs, do what the request, or the trait,
        says about that.

        Raise `InvalidRequest` for an empty source and for options that make no sense,
        `execution.CellSyntaxError` for a cell that does not compile, and `StoreError` if the store
        cannot be written; no task is created then.
        """
        if request.notebook is not None:
            source = whole_notebooks.source_of(request.notebook, source)
        if not source.strip():
            raise InvalidRequest(
                "the cell is empty: write the code to run in the background below %%background"
            )
        check(request.options)
        check_tags(request.tags)
        check_name(request.name)
        if request.key:
            return self._launch_once(source, request)
        wanted = self._cell_runs.wanted(request)
        earlier = [] if wanted == NEW else self._cell_runs.earlier(self._run_of(source, request))
        if earlier and wanted == ATTACH:
            return Launched(earlier[-1], is_new=False)
        task = self._launch(source, replace(request, if_running=wanted, earlier=earlier))
        return Launched(task, replaced=earlier if wanted == REPLACE else ())

    def _launch_once(self, source: str, request: Request) -> Launched:
        """Launch a source, unless a task of this notebook has been launched with its key."""
        tag = launch_keys.tag_of(request.key)
        known = self._launched_as(tag, source)
        if known is None:
            try:
                return Launched(self._launch(source, replace(request, if_running=NEW)))
            except AlreadyLaunched:
                known = self._launched_as(tag, source)
                if known is None:
                    raise
        return Launched(known, is_new=False)

    def _launched_as(self, tag: str, source: str) -> TaskRecord | None:
        notebook_key = self._session.notebook_key()
        if notebook_key is None:
            return None
        known = self._store.tasks.of_tag(notebook_key, tag)
        if known is not None:
            launch_keys.refuse_other(known, tag, source)
        return known

    def _run_of(self, source: str, request: Request) -> CellRun:
        return CellRun(
            source,
            request.name,
            request.is_whole_cell,
            self._cell_id(),
            self._execution_count(),
            self._session.identity.id,
        )

    def _launch(self, source: str, request: Request) -> TaskRecord:
        if request.on in ("", HERE):
            refuse(request.options, ("send", "fetch"), NEEDS_PLACE)
            request = replace(request, on="")
        else:
            refuse_elsewhere(request)
            request = with_files(request)
        if request.notebook is not None:
            return self._launch_notebook(source, request, request.notebook)
        command = self._shell_command(source, request)
        if command is not None:
            return self._launch_command(source, request, command)
        if request.on or (request.where or self._settings.runner) == PROCESS:
            return self._launch_python(source, request)
        refuse(
            request.options,
            ("cwd", "env", "timeout_s", "inputs", "outputs", "fresh"),
            NEEDS_PROCESS,
        )
        refuse(request.options, ("pty", "shell_path"), NEEDS_SHELL)
        refuse_in_thread(request)
        return self._launch_thread(source, request)

    def _launch_thread(
        self, source: str, request: Request, again: Again | None = None
    ) -> TaskRecord:
        from ipytaskpersist.cells.execution import compile_cell, run_cell

        shell = self._require_shell()
        cell = compile_cell(shell, source, self._execution_count())
        new = self._new(source, request, "python", THREAD, again)
        record = self._run_in_thread(new, lambda task: run_cell(shell, cell, task))
        _say_history(record, variables.of_history(source, shell), OF_NOTEBOOK)
        return record

    def launch_function(self, call: Call, source: str, request: Request) -> TaskRecord:
        """Run a function in the background. Return when the task is durably recorded."""
        check_name(request.name)
        if request.on:
            refuse_elsewhere(request)
            if isinstance(call, CallWithResults):
                raise InvalidRequest(
                    "the results of other tasks cannot be arguments of a task at a place; "
                    "task.result() gives the value to hand over"
                )
        if request.on or request.where == PROCESS:
            process = self._python_process(request.options, request.on)
            setting = self._setting(process.place)
            inputs = self._prepare(setting, Given(call=call), {"the call": call})
            new = self._new(source, request, "python", PROCESS, is_call=True)
            return self._launch_process(new, process, inputs)
        from ipytaskpersist.cells.execution import run_function

        refuse_in_thread(request)
        shell, whole = self._require_shell(), self._results.handed_to(call)
        new = self._new(source, request, "python", THREAD, is_call=True)
        return self._run_in_thread(new, lambda task: run_function(shell, whole, task))

    def _run_in_thread(self, new: NewTask, work: Work) -> TaskRecord:
        threads = self._runners.threads
        starts: list[bool] = []

        def look(connection: Any, key: int, _task_id: str) -> None:
            starts.append(starts_at_once(connection, key))

        with HeldBack():  # a recorded task must get its thread
            worker = threads.reserve()
            try:
                record = self._store.tasks.insert(new, look)
            except BaseException:
                threads.give_back(worker)
                raise
            self._launched(record, provenance.current_directory())

            def on_end() -> None:
                self._runners.notify_end(record.key)

            if all(starts):
                threads.launch(record, work, on_end, worker)
            else:
                threads.give_back(worker)
                record = self._store.tasks.get(record.key) or record
                threads.wait(record, work, on_end)
        return record

    def _launched(self, task: TaskRecord, directory: str) -> None:
        """Start what else a task needs once it is recorded."""
        threads = self._runners.existing_threads
        if threads is not None:
            threads.forget(task.key)  # a new store after a loss assigns the same keys again
        self._git.expect(task.key, directory)
        self._upkeep.soon()

    # Shell commands.

    def _shell_command(self, source: str, request: Request) -> ShellCommand | None:
        """Return the shell command that a source is; None for Python."""
        is_shell, shell_path = request.where == SHELL, request.options.shell_path
        is_cell = not is_shell or (not shell_path and shell_commands.is_for_ipython(source))
        command = None
        if is_cell and request.where != THREAD and self._shell is not None:
            command = shell_commands.of_cell(self._shell, source)
        if command is not None or not is_shell:
            return command
        path = shell_path or self._settings.shell_path or shell_commands.usual_shell()
        if shutil.which(path) is None:
            raise InvalidRequest(f"there is no shell '{path}'; give the path of one that is")
        if os.sep in path:
            path = str(Path(path).absolute())  # not resolved in the directory of the task
        return shell_commands.of_shell(source, path)

    def _launch_command(self, source: str, request: Request, command: ShellCommand) -> TaskRecord:
        refuse(request.options, ("inputs", "outputs"), NEEDS_PYTHON)
        refuse(request.options, ("fresh",), NEEDS_INTERPRETER)
        if not is_passable(source):
            raise InvalidRequest(
                "the command has a character that no program can be given: a null character, or "
                "half of a surrogate pair"
            )
        place = places.named(self._settings.places, request.on)
        process = NewProcess(
            command=command.command,
            script=command.script,
            script_as=command.script_as,
            pty=command.pty or request.options.pty,
            directory=directory_of(request.options, is_here=place is None),
            grace_s=self._settings.cancel_grace_s,
            options=request.options,
            place=place,
        )
        return self._launch_process(self._new(source, request, "shell", PROCESS), process)

    def _launch_process(
        self, new: NewTask, process: NewProcess, inputs: Prepared | None = None
    ) -> TaskRecord:
        about = {"directory": storable(process.directory)}
        if process.place is not None:
            about[PLACE] = process.place["name"]
        new = replace(new, provenance={**new.provenance, **about})
        with HeldBack():  # a recorded task must get its supervisor
            record = self._runners.processes.launch(new, process, inputs)
            # The state of a repository over there is not known here.
            here = provenance.current_directory() if process.place else process.directory
            self._launched(record, here)
        return record

    def _launch_notebook(self, source: str, request: Request, asked: WholeNotebook) -> TaskRecord:
        run = whole_notebooks.run_of(asked)
        grace_s = self._settings.cancel_grace_s
        process = whole_notebooks.process_of(run, request.options, grace_s)
        new = self._new(source, request, "python", PROCESS)
        about = {**new.provenance, WHOLE_NOTEBOOK: storable(run.path)}
        return self._launch_process(replace(new, provenance=about), process)

    # Python in its own process.

    def _launch_python(self, source: str, request: Request) -> TaskRecord:
        from ipytaskpersist.cells.execution import compile_cell
        from ipytaskpersist.cells.program_shell import shell_of_program

        refuse(request.options, ("pty", "shell_path"), NEEDS_SHELL)
        shell = self._shell or shell_of_program()
        cell = compile_cell(shell, source, self._execution_count())  # a mistake shows immediately
        process = self._python_process(request.options, request.on)
        setting = self._setting(process.place)
        inputs = self._inputs(shell, cell.tree, request.options, setting)
        record = self._launch_process(
            self._new(source, request, "python", PROCESS), process, inputs
        )
        self._results.expect(record)
        _say_history(record, variables.of_history(source, shell), OF_PROCESS)
        return record

    def _python_process(self, options: Options, on: str = "") -> NewProcess:
        place = places.named(self._settings.places, on)
        grace_s = self._settings.cancel_grace_s
        if place is not None:
            refuse(options, ("fresh",), "is about this machine; a task at a place is always fresh")
            far_versions.require(place, self._store.directory)
            directory = directory_of(options, is_here=False)
            return NewProcess(far_python.command(), directory, grace_s, options, place=place)
        command = [*python_command("runners.child", "-u"), str(self._store.directory.root)]
        interpreter = self._interpreter(options)
        return NewProcess(command, directory_of(options), grace_s, options, interpreter=interpreter)

    def _interpreter(self, options: Options) -> str | None:
        """Return which interpreter a Python task must have; None to let the supervisor decide."""
        if options.fresh:
            return FRESH_ASKED
        return None if self._settings.warm_processes else FRESH_SETTING

    def _inputs(
        self, shell: InteractiveShell, tree: ast.Module, options: Options, setting: NotebookSetup
    ) -> Prepared:
        """Prepare a cell's inputs: the variables that it reads, and those that its strings name."""
        namespace = shell.user_ns
        used = variables.used(tree) if options.inputs is None else options.inputs
        given = self._given(shell, options.inputs, used)
        mentioned = {}
        if options.inputs is None:
            names = [*mentions.in_strings(tree), *mentions.in_values(given.values())]
            mentioned = self._given(shell, None, [name for name in names if name not in given])
        submodules = mentions.submodules(tree, namespace)
        setting = replace(setting, submodules=submodules)
        modules = self._modules([*mentions.imports(tree), *submodules], given)
        named = given | {module.__name__: module for module in modules}
        if not mentioned:
            return self._prepare(setting, Given(given, modules=modules), named)
        try:
            return self._prepare(setting, Given(given | mentioned, modules=modules), named)
        except InvalidRequest:
            # A string need not be code: a variable named only there does not stop the launch.
            kept = {name: v for name, v in mentioned.items() if self._is_picklable(v)}
            return self._prepare(setting, Given(given | kept, modules=modules), named)

    def _modules(self, names: Sequence[str], given: dict[str, Any]) -> list[ModuleType]:
        """Return modules that only this process finds, needed by the cell or its functions."""
        known = Modules()
        imported = known.not_found(names)
        perhaps = known.not_found(mentions.in_code(given.values()))
        return [*imported, *(m for m in perhaps if m not in imported and self._is_picklable(m))]

    def _setting(self, place: Mapping[str, Any] | None = None) -> NotebookSetup:
        """Return what a process task gets besides variables: here, or at a place."""
        # The path and the environment of another machine are its own.
        apart = [] if place is None else ["sys", "os.environ"]
        setting = setting_of(self._shell, [*self._settings.settings_apart, *apart])
        magics = notebook_magics.of_notebook(self._shell, self._namespace())
        return replace(
            setting,
            magics=magics,
            large_result_bytes=self._settings.large_result_bytes,
            is_durable=place is None and self._store.database.synchronous == "full",
        )

    def _is_picklable(self, value: Any) -> bool:
        return self._refusal(value) is None

    def _refusal(self, value: Any) -> BaseException | None:
        """Return what pickling a value raises; None when it can be pickled."""
        try:
            require_picklable(value, self._namespace())
        except BaseException as error:  # pickling may raise anything
            if is_from_outside(error):
                raise
            return error
        return None

    @staticmethod
    def _given(
        shell: InteractiveShell, asked: Sequence[str] | None, used: Sequence[str]
    ) -> dict[str, Any]:
        """Return the variables to copy."""
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
        shell = self._shell
        return vars(sys.modules["__main__"]) if shell is None else shell.user_ns

    def _prepare(self, setting: NotebookSetup, given: Given, named: dict[str, Any]) -> Prepared:
        """Pickle a task's inputs. Raise `InvalidRequest` if they cannot be pickled."""
        about = {SETTING: setting, GIVEN: given.without_values()}
        try:
            return self._payloads.prepare_inputs(about, given.variables, self._namespace())
        except Unpicklable as error:
            kept = {k: v for k, v in setting.libraries.items() if self._is_picklable(v)}
            if kept.keys() == setting.libraries.keys():
                raise self._unpicklable(named, error.cause) from error.cause
        missing = ", ".join(sorted(setting.libraries.keys() - kept.keys()))
        print(
            f"the task begins without the notebook's settings of {missing}: they cannot be pickled",
            file=sys.stderr,
        )
        return self._prepare(replace(setting, libraries=kept), given, named)

    def _unpicklable(self, named: dict[str, Any], error: BaseException) -> InvalidRequest:
        """Return the error that names each variable that cannot be copied, and why."""
        refusals = {name: self._refusal(value) for name, value in named.items()}
        bad = {
            name: self._in_words(name, named[name], why)
            for name, why in refusals.items()
            if why is not None
        }
        good = ",".join(name for name in named if name not in bad)
        what = "; ".join(bad.values()) or describe(error)
        return InvalidRequest(
            f"cannot be handed to another process: {what}. "
            f"--in {good or chr(39) * 2} leaves it out, --thread needs no handing over"
        )

    def _in_words(self, name: str, value: Any, why: BaseException) -> str:
        """Return what cannot be copied: the variable, or what it holds, with its class and why."""
        path, part = unpicklable_part(name, value, self._refusal)
        return f"{path} ({class_name(part)}): {describe(why)}"

    # Running again.

    def rerun(self, task: TaskRecord, *, once: bool = False, anyway: bool = False) -> TaskRecord:
        """Run an ended task's source again with the same options, as a new task.

        With `once`, raise `AlreadyRunAgain` if it has been run again before. Unless `anyway`, raise
        `NamesMissing` for a thread task that would miss variables in this kernel.
        """
        again = Again(task, once)
        if task.runner == THREAD:
            if task.is_call:
                raise InvalidRequest(
                    f"task {task.label} was a call of a function in a thread, whose arguments "
                    "were not kept; submit it again"
                )
            if not anyway:
                self._refuse_without_names(task, "resume" if once else "rerun")
            reconciling.end_left(task)  # or both would run
            return self._launch_thread(task.source, Request(task.name), again)
        return self._rerun_process(task, again)

    def _refuse_without_names(self, task: TaskRecord, verb: str) -> None:
        missing = missing_names.missing(self._require_shell(), self._store, task)
        if missing:
            raise NamesMissing(
                f"{missing.in_words(task)}; %bg_{verb} {task.number} --anyway runs it all the same"
            )

    def _rerun_process(self, task: TaskRecord, again: Again) -> TaskRecord:
        if task.is_imported:
            # Its command and environment may differ from what its source suggests.
            raise InvalidRequest(
                f"task {task.label} was imported, and what a file says is not run as a process; "
                f"%bg_show {task.number} shows its source, for a cell of your own"
            )
        store = self._archives.store_of(task)
        before, inputs = store.processes.get(task.key), None
        if before is None:
            raise InvalidRequest(f"what task {task.label} ran is not known any more")
        if before.place is None and not Path(before.directory).is_dir():
            raise InvalidRequest(
                f"the directory of task {task.label}, {before.directory}, does not exist any more"
            )
        process = NewProcess(
            command=before.command,
            directory=before.directory,
            grace_s=self._settings.cancel_grace_s,
            options=_with_secrets_of_now(task, before.options),
            script=before.script,
            script_as=before.script_as,
            pty=before.pty,
            place=before.place,
        )
        is_notebook = task.is_whole_notebook
        if is_notebook:
            process = whole_notebooks.again(task, before, process, resume=again.once)
        elif task.kind == "python" and before.place is not None:
            inputs = self._inputs_again(task)
            process = replace(process, command=far_python.command())
        elif task.kind == "python":
            fresh = before.interpreter == FRESH_ASKED
            usual = self._python_process(Options(fresh=fresh))
            process = replace(process, command=usual.command, interpreter=usual.interpreter)
            inputs = self._inputs_again(task)
        new = self._new(
            task.source, Request(task.name), task.kind, PROCESS, again, is_call=task.is_call
        )
        record = self._launch_process(new, process, inputs)
        if task.kind == "python" and not is_notebook:
            self._results.expect(record)
        return record

    def _inputs_again(self, task: TaskRecord) -> Prepared:
        """Copy what a task was given."""
        first = self._archives.with_inputs(task)
        if first is not None:
            given = self._archives.store_of(first).results.get(first.key, INPUTS)
        if first is None or given is None:
            raise InvalidRequest(
                f"what task {task.label} was given was kept with task {task.inputs_of}, which was "
                f"deleted; %bg_show {task.number} shows its source, for a cell of your own"
            )
        return self._payloads.copy(first, given)

    # Common to all tasks.

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
        session = self._session.record()
        self._store.require_writable()
        goes_on = going_on.goes_on(self._store, again.task) if again else GoesOn()
        schedule = None  # a task that is run again runs once
        before: dict[str, Any] = {"rerun_of": again.task.id} if again else {}
        if again and again.task.is_whole_notebook:
            before[WHOLE_NOTEBOOK] = again.task.provenance[WHOLE_NOTEBOOK]
        if again:
            admission, retries = self._queueing.again(again.task), _retries_again(again.task)
        else:
            admission = self._queueing.admission(request, session.notebook_key)
            retries = within_machine(request.retries, admission.demands)
            if request.schedule is not None:
                schedule, due_at = begun(request.schedule, admission.due_at)
                admission = replace(admission, due_at=due_at)
        before |= self._cell_runs.make_room(request)
        return NewTask(
            notebook_key=session.notebook_key,
            session_id=session.id,
            name=request.name,
            kind=kind,
            runner=runner,
            source=source,
            # What is run again from elsewhere is shown by the cell that launched it first.
            cell_id=self._cell_id() or (again.task.cell_id if again else None),
            execution_count=self._execution_count(),
            is_call=is_call,
            # An archived task is known only by its id, which `provenance` keeps.
            rerun_of=again.task.key if again and not again.task.archive else None,
            once=again.once if again else False,
            tags=again.task.tags if again else request.tags,
            unique_tag=launch_keys.tag_of(request.key) if request.key else "",
            max_output_bytes=self._settings.max_output_bytes,
            notify=self._places(request),
            provenance={**provenance.of_launch(), **before},
            admission=admission,
            checkpoint_place=goes_on.place,
            checkpoint_at=goes_on.at,
            retries=retries,
            schedule=schedule,
        )

    def _places(self, request: Request) -> tuple[str, ...]:
        """Return the notification places of a task, as the store keeps them."""
        settings = self._settings
        return targets.wanted(
            request.notify, request.notify_to, settings.notify, settings.notify_after_s
        ).kept()

    def _require_shell(self) -> InteractiveShell:
        if self._shell is None:
            raise InvalidRequest(
                "Python runs in a thread of IPython or a notebook only; start one and type "
                "%load_ext ipytaskpersist, or run it in a process of its own: process=True"
            )
        return self._shell

    def _execution_count(self) -> int:
        # IPython 9 counts at the beginning of a cell, IPython 8 at its end; the hook knows.
        hook: Any = self._shell.displayhook if self._shell else None
        return int(hook.prompt_count) if hook is not None else 0

    def _cell_id(self) -> str | None:
        get_parent = getattr(self._shell, "get_parent", None)
        parent = get_parent() if get_parent is not None else None
        cell_id = ((parent or {}).get("metadata") or {}).get("cellId")
        return str(cell_id) if cell_id else None


def _retries_again(task: TaskRecord) -> Retries | None:
    """Return the rule of a task that is run again: the new task is a first try."""
    return None if task.retries is None else replace(task.retries, environment_of=None)


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
    """Restore the values that were not kept. Raise `InvalidRequest` if one is missing."""
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
