"""``%%background`` and the ``%bg_`` family, made from the commands."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from IPython.core.error import UsageError

from ipytaskpersist import views
from ipytaskpersist.commands import run, verbs
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.surfaces import IPythonSurface, NotebookSurface

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.cards import Cards


@click.command("background")
@click.argument("name", nargs=-1)
def background_options(name: tuple[str, ...]) -> str:
    """Run this cell in the background: %%background [NAME], and the code below it.

    The cell runs in a thread that shares the notebook's variables. %background EXPRESSION runs
    one line. The name is optional; %bg_list, %bg_output and the others take it or the number.
    """
    return " ".join(name)


class BackgroundMagics:
    """The magics of one shell."""

    def __init__(self, shell: InteractiveShell, manager: BackgroundTasks) -> None:
        self._shell = shell
        self._manager = manager
        self._in_notebook = hasattr(shell, "kernel")
        surface = NotebookSurface if self._in_notebook else IPythonSurface
        self._surface = surface(manager, shell)
        self._cards: Cards | None = None
        self._names: list[tuple[str, str]] = []

    def register(self) -> None:
        """Make the magics known to the shell."""
        self._add("cell", "background", self._background_cell, background_options)
        self._add("line", "background", self._background_line, background_options)
        self._add("line", "bg", self._line_magic(verbs), verbs)
        for name, command in verbs.commands.items():
            self._add("line", f"bg_{name}", self._line_magic(command), command)

    def _add(self, kind: str, name: str, function: Any, command: click.Command) -> None:
        function.__doc__ = _help(name, command)
        self._shell.register_magic_function(function, kind, name)
        self._names.append((kind, name))

    def unregister(self) -> None:
        """Take the magics away."""
        for kind, name in self._names:
            self._shell.magics_manager.magics[kind].pop(name, None)

    def _line_magic(self, command: click.Command) -> Callable[[str], Any]:
        def magic(line: str) -> Any:
            with _usage_errors(line) as arguments:
                return run(arguments, self._surface, command)

        return magic

    @property
    def _background_cell(self) -> Callable[[str, str], None]:
        def background(line: str, cell: str) -> None:
            with _usage_errors(line) as arguments:
                context = background_options.make_context("%%background", arguments)
                self._launch(cell, background_options.invoke(context))

        return background

    @property
    def _background_line(self) -> Callable[[str], None]:
        def background(line: str) -> None:
            if line.strip() in ("-h", "--help"):
                print(background.__doc__)
                return
            with _usage_errors(""):
                self._launch(line, "")

        return background

    def _launch(self, source: str, name: str) -> None:
        task = self._manager.launch_cell(source, name)
        if not self._in_notebook:
            print(views.card_text(task, views.utc_now()))
            return
        if self._cards is None:
            from ipytaskpersist.cards import Cards

            self._cards = Cards(self._shell, self._manager)
        self._cards.show(task)


def _help(name: str, command: click.Command) -> str:
    return command.get_help(click.Context(command, info_name=f"%{name}"))


class _usage_errors:  # noqa: N801 - reads as a statement
    """Splits a magic's line, and makes what goes wrong one line on stderr.

    IPython shows its own `UsageError` so, but a traceback for any subclass of it.
    """

    def __init__(self, line: str) -> None:
        self._line = line

    def __enter__(self) -> list[str]:
        try:
            return shlex.split(self._line)
        except ValueError as error:
            raise UsageError(f"{error} in: {self._line}") from None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, click.exceptions.Exit):
            return True  # --help has been shown
        if isinstance(error, click.ClickException):
            raise UsageError(error.format_message()) from None
        if isinstance(error, BackgroundError):
            raise UsageError(str(error)) from None
        return False
