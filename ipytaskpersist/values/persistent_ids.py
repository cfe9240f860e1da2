"""What pickles refer to by an id: the notebook that loads it, its shell, and makers of modules."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ipytaskpersist.values.importable import FromFile

NAMESPACE_ID, SHELL_ID, SOURCE_ID = "namespace", "shell", "source"
GLOBALS_ID, IMPORT_ID = "globals", "import"
NEW_MODULE_ID, FILL_MODULE_ID = "new module", "fill module"
GIVEN_ID = "given object"
"""Stands for an object that is elsewhere: in another pickle, or in the notebook that gave it."""
OWN_VIEW = "own view"
"""Beginning of the key of an array that is a view, which may be missing."""


def running_shell() -> Any:
    """Return IPython's shell in this process; None when there is none."""
    module: Any = sys.modules.get("IPython.core.getipython")
    return None if module is None else module.get_ipython()


def new_module(name: str, is_known: bool) -> ModuleType:
    """Return an empty module, or the existing one with this name."""
    if not is_known:
        return ModuleType(name)
    return sys.modules.setdefault(name, ModuleType(name))


def fill_module(module: ModuleType, content: dict[str, Any]) -> None:
    """Add missing content to a module: one that existed before stays as it is."""
    for name, value in content.items():
        if vars(module).get(name) is None:
            vars(module)[name] = value


def import_file(*place: Any) -> ModuleType:
    """Return the module of a file outside `sys.path`."""
    return FromFile(*place).load()


FUNCTIONS: dict[Any, Any] = {
    IMPORT_ID: import_file, NEW_MODULE_ID: new_module, FILL_MODULE_ID: fill_module
}  # fmt: skip
"""Functions of this package that are called when a pickle is loaded, by their ids."""
