"""Call a function with a module each time it is imported, or at once if it already was."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from types import ModuleType
from typing import Any

from ipytaskpersist.base.imported_modules import is_beginning
from ipytaskpersist.base.patches import Patches

Route = Callable[[Any, Patches], None]


def after_import(routes: Mapping[str, Route], patches: Patches) -> None:
    """Call each function with the module of its name, now and whenever it is imported.

    An import in progress in another thread is awaited. A module that is reloaded, or removed from
    ``sys.modules`` and imported again, counts as imported again.
    """
    finder = _Finder(routes, patches)
    sys.meta_path.insert(0, finder)
    patches.on_undo(lambda: sys.meta_path.remove(finder))
    for name, route in routes.items():
        if _is_imported(name) and name not in finder.seen:
            route(sys.modules[name], patches)


def _is_imported(name: str) -> bool:
    """Return whether a module is there and complete. The finder sees the end of an import.

    If the import began in another thread before the finder was there, it is awaited, by importing
    the module here as well.
    """
    module = sys.modules.get(name)
    if is_beginning(module):
        try:
            importlib.import_module(name)
        except Exception:  # whatever the import raises, it will raise again when requested
            return False
    return sys.modules.get(name) is not None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the other finders find, and observes its loading."""

    def __init__(self, routes: Mapping[str, Route], patches: Patches) -> None:
        self._routes = routes
        self._patches = patches
        self.seen: set[str] = set()
        """Modules imported since it was installed."""
        self._asking: set[tuple[int, str]] = set()
        """Threads that ask the other finders for a module: one may ask this finder again."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        question = (get_ident(), fullname)
        if fullname not in self._routes or question in self._asking:
            return None
        self._asking.add(question)
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            self._asking.discard(question)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader, fullname)
        return spec

    def _ask_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the answer of the first other finder that knows the module.

        Not `importlib.util.find_spec`: that imports the parent package. Another thread may be
        waiting for that package while it holds what this thread has to wait for.
        """
        for finder in [*sys.meta_path]:
            find_spec = getattr(finder, "find_spec", None)
            if finder is not self and find_spec is not None:
                spec: importlib.machinery.ModuleSpec | None = find_spec(fullname, path, target)
                if spec is not None:
                    return spec
        return None

    def _watch(self, loader: Any, name: str) -> None:
        plain_exec = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # so that the module's loader can be pickled again
            plain_exec(module)
            # Not earlier: a search for the module, or a failed import, may be retried.
            self.seen.add(name)
            if not self._patches.are_undone:
                self._routes[name](module, self._patches)

        loader.exec_module = exec_module
