"""Recognise cells that are shell commands, and build the command of each."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

SCRIPT_MAGIC = re.compile(r"\s*%%(bash|sh|script)\b([^\n]*)(?:\n(.*))?\Z", re.DOTALL)
INTO_THE_NOTEBOOK = re.compile(r"(?:^|\s)--(?:bg|out|err|proc|no-raise-error)\b")
"""Flags by which a script accesses the notebook, so that it cannot run without it."""
LONGEST_ARGUMENT_BYTES = 100_000
"""Linux limits one argument of a program to 128 KiB (MAX_ARG_STRLEN)."""


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """A program, its arguments, and its script."""

    command: Sequence[str]
    script: str | None = None
    script_as: str | None = None
    """``stdin``, or ``file`` if the script's path is passed as the last argument."""
    pty: bool = False


def of_shell(source: str, shell_path: str) -> ShellCommand:
    """Return the command that runs the source in a shell."""
    if len(source.encode("utf-8", "surrogatepass")) <= LONGEST_ARGUMENT_BYTES:
        return ShellCommand([shell_path, "-c", source])
    return ShellCommand([shell_path], source, "file")


def usual_shell() -> str:
    """Return the shell in which people type commands: bash if there is one."""
    return shutil.which("bash") or "/bin/sh"


def is_for_ipython(source: str) -> bool:
    """Return whether a source is a shell cell that only IPython understands: ``%%bash``, ``!make``.

    ``! make`` with a space is a shell's own negation.
    """
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    has_only_commands = all(re.match(r"![^\s!]", line) for line in lines)
    return bool(SCRIPT_MAGIC.match(source)) or has_only_commands


def of_cell(shell: InteractiveShell, source: str) -> ShellCommand | None:
    """Return the command of a shell cell, or None for any other cell.

    A shell cell begins with ``%%bash``, ``%%sh`` or ``%%script X``, or consists of ``!`` lines.
    """
    found = SCRIPT_MAGIC.match(source)
    if found is not None:
        return _of_magic(shell, *found.groups())
    if "!" not in source:
        return None
    commands = _system_commands(shell, source)
    return _of_lines(shell, commands) if commands else None


def _of_magic(
    shell: InteractiveShell, magic: str, line: str, body: str | None
) -> ShellCommand | None:
    if INTO_THE_NOTEBOOK.search(line):
        return None
    arguments = shlex.split(shell.var_expand(line, 1))
    if magic == "script":
        return ShellCommand(arguments, body or "", "stdin") if arguments else None
    if arguments:
        return ShellCommand([magic, *arguments], body or "", "stdin")
    return of_shell(body or "", magic)


def _system_commands(shell: InteractiveShell, source: str) -> list[str]:
    """Return the commands of a cell that consists of ``!`` lines. Empty for any other cell."""
    try:
        statements = ast.parse(shell.transform_cell(source)).body
    except (SyntaxError, ValueError):
        return []
    commands = [_system_command(statement) for statement in statements]
    return [] if None in commands else [command for command in commands if command is not None]


def _system_command(statement: ast.stmt) -> str | None:
    """Return the command of the statement into which IPython transforms a ``!`` line."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "get_ipython().system":
        return None
    (argument,) = call.args
    value = argument.value if isinstance(argument, ast.Constant) else None
    return value if isinstance(value, str) else None


def _of_lines(shell: InteractiveShell, commands: list[str]) -> ShellCommand:
    """Return a command that runs each ``!`` line in its own shell, in a terminal, like IPython."""
    path = shell_of_ipython()
    expanded = [shell.var_expand(command, 1) for command in commands]
    if len(expanded) == 1:
        return ShellCommand([path, "-c", expanded[0]], pty=True)
    script = "\n".join(f"{path} -c {shlex.quote(command)}" for command in expanded)
    return ShellCommand([path, "-c", script], pty=True)


def shell_of_ipython() -> str:
    """Return the shell in which IPython runs ``!`` lines: the user's own, if it is found."""
    return shutil.which(os.environ.get("SHELL", "sh")) or "/bin/sh"
