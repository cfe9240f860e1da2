"""A shell that was created before its task was known, because creating one takes a while."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Prepared:
    """A shell, and what it was created with."""

    shell: Any
    config: Any
    profile: str


_prepared: list[Prepared] = []


def keep(shell: Any, config: Any, profile: str) -> None:
    """Keep a shell for a task with the same configuration."""
    _prepared[:] = [Prepared(shell, copy.deepcopy(config), profile)]


def kept() -> Any:
    """Return the kept shell. None if there is none."""
    return _prepared[-1].shell if _prepared else None


def take(config: Any, profile: str, module: ModuleType) -> Any:
    """Return the kept shell, now of this module. None if there is none of this configuration."""
    if not _prepared:
        return None
    prepared = _prepared.pop()
    shell = prepared.shell
    if (prepared.config, prepared.profile) != (config, profile):
        type(shell).clear_instance()
        return None
    shell.init_create_namespaces(module, module.__dict__)
    shell.save_sys_module_state()
    shell.init_sys_modules()
    shell.history_manager.dir_hist[:] = [Path.cwd()]
    shell.starting_dir = str(Path.cwd())
    shell.init_user_ns()
    shell.Completer.namespace = shell.user_ns
    shell.Completer.global_namespace = shell.user_global_ns
    return shell
