"""Progress that a task's code reports, by `track` or by a ``tqdm.notebook`` bar.

`progress_bars` finds bars that are drawn as text in the task's output.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from ipytaskpersist.base.import_hooks import after_import
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import Progress
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.running.running_task import RunningTask, active_task

T = TypeVar("T")
TEXT_CHARACTERS = 200
AT_MOST = 1e18


def progress_of(done: float, total: float | None = None, text: str = "") -> Progress:
    """Return a progress record. Raises `InvalidRequest` for an invalid amount."""
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
    """Yield the items one by one, and report the calling task's progress.

    `total` is the number of items, by default their ``len``. `text` is one line about the work. In
    the foreground, nothing is shown.
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


# tqdm's notebook bars are widgets, so they do not appear in the task's printed output.


def install(patches: Patches) -> None:
    """Follow the progress of ``tqdm.notebook`` and ``tqdm.auto`` bars."""
    after_import({"tqdm.notebook": _route_tqdm}, patches)


_bar_of: weakref.WeakKeyDictionary[RunningTask, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""The bar that counts as each task's progress: the outermost, which is the first open one."""


def end(task: RunningTask) -> None:
    """Record the final progress of a task's bar, which it may not have displayed yet."""
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


def _note(task: RunningTask, bar: Any) -> None:
    known = _bar_of.get(task)
    outermost = None if known is None else known()
    if outermost is None or outermost.disable:
        _bar_of[task] = weakref.ref(bar)
    elif outermost is not bar:
        return
    if _is_amount(bar.n):
        total = bar.total if bar.total and _is_amount(bar.total) else None
        progress = progress_of(bar.n, total, (bar.desc or "").rstrip(": "))
        task.progress(replace(progress, drawn=_as_drawn(bar)))


def _as_drawn(bar: Any) -> str:
    """Return a bar with its count, rate and time left, as a terminal would show it."""
    try:
        known = {**bar.format_dict, "bar_format": None, "ncols": None}
        return " ".join(str(bar.format_meter(**known)).split())[:TEXT_CHARACTERS]
    except Exception:  # a bar of another class may lack what this takes
        return ""


# A bar that is created in the foreground and passed to a process.

OPTIONS = (
    *("iterable", "total", "leave", "ncols", "mininterval", "maxinterval", "ascii", "unit"),
    *("unit_scale", "dynamic_ncols", "smoothing", "bar_format", "initial", "unit_divisor"),
)
COUNTS = ("n", "last_print_n", "start_t", "last_print_t", "postfix")
NEVER_S, SOON_S = 1e9, 1e-9


def reduced(value: Any) -> Any:
    """Reduce a tqdm bar to its counts for pickling. NotImplemented for other values.

    Unpickling creates a new bar, which a task displays as its own.
    """
    std: Any = sys.modules.get("tqdm.std")
    if std is None or not isinstance(value, std.tqdm):
        return NotImplemented
    known = vars(value)
    options = {name: known[name] for name in OPTIONS if name in known}
    options |= {"desc": (known.get("desc") or "").removesuffix(": "), "disable": value.disable}
    return _bar, (type(value), options, {name: known[name] for name in COUNTS if name in known})


def _bar(kind: Any, options: dict[str, Any], counts: dict[str, Any]) -> Any:
    """Create a bar with these counts, which first displays itself at its next step."""
    bar = kind(**options, delay=NEVER_S)
    vars(bar).update(counts, delay=SOON_S)
    return bar
