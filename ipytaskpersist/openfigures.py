"""The figures that are open: each task has its own, which go from cell to cell.

A cell finds the figures that the cells before it have left open, with every backend that does not
close them. So a task begins with those that are open in the foreground when it is launched, and
what it leaves open is the foreground's from its next cell on.
"""

from __future__ import annotations

import itertools
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from ipytaskpersist.active import FOREGROUND, ActiveTask, active_task
from ipytaskpersist.patches import Patches
from ipytaskpersist.standins import calling_frame

MODULE = "matplotlib._pylab_helpers"
NBAGG = "matplotlib.backends.backend_nbagg"
Figures = OrderedDict[int, Any]
"""matplotlib's managers of figures by number; the last one is the active figure's."""


class TaskFigures(Figures):
    """The open figures, by number: the calling task's, or the foreground's own."""

    def __init__(self, foreground: Figures) -> None:
        super().__init__()
        self.foreground = foreground

    @property
    def mine(self) -> Figures:
        """Those of the calling task, or of the foreground."""
        task = active_task.get()
        if task is None:
            return self.foreground
        mine: Figures = task.figures.setdefault("open", OrderedDict())
        return mine

    def __getitem__(self, number: int) -> Any:
        return self.mine[number]

    def __setitem__(self, number: int, manager: Any) -> None:
        _note_made(manager)
        self.mine[number] = manager

    def __delitem__(self, number: int) -> None:
        del self.mine[number]

    def __contains__(self, number: object) -> bool:
        return number in self.mine

    def __iter__(self) -> Iterator[int]:
        return iter(self.mine)

    def __reversed__(self) -> Iterator[int]:
        return iter(reversed(self.mine))

    def __len__(self) -> int:
        return len(self.mine)

    def __bool__(self) -> bool:
        return bool(self.mine)

    def get(self, number: int, default: Any = None) -> Any:
        return self.mine.get(number, default)

    def keys(self) -> Any:
        return self.mine.keys()

    def values(self) -> Any:
        return self.mine.values()

    def items(self) -> Any:
        return self.mine.items()

    def pop(self, number: int, *default: Any) -> Any:
        return self.mine.pop(number, *default)

    def popitem(self, last: bool = True) -> tuple[int, Any]:
        return self.mine.popitem(last)

    def move_to_end(self, number: int, last: bool = True) -> None:
        self.mine.move_to_end(number, last)

    def clear(self) -> None:
        self.mine.clear()

    def copy(self) -> Any:
        return self.mine.copy()

    __copy__ = copy

    def __eq__(self, other: object) -> bool:
        return self.mine == (other.mine if isinstance(other, TaskFigures) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.mine)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.mine.__reduce_ex__(protocol)


def route(module: ModuleType, patches: Patches) -> None:
    """Give each task its own figures, until the patches are undone."""
    managers = module.Gcf
    if not isinstance(managers.figs, TaskFigures):
        figures = TaskFigures(managers.figs)
        managers.figs = figures
        patches.on_undo(lambda: setattr(managers, "figs", figures.foreground))
        patches.replace(managers, "get_all_fig_managers", partial(_every_manager, figures))
        patches.replace(managers, "set_active", partial(_set_active, figures))
        patches.on_undo(_left.clear)


