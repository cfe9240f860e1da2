"""Start programs of our own that nobody waits for: they have nothing of the process that does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextvars import Context
from pathlib import Path

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.paths import make_private, open_private
from ipytaskpersist.processes import MARK

ROOT = Path(__file__).parent.parent.parent
INSPECT = "PYTHONINSPECT"
"""With this in its environment an interpreter goes on after its work, and exits with another
status. It is read when an interpreter starts."""
HIDDEN_INSPECT = "IPYTASKPERSIST_INSPECT"
"""Has its value until a cell begins."""
NO_TASK = ""
"""The mark of what is nobody's child, not even when a task starts it."""


def python_command(module: str, *flags: str) -> list[str]:
    """The command that runs a module's ``main`` in a fresh interpreter.

    The package is found also where the notebook has changed ``sys.path`` to find it, and nothing
    is imported from the working directory by accident. Raises `InvalidRequest` where there is no
    interpreter to be found.
    """
    # Collecting garbage while modules are imported takes time, and finds none.
    code = (
        f"import gc, sys; gc.disable(); sys.path.append({str(ROOT)!r}); "
        f"from ipytaskpersist.{module} import main; gc.enable(); main()"
    )
    own_flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [interpreter(), *own_flags, *flags, "-P", "-c", code]


def interpreter() -> str:
    """The program that runs Python as here; ``sys.executable`` is empty in some that embed it.

    Raises `InvalidRequest` where none is found.
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
    """The environment of a program of our own: it is no part of a task, and ends with its work."""
    kept = {name: value for name, value in environment.items() if name != INSPECT}
    return {**kept, MARK: NO_TASK}


def hide_inspection(environment: dict[str, str]) -> None:
    """Have the interpreter of a Python task end with its work. `show_inspection` undoes it there.

    What the cell itself starts has the variable as in the notebook.
    """
    if INSPECT in environment:
        environment[HIDDEN_INSPECT] = environment.pop(INSPECT)


def show_inspection() -> None:
    """Undo, in the process of a Python task, what `hide_inspection` has done."""
    if HIDDEN_INSPECT in os.environ:
        os.environ[INSPECT] = os.environ.pop(HIDDEN_INSPECT)


def start_detached(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own. What it prints is added to a log.

    Raises `OSError` when the system refuses.
    """
    make_private(log.parent)
    descriptor = open_private(log, os.O_WRONLY | os.O_APPEND)
    try:
        # In a context of its own: what a task starts so is none of its children.
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
    """Remove the log of a program that had nothing to say."""
    try:
        if not log.stat().st_size:
            log.unlink()
    except OSError:
        pass  # another one has removed it
