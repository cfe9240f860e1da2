"""Library settings, carried between a notebook and the processes of its tasks.

Examples are ``pd.set_option``, ``plt.rcParams``, ``np.set_printoptions``, ``%precision`` and
``os.environ``. A setting made in a cell applies to later cells, and the notebook's settings apply
in the cell's process.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from ipytaskpersist.base.foreign_errors import describe
from ipytaskpersist.base.import_hooks import after_import
from ipytaskpersist.base.imported_modules import imported
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.redaction import is_secret
from ipytaskpersist.isolation.library_settings import GONE, LIBRARIES, Settings, read, write
from ipytaskpersist.running.interruption import is_from_outside

Change = tuple[Any, Any]
"""A setting's old and new value."""
Changes = dict[str, dict[str, Change]]
"""Changed settings by library and name."""
BY_OTHER_WAYS = ("sys", "os")
"""Modules whose settings a process gets at its start: its path and its environment."""


def of_notebook(apart: Collection[str] = ()) -> dict[str, Settings]:
    """Return the settings of all imported libraries, except those that are to stay `apart`."""
    return {
        name: read(name)
        for name, library in LIBRARIES.items()
        if name not in BY_OTHER_WAYS and library.shown not in apart and imported(name) is not None
    }


class OfProcess:
    """Settings in a task's process: those of the notebook, and the cell's changes."""

    def __init__(
        self, given: Mapping[str, Settings], patches: Patches, apart: Collection[str] = ()
    ) -> None:
        """Settings of libraries that are to stay `apart` are neither applied nor compared."""
        self._given = given
        self._before: dict[str, Settings] = {}
        names = [name for name, library in LIBRARIES.items() if library.shown not in apart]
        after_import({name: partial(self._begin, name) for name in names}, patches)

    def _begin(self, name: str, _module: Any, _patches: Patches) -> None:
        """Apply the notebook's settings to a library that has just been imported."""
        now, wanted = read(name), self._given.get(name, {})
        known = wanted if LIBRARIES[name].may_be_new else now
        others = {k: v for k, v in wanted.items() if k in known and not _same(v, now.get(k, GONE))}
        if others:
            write(name, others)
        self._before[name] = read(name) if others else now

    def changes(self) -> Changes:
        """Return the settings that have changed."""
        found = {name: _changes(before, read(name)) for name, before in self._before.items()}
        return {name: changes for name, changes in found.items() if changes}


def _changes(before: Settings, now: Settings) -> dict[str, Change]:
    return {
        name: (before.get(name, GONE), now.get(name, GONE))
        for name in (*before, *(each for each in now if each not in before))
        if not _same(before.get(name, GONE), now.get(name, GONE))
    }


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return bool(one == other)
    except BaseException as error:  # an array has no truth value, for example
        if is_from_outside(error):
            raise
        return False


@dataclass(frozen=True, slots=True)
class Left:
    """Changes in a task's process other than variables."""

    changes: Changes
    submodules: list[str]
    """Submodules that the cell imported: a module variable alone does not bring them."""

    @property
    def as_value(self) -> tuple[Any, ...]:
        """The same values without a class of this package, for pickling."""
        return self.changes, self.submodules


@dataclass(slots=True)
class Brought:
    """The result of bringing a task's settings into the notebook."""

    names: list[str] = field(default_factory=list)
    """Settings that were applied."""
    problems: dict[str, str] = field(default_factory=dict)
    """Settings that were not applied, each with the reason."""


def bring(changes: Changes) -> Brought:
    """Apply a task's settings to the notebook, except those the notebook has changed meanwhile."""
    brought = Brought()
    for name, changed in changes.items():
        if name in LIBRARIES and _import(name, brought):
            _bring(name, changed, brought)
    return brought


def bring_submodules(names: Iterable[str]) -> Brought:
    """Import submodules of modules that the notebook has imported."""
    brought = Brought()
    for name in names:
        if name.partition(".")[0] in sys.modules:
            _import(name, brought)
    return brought


def _import(name: str, brought: Brought) -> bool:
    try:
        import_module(name)
    except BaseException as error:  # the notebook may lack a module that the process had
        if is_from_outside(error):
            raise
        brought.problems[name] = describe(error)
        return False
    return True


def _bring(name: str, changed: dict[str, Change], brought: Brought) -> None:
    library, now = LIBRARIES[name], read(name)
    for setting, (before, after) in changed.items():
        shown = f"{library.shown} {setting}"
        if library.is_added_to:
            write(name, {setting: _with_additions(before, after, now[setting])})
        elif name == "os" and is_secret(setting):
            brought.problems[shown] = "it is called like a secret, and those are not kept"
        elif _same(now.get(setting, GONE), after):
            continue
        elif _same(now.get(setting, GONE), before):
            write(name, {setting: after})
            if not library.is_quiet:
                brought.names.append(shown)
        elif not library.is_quiet:
            brought.problems[shown] = "the notebook has set it since"


def _with_additions(before: list[Any], after: list[Any], now: list[Any]) -> list[Any]:
    """Apply to the list `now` the additions that turned `before` into `after`."""
    if now == before:
        return after
    first = before[0] if before else None
    place = after.index(first) if first in after else len(after)
    new = [each for each in after if each not in before and each not in now]
    in_front = [each for each in new if after.index(each) < place]
    return [*in_front, *now, *(each for each in new if each not in in_front)]
