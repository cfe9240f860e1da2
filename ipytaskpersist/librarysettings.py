"""Settings of libraries, carried between a notebook and the processes of its tasks.

``pd.set_option``, ``plt.rcParams``, ``np.set_printoptions``, ``%precision``, ``os.environ``: what a
cell sets holds for the cells after it, and what the notebook has set holds in its cells.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from ipytaskpersist.afterimport import after_import
from ipytaskpersist.interruption import is_from_outside
from ipytaskpersist.libraries import GONE, LIBRARIES, Settings, read, write
from ipytaskpersist.mishaps import describe
from ipytaskpersist.patches import Patches
from ipytaskpersist.secretnames import is_secret

Change = tuple[Any, Any]
"""What a setting was, and what it has become."""
Changes = dict[str, dict[str, Change]]
"""By library and setting."""
BY_OTHER_WAYS = ("sys", "os")
"""What a process is given otherwise: its path, and its environment when it is started."""


def of_notebook() -> dict[str, Settings]:
    """The settings of all libraries that are imported here."""
    return {name: read(name) for name in LIBRARIES if name not in BY_OTHER_WAYS and _is_here(name)}


def _is_here(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


class OfProcess:
    """The settings in the process of a task: those of the notebook, and what the cell changes."""

    def __init__(self, given: Mapping[str, Settings], patches: Patches) -> None:
        self._given = given
        self._before: dict[str, Settings] = {}
        after_import({name: partial(self._begin, name) for name in LIBRARIES}, patches)

    def _begin(self, name: str, _module: Any, _patches: Patches) -> None:
        """A library is there: let it have the notebook's settings."""
        now, wanted = read(name), self._given.get(name, {})
        write(name, {k: v for k, v in wanted.items() if k in now and not _same(v, now[k])})
        self._before[name] = read(name)

    def changes(self) -> Changes:
        """What is not as it was."""
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
    except BaseException as error:  # an array, for one, is not true or false
        if is_from_outside(error):
            raise
        return False


@dataclass(frozen=True, slots=True)
class Left:
    """What a cell has changed in its process that is no variable."""

    changes: Changes
    submodules: list[str]
    """What it has imported: with a module's variable alone, its submodules need not be there."""

    @property
    def as_value(self) -> tuple[Any, ...]:
        """The same without a class of this package, to be pickled."""
        return self.changes, self.submodules


@dataclass(slots=True)
class Brought:
    """What came of bringing a task's settings into the notebook."""

    names: list[str] = field(default_factory=list)
    """Those that hold now."""
    problems: dict[str, str] = field(default_factory=dict)
    """Those that do not, each with why."""


def bring(changes: Changes) -> Brought:
    """Have in the notebook what a task has set, unless the notebook has set it anew meanwhile."""
    brought = Brought()
    for name, changed in changes.items():
        if name in LIBRARIES and _import(name, brought):
            _bring(name, changed, brought)
    return brought


def bring_submodules(names: Iterable[str]) -> Brought:
    """Import submodules of modules that are in the notebook."""
    brought = Brought()
    for name in names:
        if name.partition(".")[0] in sys.modules:
            _import(name, brought)
    return brought


def _import(name: str, brought: Brought) -> bool:
    try:
        import_module(name)
    except BaseException as error:  # the notebook may lack what the process had
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
            brought.names.append(shown)
        else:
            brought.problems[shown] = "the notebook has set it since"


def _with_additions(before: list[Any], after: list[Any], now: list[Any]) -> list[Any]:
    """What a list is to be here that was `before` and became `after` there."""
    if now == before:
        return after
    first = before[0] if before else None
    place = after.index(first) if first in after else len(after)
    new = [each for each in after if each not in before and each not in now]
    in_front = [each for each in new if after.index(each) < place]
    return [*in_front, *now, *(each for each in new if each not in in_front)]
