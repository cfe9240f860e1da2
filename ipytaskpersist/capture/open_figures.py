"""Open figures, separate for each task and passed on from cell to cell.

With a backend that does not close them, a cell finds the figures that earlier cells have left open.
So a task begins with the figures open in the foreground at its launch. The figures it leaves open
go to the foreground at its next cell.
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

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.stand_ins import calling_frame
from ipytaskpersist.running.running_task import FOREGROUND, RunningTask, active_task

MODULE = "matplotlib._pylab_helpers"
NBAGG = "matplotlib.backends.backend_nbagg"
Figures = OrderedDict[int, Any]
"""matplotlib's figure managers by number. The last one is the active figure's."""


class TaskFigures(Figures):
    """The open figures of the calling task, or of the foreground, by number."""

    def __init__(self, foreground: Figures) -> None:
        super().__init__()
        self.foreground = foreground

    @property
    def mine(self) -> Figures:
        """The figures of the calling task or of the foreground."""
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
    """Separate the figures of tasks, until the patches are undone."""
    managers = module.Gcf
    if not isinstance(managers.figs, TaskFigures):
        figures = TaskFigures(managers.figs)
        managers.figs = figures
        patches.on_undo(lambda: setattr(managers, "figs", figures.foreground))
        patches.replace(managers, "get_all_fig_managers", partial(_every_manager, figures))
        patches.replace(managers, "set_active", partial(_set_active, figures))
        patches.on_undo(_left.clear)


def _every_manager(routed: TaskFigures, plain: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
    """List the open figures. At the end of a cell, omit those that other code is drawing."""

    def get_all_fig_managers() -> list[Any]:
        # Check the caller, because a frame around `draw_all` would appear in tracebacks of figures
        # that cannot be drawn.
        caller = calling_frame()
        if caller is None or caller.f_code.co_name != "draw_all":
            return plain()
        elsewhere = _open_elsewhere(routed)
        return [manager for manager in plain() if manager not in elsewhere]

    return get_all_fig_managers


def _set_active(routed: TaskFigures, plain: Callable[[Any], None]) -> Callable[[Any], None]:
    """Activate a figure unless it belongs to another task.

    A click on a running task's figure in the page is handled in the foreground.
    """

    def set_active(manager: Any) -> None:
        if manager not in _open_elsewhere(routed):
            plain(manager)

    return set_active


_running: set[RunningTask] = set()
"""Tasks with figures of their own, from their launch on."""


def _open_elsewhere(routed: TaskFigures) -> set[Any]:
    """Return the figures of other tasks, and those of a foreground that runs a cell."""
    caller = active_task.get()
    others = [each.figures.get("open", {}) for each in _running.copy() if each is not caller]
    if caller is not None and FOREGROUND.is_busy:
        others.append(routed.foreground)
    return {manager for figures in others for manager in [*figures.values()]}


def _routed() -> TaskFigures | None:
    module: Any = sys.modules.get(MODULE)
    figures = module.Gcf.figs if hasattr(module, "Gcf") else None
    return figures if isinstance(figures, TaskFigures) else None


# The order in which figures were created.

_turns = itertools.count()
_made: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _note_made(manager: Any) -> None:
    if manager not in _made:
        _made[manager] = next(_turns)


def _when_made(manager: Any) -> int:
    return _made.get(manager, -1)


# From the foreground to a task.


def begin(task: RunningTask, *, are_closed: bool) -> None:
    """Give a task the figures that are open at its launch.

    `are_closed` tells that the launching cell closes its figures at its end, so others do not get
    them.
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
    """Whether a figure has no window. Only the main thread may touch windows."""
    return not has_windows(type(manager.canvas), type(manager))


def is_of_page(canvas_class: Any) -> bool:
    """Whether figures of this class are page widgets, which any thread may touch."""
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
    """An ended task's changes to the open figures."""

    before: tuple[Any, ...]
    """Figures open at the task's beginning, the active one last."""
    after: tuple[Any, ...]
    """Figures open at the task's end, the active one last."""


_left: deque[Left] = deque()
"""Changes by tasks since the last foreground cell began."""


def leave(task: RunningTask, *, are_closed: bool) -> None:
    """Keep an ended task's open figures for the foreground's next cell."""
    _running.discard(task)
    after = () if are_closed else tuple(task.figures.get("open", {}).values())
    before = task.figures.get("began_with", ())
    if before != after:
        _left.append(Left(before, after))


def before_cell(*_event: object) -> None:
    """Apply the figure changes of ended tasks to the foreground."""
    routed = _routed()
    while routed is not None and _left:
        _take_over(routed.foreground, _left.popleft())


def _take_over(figures: Figures, left: Left) -> None:
    """Apply to the figures the changes that a task has made to its own."""
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
    """Add a task's figure, under the next free number if its own is taken."""
    if figures.get(manager.num, manager) is not manager:
        manager.num = max(figures) + 1
        figure = manager.canvas.figure
        # In matplotlib 3.10, the number is read-only.
        setattr(figure, "_number" if hasattr(figure, "_number") else "number", manager.num)
    figures[manager.num] = manager


def _activate_last_made(figures: Figures, active: Any) -> None:
    """Keep the active figure active if it was created after those that a task has left."""
    if active is None or not _has(figures, active):
        return
    if _when_made(active) > _when_made(_active(figures)):
        figures.move_to_end(active.num)