def _every_manager(routed: TaskFigures, plain: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
    """List the open figures; at the end of a cell, only those that no other code is drawing."""

    def get_all_fig_managers() -> list[Any]:
        # By its caller, because a frame around `draw_all` would stand in the tracebacks of figures
        # that cannot be drawn.
        caller = calling_frame()
        if caller is None or caller.f_code.co_name != "draw_all":
            return plain()
        elsewhere = _open_elsewhere(routed)
        return [manager for manager in plain() if manager not in elsewhere]

    return get_all_fig_managers


def _set_active(routed: TaskFigures, plain: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a figure the active one, unless it is another's.

    A click on a running task's figure in the page is handled in the foreground.
    """

    def set_active(manager: Any) -> None:
        if manager not in _open_elsewhere(routed):
            plain(manager)

    return set_active


_running: set[ActiveTask] = set()
"""The tasks that have figures now, from their launch on."""


def _open_elsewhere(routed: TaskFigures) -> set[Any]:
    """The figures of other tasks than the calling one, and of a foreground that runs a cell."""
    caller = active_task.get()
    others = [each.figures.get("open", {}) for each in _running.copy() if each is not caller]
    if caller is not None and FOREGROUND.is_busy:
        others.append(routed.foreground)
    return {manager for figures in others for manager in [*figures.values()]}


def _routed() -> TaskFigures | None:
    module: Any = sys.modules.get(MODULE)
    figures = module.Gcf.figs if hasattr(module, "Gcf") else None
    return figures if isinstance(figures, TaskFigures) else None


# When figures were made, in relation to each other.

_turns = itertools.count()
_made: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _note_made(manager: Any) -> None:
    if manager not in _made:
        _made[manager] = next(_turns)


def _when_made(manager: Any) -> int:
    return _made.get(manager, -1)


# From the foreground to a task.


def begin(task: ActiveTask, *, are_closed: bool) -> None:
    """Give a task the figures that are open where it is launched.

    are_closed: the launching cell closes its figures at its end, so they are not for other cells.
    """
    routed = _routed()
    if routed is None:
        return
    figures: Figures = OrderedDict()
    if not are_closed:
        figures.update((n, each) for n, each in routed.mine.items() if is_image(each))
    for left in list(_left):
        _take_over(figures, left)
    task.figures.update(open=figures, began_with=tuple(figures.values()))
    _running.add(task)


def is_image(manager: Any) -> bool:
    """Whether a figure has no window, which only the main thread may touch."""
    return not has_windows(type(manager.canvas), type(manager))


def is_of_page(canvas_class: Any) -> bool:
    """Whether figures of this class are widgets of a page, which any thread may touch."""
    modules = [each.__module__ for each in canvas_class.__mro__]
    return NBAGG in modules or any(name.startswith("ipywidgets.") for name in modules)


def has_windows(canvas_class: Any, manager_class: Any) -> bool:
    """Whether figures of these classes are windows."""
    from matplotlib.backend_bases import FigureManagerBase

    if is_of_page(canvas_class):
        return False
    if getattr(canvas_class, "required_interactive_framework", None):
        return True
    return getattr(manager_class, "show", None) is not FigureManagerBase.show


# From a task to the foreground.


@dataclass(frozen=True, slots=True)
class Left:
    """What an ended task has made of the open figures."""

    before: tuple[Any, ...]
    """Those that were open when it began, the active one last."""
    after: tuple[Any, ...]
    """Those that were open when it ended, the active one last."""


_left: deque[Left] = deque()
"""What tasks have left since the last cell of the foreground began."""


def leave(task: ActiveTask, *, are_closed: bool) -> None:
    """Keep what an ended task has left open until the foreground's next cell."""
    _running.discard(task)
    after = () if are_closed else tuple(task.figures.get("open", {}).values())
    before = task.figures.get("began_with", ())
    if before != after:
        _left.append(Left(before, after))


def before_cell(*_event: object) -> None:
    """Give the foreground what ended tasks have left open."""
    routed = _routed()
    while routed is not None and _left:
        _take_over(routed.foreground, _left.popleft())


def _take_over(figures: Figures, left: Left) -> None:
    """Do to the figures what the task has done to those that it began with."""
    is_untouched = [each for each in figures.values() if is_image(each)] == list(left.before)
    was_active = _active(figures)
    for manager in set(left.before) - set(left.after):
        if _has(figures, manager):
            del figures[manager.num]
    for manager in left.after:
        if manager not in left.before:
            _add(figures, manager)
        elif is_untouched:
            figures.move_to_end(manager.num)
    if not is_untouched:
        _activate_last_made(figures, was_active)


def _has(figures: Figures, manager: Any) -> bool:
    return figures.get(manager.num) is manager


def _active(figures: Figures) -> Any:
    managers: list[Any] = [*figures.values()]
    return managers[-1] if managers else None


def _add(figures: Figures, manager: Any) -> None:
    """Add a task's figure, under the next free number where another has its own."""
    if figures.get(manager.num, manager) is not manager:
        manager.num = max(figures) + 1
        figure = manager.canvas.figure
        # matplotlib 3.10 has made the number read only.
        setattr(figure, "_number" if hasattr(figure, "_number") else "number", manager.num)
    figures[manager.num] = manager


def _activate_last_made(figures: Figures, active: Any) -> None:
    """Leave the active figure active, where it was made after what a task has left."""
    if active is None or not _has(figures, active):
        return
    if _when_made(active) > _when_made(_active(figures)):
        figures.move_to_end(active.num)
