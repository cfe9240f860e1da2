"""Modules, and their content, that another process finds by name, and those that it does not.

Pickle assumes that a module which is imported here can be imported there. A module that was loaded
from a file outside ``sys.path``, or made by hand, cannot.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

MAIN = "__main__"


@dataclass(frozen=True, slots=True)
class FromFile:
    """How to load a module that no finder finds."""

    name: str
    """The module."""
    top: str
    """The package to load first; the module itself if it is in none."""
    path: str
    """The file of `top`."""
    folders: list[str] | None
    """The folders of its submodules, if it is a package."""

    def load(self) -> ModuleType:
        """Load it, unless it is there. Raises what its code raises, and `ImportError`."""
        if self.top not in sys.modules:
            spec = spec_from_file_location(
                self.top, self.path, submodule_search_locations=self.folders
            )
            if spec is None or spec.loader is None:
                raise ImportError(f"{self.path} is no module")
            sys.modules[self.top] = module = module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[self.top]
                raise
        return import_module(self.name)


@dataclass(slots=True)
class Modules:
    """This process's modules that another one finds. Checks each module once."""

    _known: dict[str, FromFile | bool] = field(default_factory=dict)

    def place(self, name: str) -> FromFile | bool:
        """Return True for a module that can be imported elsewhere, False for one that cannot."""
        if name not in self._known:
            self._known[name] = _installed(name) or _place(name)
        return self._known[name]

    def not_found(self, names: Iterable[str]) -> list[ModuleType]:
        """Return the loaded modules among these names that no other process finds."""
        there = [name for name in names if issubclass(type(sys.modules.get(name)), ModuleType)]
        return [sys.modules[name] for name in there if self.place(name) is not True]


_found_installed: dict[str, tuple[ModuleType, tuple[str, ...]]] = {}
"""Installed modules that were found before, each with the path on which they were."""
INSTALLED = (sys.prefix, sys.base_prefix)


def _installed(name: str) -> bool:
    """Return whether an installed module is found, which is asked once: its file stays."""
    module, path = sys.modules.get(name), tuple(sys.path)
    if module is not None and _found_installed.get(name) == (module, path):
        return True
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.startswith(INSTALLED) or _place(name) is not True:
        return False
    assert module is not None
    _found_installed[name] = module, path
    return True


def _place(name: str) -> FromFile | bool:
    module = sys.modules.get(name)
    if name == MAIN or module is None:
        return False
    own_name = module.__name__
    if own_name != name and sys.modules.get(own_name) is module:
        return _place(own_name)  # as `os.path` is another name of `posixpath`
    parent = _package(name)
    above = _place(parent) if parent else "." not in name
    if isinstance(above, FromFile):
        return FromFile(name, above.top, above.path, above.folders)
    if above and _is_found(name, module):
        return True
    own = _of_file(name, name, module)
    # What no finder finds in a package was made by its import, as extension modules do.
    is_made = above and parent and not (isinstance(own, FromFile) and own.path.endswith(".py"))
    return True if is_made else own


def _package(name: str) -> str:
    """Return the nearest loaded package above a module; empty when there is none."""
    parent = name.rpartition(".")[0]
    return parent if parent in sys.modules or not parent else _package(parent)


def _of_file(name: str, top: str, module: ModuleType) -> FromFile | bool:
    path = getattr(module, "__file__", None)
    if not isinstance(path, str):
        return False
    if not Path(path).is_file():
        return True  # a file that was removed meanwhile proves nothing
    folders = getattr(module, "__path__", None)
    return FromFile(
        name, top, str(Path(path).absolute()), None if folders is None else list(map(str, folders))
    )


def _is_found(name: str, module: ModuleType) -> bool:
    parent = name.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None)
    found = None if parent and path is None else _found(name, path)
    if found is None:
        return False
    here, there = getattr(module, "__file__", None), found.origin
    if not (isinstance(here, str) and found.has_location and there):
        return True
    return _is_same(here, there)


def _is_same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return True  # as above


def _found(name: str, path: Any) -> ModuleSpec | None:
    """Return the answer of the finders that another process has, too, not of the notebook's own."""
    for finder in [*sys.meta_path]:
        kind = finder if isinstance(finder, type) else type(finder)
        find = getattr(finder, "find_spec", None)
        if find is not None and kind.__module__ != MAIN:
            try:
                spec: ModuleSpec | None = find(name, path, None)
            except Exception:  # a finder may not know the module  # nosec B112
                continue
            if spec is not None:
                return spec
    return None


def is_in(module: ModuleType, name: str, value: Any) -> bool:
    """Return whether a module has a value under a name, which may have dots."""
    try:
        return attrgetter(name)(module) is value
    except AttributeError:
        return False
