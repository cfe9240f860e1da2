"""The files of the modules that a process has imported, and whether they are others by now.

To look at a thousand files takes a few milliseconds, which each start of a task would wait. So
their folders are watched, and the files are looked at when something happens there.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipytaskpersist.runners.file_watch import CHANGED, FileWatch
from ipytaskpersist.store.file.file_systems import file_system_of, may_be_on_network


class ImportedFiles:
    """The files of modules as they were when this was created."""

    def __init__(self, modules: Iterable[Any]) -> None:
        self._changed_at = files_of(modules)
        folders = {os.path.dirname(file) for file in self._changed_at}  # noqa: PTH120
        self._watch = None if _is_any_shared(folders) else FileWatch(folders, CHANGED)
        self._are_others = self._look()  # one may have changed before it was watched

    @property
    def have_changed(self) -> bool:
        """Whether any of them is another file now."""
        is_known = self._watch is not None and not self._watch.may_have_news
        return self._are_others or (not is_known and self._look())

    def look_ahead(self) -> None:
        """Look at what has happened, so that processes which are forked now need not."""
        if self._watch is not None and self._watch.may_have_news:
            self._watch.clear()
            self._are_others = self._are_others or self._look()

    @property
    def descriptor(self) -> int:
        """What a process needs to know of changes. -1 where it looks at the files instead."""
        return -1 if self._watch is None else self._watch.descriptor

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()

    def _look(self) -> bool:
        try:
            return any(changed_at(file) != at for file, at in self._changed_at.items())
        except OSError:
            return True


def _is_any_shared(folders: Iterable[str]) -> bool:
    """Return whether other hosts may write to one of these folders."""
    devices = {}
    for folder in folders:
        with suppress(OSError):
            devices[os.stat(folder).st_dev] = folder  # noqa: PTH116
    return any(may_be_on_network(file_system_of(Path(folder))) for folder in devices.values())


def files_of(modules: Iterable[Any]) -> dict[str, int]:
    """Return the files of modules, with the times of their last change.

    Not those of the standard library, which come and go with the interpreter.
    """
    found, standard = {}, _standard_library()
    for module in modules:
        try:
            file = vars(module).get("__file__")
        except TypeError:
            continue  # any object may stand among the modules
        if isinstance(file, str) and not file.startswith(standard):
            with suppress(OSError):
                found[file] = changed_at(file)
    return found


def _standard_library() -> tuple[str, ...]:
    """Return the beginnings of its files: beside site-packages, which may be inside its folder."""
    folder = sysconfig.get_path("stdlib")
    names = [*sys.stdlib_module_names, "lib-dynload"]
    return tuple(f"{folder}{os.sep}{name}{end}" for name in names for end in (os.sep, "."))


def changed_at(file: str) -> int:
    """Return when a file was changed last. Raises `OSError`."""
    # Not `Path.stat`, which takes twice as long: these are a thousand files.
    return os.stat(file).st_mtime_ns  # noqa: PTH116
