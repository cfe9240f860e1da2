"""Start programs of our own that nobody waits for: they have nothing of the process that does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextvars import Context
from pathlib import Path

from ipytaskpersist.paths import make_private, open_private
from ipytaskpersist.processes import MARK

ROOT = Path(__file__).parent.parent.parent
NO_TASK = ""
"""The mark of what is nobody's child, not even when a task starts it."""


def python_command(module: str, *flags: str) -> list[str]:
    """The command that runs a module's ``main`` in a fresh interpreter.

    The package is found also where the notebook has changed ``sys.path`` to find it, and nothing
    is imported from the working directory by accident.
    """
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); from ipytaskpersist.{module} import main; "
        "main()"
    )
    own_flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *own_flags, *flags, "-P", "-c", code]


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
                env={**environment, MARK: NO_TASK},
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
