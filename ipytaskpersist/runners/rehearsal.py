"""Do what the start of a task does before there is a task, so that its own start is short.

A fork tells what a start imports besides this package: IPython imports much of itself only when a
shell is created, and which modules depends on its version. The server creates a shell for its
tasks. And a process that waits for a task does once more what it will do then, and undoes it.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from traitlets.config import Config

from ipytaskpersist.base import redaction
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.cells import execution, notebook_magics
from ipytaskpersist.cells.install import install_in_process
from ipytaskpersist.isolation import carried_settings, event_loops, random_states
from ipytaskpersist.runners import child, prepared_shell, shown_environment
from ipytaskpersist.runners.bystanders import Bystanders
from ipytaskpersist.runners.channel import unread_bytes
from ipytaskpersist.runners.given import NotebookSetup
from ipytaskpersist.runners.task_rows import TaskRows
from ipytaskpersist.values.payloads import Payloads

CELL = "rehearsed = 1\nrehearsed\n"


def import_what_a_start_does(directory: StateDirectory) -> None:
    """Import in this process what the start of a task imports."""
    for name in _imported_by_start(directory):
        if name not in sys.modules:
            with suppress(Exception):  # made by another module's import, and not found by name
                import_module(name)


def prepare_shell(root: Path, rows: TaskRows) -> None:
    """Create a shell with the settings of a task, for tasks that have the same.

    Not if that prints something, which every task must. Raises what the task's inputs raise when
    they are loaded.
    """
    main, printed = sys.modules["__main__"], unread_bytes(1)
    inputs = Payloads(StateDirectory(root)).inputs(rows.inputs_of, rows.inputs, {})
    setting = child.load_setting(inputs.values)
    try:
        shell = child.make_shell(setting, type(sys)("__main__"))
    finally:
        sys.modules["__main__"] = main
    install_in_process(shell).undo()  # keeps the code that it has made for foreign functions
    _prepare_looks(shell, setting)
    if unread_bytes(1) == printed:
        prepared_shell.keep(shell, setting.config, getattr(setting, "profile", ""))
    else:
        type(shell).clear_instance()


def _prepare_looks(shell: Any, setting: NotebookSetup) -> None:
    """Do once what each task does to look at its shell: it is remembered, and changes nothing."""
    redaction.use(setting.secret_names)
    carried_settings.of_notebook()
    execution.compile_cell(shell, CELL, 1)
    notebook_magics.find(setting.magics)


def rehearse(is_wanted: Callable[[], bool]) -> None:
    """Do in a forked process what the start of its task will do, and undo it.

    A forked process shares its memory with the server, and the system copies each page to which it
    writes, if only a reference count. That takes longer than the work itself, so let it happen
    before there is a task. Ends early when `is_wanted` tells that one has come.
    """
    shell = prepared_shell.kept()
    if shell is None:
        return
    for step in (_show_environment, _patch, _look_around, _compile):
        if is_wanted():
            return
        with suppress(Exception):  # the task's own start will say so
            step(shell)


def _show_environment(_shell: Any) -> None:
    shown_environment.show(os.environb)


def _patch(shell: Any) -> None:
    patches = install_in_process(shell)
    try:
        random_states.install(patches)
        carried_settings.OfProcess({}, patches)
    finally:
        patches.undo()


def _look_around(_shell: Any) -> None:
    carried_settings.of_notebook()
    Bystanders(ast.parse(CELL), {})


def _compile(shell: Any) -> None:
    execution.compile_cell(shell, CELL, 1)
    event_loops.new_loop().close()


def _imported_by_start(directory: StateDirectory) -> list[str]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _be_silent()
            _start(directory)
            with open(write, "w", encoding="utf-8") as target:
                json.dump(list(sys.modules), target)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as source:
        text = source.read()
    os.waitpid(pid, 0)
    names: list[str] = json.loads(text or "[]")
    return names


def _be_silent() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)


def _start(directory: StateDirectory) -> None:
    """Do what `child` does before and after a cell."""
    module = type(sys)("__main__")
    setting = NotebookSetup(list(sys.path), Config(), "last_expr", 0)
    shell = child.make_shell(setting, module)
    install_in_process(shell)
    execution.be_ready_for_errors()
    Payloads(directory).be_ready()
    execution.compile_cell(shell, CELL, 1)
    child.show_figures_inline()
