"""What a process task is given of its notebook besides variables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ipytaskpersist.base.redaction import in_use, is_secret
from ipytaskpersist.isolation import carried_settings
from ipytaskpersist.runners.given import NotebookSetup

FUTURE_FLAGS = 0x1FE0000
"""Compiler flags of all ``from __future__`` features."""


def _without_secrets(config: Any) -> Any:
    """Return IPython's configuration without possible secrets, fit for a file."""
    from traitlets.config import Config

    kept = Config()
    for section, settings in config.items():
        kept[section] = (
            Config(
                {
                    name: value
                    for name, value in settings.items()
                    if name != "notify" and not is_secret(name)
                }
            )
            if isinstance(settings, Config)
            else settings
        )
    return kept


def setting_of(shell: Any, apart: Sequence[str]) -> NotebookSetup:
    """Return what a cell finds in this notebook besides variables.

    Settings of the libraries named in `apart` are left out.
    """
    if shell is None:
        from traitlets.config import Config

        return NotebookSetup(
            list(sys.path),
            Config(),
            "last_expr",
            0,
            secret_names=list(in_use()),
            libraries=carried_settings.of_notebook(apart),
            apart=list(apart),
        )
    return NotebookSetup(
        path=list(sys.path),
        config=_without_secrets(shell.config),
        secret_names=list(in_use()),
        libraries=carried_settings.of_notebook(apart),
        apart=list(apart),
        interactivity=shell.ast_node_interactivity,
        compiler_flags=shell.compile.flags & FUTURE_FLAGS,
        shell_class=_class_of_kernel(shell),
        profile=str(getattr(shell.profile_dir, "location", "")),
    )


def _class_of_kernel(shell: Any) -> tuple[str, str] | None:
    """Return module and name of the class of a kernel's shell; None for a terminal's."""
    kernel: Any = sys.modules.get("ipykernel.zmqshell")
    if kernel is None or not isinstance(shell, kernel.ZMQInteractiveShell):
        return None
    return type(shell).__module__, type(shell).__name__
