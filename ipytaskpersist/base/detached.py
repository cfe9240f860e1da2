"""Start programs of our own in the background, independent of the process that starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextvars import Context
from pathlib import Path

from ipytaskpersist.base.private_files import make_private, open_private
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.errors import InvalidRequest

ROOT = Path(__file__).parent.parent.parent
INSPECT = "PYTHONINSPECT"
"""With this variable set, an interpreter continues after its program, and exits with another
status. It is read when an interpreter starts."""
HIDDEN_INSPECT = "IPYTASKPERSIST_INSPECT"
"""Holds its value until a cell begins."""
NO_TASK = ""
"""Mark of a process that belongs to no task, even if a task starts it."""


def python_command(module: str, *flags: str) -> list[str]:
    """Return the command that runs a module's ``main`` in a fresh interpreter.

    The package is found even if the notebook changed ``sys.path`` to find it, and nothing is
    imported from the working directory by accident. Raises `InvalidRequest` when no interpreter is
    found.
    """
    own_flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [interpreter(), *own_flags, *flags, "-P", "-c", python_code(module)]


def python_code(module: str) -> str:
    """Return the program text that runs a module's ``main``."""
    # Garbage collection during imports takes time and finds nothing.
    return (
        f"import gc, sys; gc.disable(); sys.path.append({str(ROOT)!r}); "
        f"from ipytaskpersist.{module} import main; gc.enable(); main()"
    )


def interpreter() -> str:
    """Return the running Python's program; ``sys.executable`` is empty in some embedded ones.

    Raises `InvalidRequest` when none is found.
    """
    if sys.executable:
        return sys.executable
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in (version, "python3", "python"):
        program = Path(sys.exec_prefix, "bin", name)
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    raise InvalidRequest(
        "this Python does not say which program runs it (sys.executable is empty), so no process "
        "can be started; set sys.executable to the path of one, or run the cell with --thread"
    )


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program of our own: it is in no task, and exits when done."""
    kept = {name: value for name, value in environment.items() if name != INSPECT}
    return {**kept, MARK: NO_TASK}


def hide_inspection(environment: dict[str, str]) -> None:
    """Make the interpreter of a Python task exit when done. `show_inspection` undoes it there.

    Whatever the cell itself starts has the variable as in the notebook.
    """
    if INSPECT in environment:
        environment[HIDDEN_INSPECT] = environment.pop(INSPECT)


def show_inspection() -> None:
    """Undo `hide_inspection`, in the process of a Python task."""
    if HIDDEN_INSPECT in os.environ:
        os.environ[INSPECT] = os.environ.pop(HIDDEN_INSPECT)


def start_detached(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own. Append its output to a log.

    Raises `OSError` when the system refuses.
    """
    make_private(log.parent)
    descriptor = open_private(log, os.O_WRONLY | os.O_APPEND)
    try:
        # In a context of its own: a program started from a task is not one of its children.
        return Context().run(
            lambda: subprocess.Popen(
                command,
                cwd="/",
                env=own_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        )
    finally:
        os.close(descriptor)


def remove_empty(log: Path) -> None:
    """Remove the log of a program that printed nothing."""
    try:
        if not log.stat().st_size:
            log.unlink()
    except OSError:
        pass  # another process has removed it
