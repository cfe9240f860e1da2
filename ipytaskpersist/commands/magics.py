"""``%%background`` and the ``%bg_`` family, built from the commands.

The commands are imported when the first one is typed, so that loading the extension is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import no_var_expand

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.base.vocabulary import VERBS
from ipytaskpersist.commands import command_line
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.running.running_task import FOREGROUND
from ipytaskpersist.session.manager import BackgroundTasks

if TYPE_CHECKING:
    import click
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.commands.pacing import Pace
    from ipytaskpersist.commands.surfaces import IPythonSurface
    from ipytaskpersist.display.live_cards import Ask, Cards, Pages
    from ipytaskpersist.session.requests import Request


class Magic:
    """One magic. Its help is that of its command."""

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name = name
        self._call = call

    def __call__(self, *arguments: str) -> Any:
        return self._call(*arguments)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        import click

        command = command_of(self._name)
        return command.get_help(click.Context(command, info_name=f"%{self._name}"))


def command_of(magic_name: str) -> click.Command:
    """Return the command that a magic runs."""
    import click

    from ipytaskpersist.commands.definition import verbs

    if magic_name == "background":
        from ipytaskpersist.commands.launching import background

        return background
    if magic_name == "bg":
        return verbs
    command = verbs.get_command(click.Context(verbs), magic_name.removeprefix("bg_"))
    assert command is not None, "only verbs are registered"
    return command


class BackgroundMagics:
    """The magics of one shell."""

    def __init__(self, shell: InteractiveShell, manager: BackgroundTasks) -> None:
        self._shell = shell
        self._manager = manager
        self._in_notebook = hasattr(shell, "kernel")
        self._cards: Cards | None = None
        self._pace: Pace | None = None
        self._names: list[tuple[str, str]] = []

    def register(self) -> None:
        """Register the magics with the shell."""
        self._add("cell", "background", self._background_cell)
        line_magic = self._add("line", "background", self._background_line)
        no_var_expand(line_magic)  # its braces are Python's
        for name in ("bg", *(f"bg_{verb}" for verb in VERBS)):
            self._add("line", name, self._run(name))

    def _add(self, kind: str, name: str, call: Callable[..., Any]) -> Any:
        magic: Any = Magic(name, call)
        self._shell.register_magic_function(magic, kind, name)
        self._names.append((kind, name))
        return magic

    def unregister(self) -> None:
        """Remove the magics."""
        if self._cards is not None:
            self._cards.close()
        for kind, name in self._names:
            self._shell.magics_manager.magics[kind].pop(name, None)

    def _run(self, name: str) -> Callable[[str], Any]:
        def run_line(line: str) -> Any:
            from ipytaskpersist.commands.definition import run

            with usage_errors():
                return run(_split(line), self._surface(), command_of(name))

        return run_line

    def _surface(self) -> IPythonSurface:
        from ipytaskpersist.commands.pacing import Pace
        from ipytaskpersist.commands.surfaces import IPythonSurface, NotebookSurface

        if self._in_notebook:
            self._pace = self._pace or Pace()
            return NotebookSurface(self._manager, self._shell, self._show_card, self._pace)
        return IPythonSurface(self._manager, self._shell)

    def _show_card(self, task: TaskRecord) -> None:
        if self._cards is None:
            from ipytaskpersist.display.live_cards import Cards

            self._cards = Cards(self._shell, self._manager, self._reach_pages)
        self._cards.show(task)

    def _reach_pages(self, ask: Ask) -> Pages | None:
        from ipytaskpersist.panel.reach import reach_pages

        return reach_pages(self._manager, self._shell, ask)

    def _background_cell(self, line: str, cell: str) -> None:
        with usage_errors():
            from ipytaskpersist.commands import launch_line

            command = command_of("background")
            launch_line.refuse_code(line, command)
            with command.make_context("%%background", _split(line)) as context:
                self._launch(cell, replace(command.invoke(context), is_whole_cell=True))

    def _background_line(self, line: str) -> None:
        with usage_errors():
            from ipytaskpersist.commands import launch_line

            command = command_of("background")
            options, code = launch_line.options_and_code(line, command)
            with command.make_context("%background", options) as context:
                request = command.invoke(context)
                if request.notebook is None:
                    launch_line.require_code(code)
                self._launch(code, request)

    def _launch(self, source: str, request: Request) -> None:
        launched = self._manager.launcher.launch(source, request)
        # The rest of this cell is not the user's code.
        FOREGROUND.end_cell()
        self._surface().come_to(launched, source)


def _split(line: str) -> list[str]:
    try:
        return command_line.words(line)
    except ValueError as error:
        raise UsageError(f"{error} in: {line}") from None


@contextmanager
def usage_errors() -> Iterator[None]:
    """Report errors as one line on stderr.

    IPython does so for its own `UsageError`, but shows a traceback for any subclass of it.
    """
    import click

    try:
        yield
    except (click.exceptions.Exit, SystemExit):
        pass  # --help has been shown
    except click.UsageError as error:
        message = error.format_message()
        if error.ctx and not message.endswith("?"):
            message = f"{message.rstrip('.')}; see {error.ctx.info_name} --help"
        raise UsageError(legible_lines(message)) from None
    except BackgroundError as error:
        raise UsageError(legible_lines(str(error))) from None
    except OSError as error:
        if not disk_errors.has_words(error):
            raise
        raise UsageError(legible_lines(str(disk_errors.refusal(error)))) from None
