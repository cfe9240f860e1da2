"""Receive the messages of a page while a cell runs, without disturbing the cell."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def hear_at_once(comm: Any, take: Any) -> None:
    """Handle messages of a comm where they arrive, without disturbing the running cell.

    ipykernel 7.4.0 sends a page's messages to the subshell that opened the comm, which is the main
    one: they would wait for the running cell. And a comm announces each message as if a cell began
    and ended, which shows, among others, the running cell's unfinished figures.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, default: default

    def handle(message: Any) -> None:
        try:
            take(message)
        finally:
            FOREGROUND_OUTPUT.restore()

    comm.handle_msg = handle


class ForegroundOutput:
    """Directs output of the foreground's threads to the latest cell, not to a page's message.

    ipykernel 7 uses the latest message of any subshell for threads that it does not know.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def watch(self, shell: InteractiveShell) -> None:
        """Note with each cell from now on where its threads print."""
        self._note(shell)
        if not any(call == self.note for call in shell.events.callbacks["pre_run_cell"]):
            shell.events.register("pre_run_cell", self.note)

    def unwatch(self, shell: InteractiveShell) -> None:
        """Stop following cells."""
        self._kept = []
        with suppress(ValueError):
            shell.events.unregister("pre_run_cell", self.note)

    def note(self, _info: Any = None) -> None:
        """Note the output of the cell that begins."""
        from IPython.core.getipython import get_ipython

        self._note(get_ipython())

    def _note(self, shell: Any) -> None:
        places = (sys.stdout, sys.stderr, shell, shell.displayhook, shell.display_pub)
        self._kept = [
            (place, place._parent_header_global)
            for place in places
            if hasattr(place, "_parent_header_global")
        ]

    def restore(self) -> None:
        """Restore what a message has changed."""
        for place, parent in self._kept:
            place._parent_header_global = parent


FOREGROUND_OUTPUT = ForegroundOutput()
