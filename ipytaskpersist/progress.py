"""How far a task has come, as its code says it: by `track`, or by a bar of ``tqdm.notebook``.

Bars that are drawn as text are found in what the task prints, by `bars`.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ipytaskpersist.active import ActiveTask, active_task
from ipytaskpersist.afterimport import after_import
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.patches import Patches
from ipytaskpersist.records import Progress

T = TypeVar("T")
TEXT_CHARACTERS = 200
AT_MOST = 1e18


def progress_of(done: float, total: float | None = None, text: str = "") -> Progress:
    """The record of what somebody says. Raises `InvalidRequest` for what is no amount."""
    for name, amount in (("done", done), ("total", done if total is None else total)):
        if not _is_amount(amount):
            raise InvalidRequest(f"{name} is a number that is not negative, not {amount!r}")
    line = " ".join(str(text).split())[:TEXT_CHARACTERS]
    return Progress(float(done), None if total is None else float(total), line)


def _is_amount(value: Any) -> bool:
    try:
        return bool(math.isfinite(value) and 0 <= value <= AT_MOST)
    except (TypeError, ValueError, OverflowError):
        return False


def track(items: Iterable[T], total: float | None = None, text: str = "") -> Iterator[T]:
    """The items, one by one; the task whose code takes them shows how far it has come.

    `total` is how many there are, by default what ``len`` says of them, and `text` one line about
    what is being done. In the foreground it gives the items and shows nothing.
    """
    if total is None:
        try:
            total = len(items)  # type: ignore[arg-type]
        except TypeError:
            total = None
    task = active_task.get()
    said = progress_of(0, total, text)
    if task is not None:
        task.progress(said)
    for count, item in enumerate(items, 1):
        yield item
        if task is not None:
            task.progress(Progress(float(count), said.total, said.text))


# tqdm's bars for notebooks are widgets: nothing of them is in what the task prints.


def install(patches: Patches) -> None:
    """See how far the bars of ``tqdm.notebook`` and ``tqdm.auto`` have come."""
    after_import({"tqdm.notebook": _route_tqdm}, patches)


_bar_of: weakref.WeakKeyDictionary[ActiveTask, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""The bar that counts of each task: the outermost, which is the first that is not closed."""


def end(task: ActiveTask) -> None:
    """Note how far the bar of a task has come at its end, which it need not have shown yet."""
    known = _bar_of.get(task)
    bar = None if known is None else known()
    if bar is not None and not bar.disable:
        _note(task, bar)


def _route_tqdm(module: Any, patches: Patches) -> None:
    patches.replace(module.tqdm_notebook, "display", _display)


def _display(plain: Callable[..., Any]) -> Callable[..., Any]:
    def display(self: Any, *args: Any, **options: Any) -> Any:
        task = active_task.get()
        if task is not None:
            _note(task, self)
        return plain(self, *args, **options)

    return display


def _note(task: ActiveTask, bar: Any) -> None:
    known = _bar_of.get(task)
    outermost = None if known is None else known()
    if outermost is None or outermost.disable:
        _bar_of[task] = weakref.ref(bar)
    elif outermost is not bar:
        return
    if _is_amount(bar.n):
        total = bar.total if bar.total and _is_amount(bar.total) else None
        task.progress(progress_of(bar.n, total, (bar.desc or "").rstrip(": ")))


# A bar that is made in the foreground and handed to a process.

OPTIONS = (
    *("iterable", "total", "leave", "ncols", "mininterval", "maxinterval", "ascii", "unit"),
    *("unit_scale", "dynamic_ncols", "smoothing", "bar_format", "initial", "unit_divisor"),
)
COUNTS = ("n", "last_print_n", "start_t", "last_print_t", "postfix")
NEVER_S, SOON_S = 1e9, 1e-9


def reduced(value: Any) -> Any:
    """How a bar of tqdm is pickled: as what it counts. NotImplemented for other values.

    Where it is loaded it is another bar, which a task shows as its own.
    """
    std: Any = sys.modules.get("tqdm.std")
    if std is None or not isinstance(value, std.tqdm):
        return NotImplemented
    known = vars(value)
    options = {name: known[name] for name in OPTIONS if name in known}
    options |= {"desc": (known.get("desc") or "").removesuffix(": "), "disable": value.disable}
    return _bar, (type(value), options, {name: known[name] for name in COUNTS if name in known})


def _bar(kind: Any, options: dict[str, Any], counts: dict[str, Any]) -> Any:
    """A bar that has come so far, and shows itself at its next step and not before."""
    bar = kind(**options, delay=NEVER_S)
    vars(bar).update(counts, delay=SOON_S)
    return bar
