"""Call functions before and after each foreground cell, but never in the middle of one.

A cell may run cells itself, as ``%%capture`` does, and IPython announces those, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

Call = Callable[[Any], None]


def _nothing(_event: Any) -> None:
    pass


def call_between_cells(
    shell: InteractiveShell,
    on_undo: Callable[[Callable[[], None]], None],
    before: Call,
    after: Call = _nothing,
) -> None:
    """Call `before` and `after` around each cell that no other cell runs.

    `on_undo` receives the function that reverts this.
    """
    running = 0

    def begin_cell(event: Any = None) -> None:
        nonlocal running
        running += 1
        if running == 1:
            before(event)

    def end_cell(event: Any = None) -> None:
        nonlocal running
        # The cell that registers this, and a cell without code, end without a beginning.
        running = max(0, running - 1)
        if running == 0:
            after(event)

    for name, note in (("pre_run_cell", begin_cell), ("post_run_cell", end_cell)):
        shell.events.register(name, note)
        on_undo(partial(shell.events.unregister, name, note))
