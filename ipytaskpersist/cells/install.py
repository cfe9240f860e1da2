"""What is put around the cells of a shell, so that what belongs to a task becomes the task's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.capture import (
    figures,
    installation,
    progress,
    propagation,
    system_attributes,
)
from ipytaskpersist.cells import execution
from ipytaskpersist.isolation import (
    foreground_only,
    process_state,
    scripts,
    warning_filters,
    working_directory,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def install_in_notebook(shell: InteractiveShell) -> Patches:
    """Where tasks run in threads beside the foreground."""
    patches = Patches()
    installation.install(shell, patches)
    propagation.install(patches)
    _install_around_cells(shell, patches)
    process_state.install(patches)
    system_attributes.install(shell, patches)
    warning_filters.install(patches)
    working_directory.install(patches)
    scripts.install(shell, patches)
    foreground_only.install(shell, patches)
    foreground_only.install_for_threads(shell, patches)
    return patches


def install_in_process(shell: InteractiveShell) -> Patches:
    """Where the whole process is one task's."""
    patches = Patches()
    installation.install(shell, patches)
    propagation.install_for_threads(patches)
    _install_around_cells(shell, patches)
    foreground_only.install(shell, patches)
    return patches


def _install_around_cells(shell: InteractiveShell, patches: Patches) -> None:
    figures.install(shell, patches)
    execution.install(shell, patches)
    progress.install(patches)
