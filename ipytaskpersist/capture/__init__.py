"""Route what code prints and displays to the task to which it belongs.

Nothing is captured by replacing ``sys.stdout`` while a task runs: that would catch what the
foreground prints meanwhile. Instead the objects that everybody prints to learn to ask, with each
write, which task the writing context belongs to. Handlers that hold such an object since before
the task began are therefore routed too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ipytaskpersist.active import FOREGROUND
from ipytaskpersist.betweencells import call_between_cells
from ipytaskpersist.capture import displays, interaction, payloads, redirection, streams, widgets
from ipytaskpersist.capture.displays import publish_for_task, show_result
from ipytaskpersist.patches import Patches

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["install", "publish_for_task", "show_result"]


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Route from now on, until the patches are undone."""
    streams.install(shell, patches)
    redirection.install(patches)
    displays.install(shell, patches)
    interaction.install(shell, patches)
    payloads.install(shell, patches)
    widgets.install(shell, patches)
    route_present = partial(streams.route_present, patches)
    shell.events.register("pre_run_cell", route_present)
    patches.on_undo(partial(shell.events.unregister, "pre_run_cell", route_present))
    call_between_cells(shell, patches.on_undo, FOREGROUND.begin_cell, FOREGROUND.end_cell)
