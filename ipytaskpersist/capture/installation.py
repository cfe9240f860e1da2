"""Route what code prints and displays to its task.

Replacing ``sys.stdout`` while a task runs would also capture what the foreground prints meanwhile.
Instead, the shared stream objects determine with each write which task the writing context belongs
to. So handlers that have held such an object since before the task began are routed too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ipytaskpersist.base.cell_events import call_between_cells
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.capture import (
    displays,
    interaction,
    output_widgets,
    redirection,
    reply_payloads,
    streams,
)
from ipytaskpersist.capture.displays import publish_for_task, show_result
from ipytaskpersist.running.running_task import FOREGROUND

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["install", "publish_for_task", "show_result"]


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Route output from now on, until the patches are undone."""
    streams.install(shell, patches)
    redirection.install(patches)
    displays.install(shell, patches)
    interaction.install(shell, patches)
    reply_payloads.install(shell, patches)
    output_widgets.install(shell, patches)
    route_present = partial(streams.route_present, patches)
    shell.events.register("pre_run_cell", route_present)
    patches.on_undo(partial(shell.events.unregister, "pre_run_cell", route_present))
    call_between_cells(shell, patches.on_undo, FOREGROUND.begin_cell, FOREGROUND.end_cell)
