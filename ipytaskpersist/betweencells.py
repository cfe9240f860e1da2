"""Call a function before each cell of the foreground, but never in the middle of one.

A cell may run cells itself, as ``%%capture`` does, and IPython announces those as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ipytaskpersist.patches import Patches


def call_between_cells(shell: InteractiveShell, patches: Patches, call: Callable[[], None]) -> None:
    """Call it before each cell that no other cell runs, until the patches are undone."""
    running = 0

    def begin_cell(*_event: Any) -> None:
        nonlocal running
        running += 1
        if running == 1:
            call()

    def end_cell(*_event: Any) -> None:
        nonlocal running
        # The cell that registers this, and one without any code, end without a beginning.
        running = max(0, running - 1)

    for event, note in (("pre_run_cell", begin_cell), ("post_run_cell", end_cell)):
        shell.events.register(event, note)
        patches.on_undo(partial(shell.events.unregister, event, note))
