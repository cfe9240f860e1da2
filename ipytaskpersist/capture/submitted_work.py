"""Attribute work to its submitter, wherever its worker was started.

Executors, pools and queues carry a `Submitter` with each piece of work. The worker acts on its
behalf until it is given other work. In a thread, that takes two context variables. A worker process
receives the paths of the submitter's pipes with its work (`worker_streams`).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.thread import _WorkItem
from contextvars import Context, ContextVar
from dataclasses import dataclass
from functools import partial
from queue import LifoQueue, PriorityQueue, Queue
from typing import Any
from weakref import WeakKeyDictionary

from ipytaskpersist.base.import_hooks import after_import
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.capture import worker_streams
from ipytaskpersist.capture.child_processes import DESCRIPTORS, Children, of_foreground
from ipytaskpersist.capture.file_descriptors import WATCHERS
from ipytaskpersist.isolation.process_state import CARRIED
from ipytaskpersist.running.running_task import FOREGROUND, RunningTask, active_task

Plain = Callable[..., Any]
SUBMITTER = "_ipytaskpersist_submitter"
"""Attribute of a work item that holds its submitter."""
OWNERS = "_ipytaskpersist_owners"
"""Attribute of a queue that holds its items' submitters."""


@dataclass(frozen=True, slots=True)
class Submitter:
    """The task on whose behalf a worker thread or process does a piece of work."""

    task: RunningTask | None
    carried: tuple[Any, ...]
    """Values of `CARRIED`."""

    @classmethod
    def here(cls) -> Submitter:
        """Return the submitter that represents the calling code."""
        return cls(active_task.get(), tuple(variable.get() for variable in CARRIED))

    def take_over(self) -> None:
        """Make the calling thread work for this submitter until it works for another."""
        active_task.set(self.task)
        for variable, value in zip(CARRIED, self.carried, strict=True):
            variable.set(value)

    def at_work(self) -> _AtWork:
        """Make the calling thread work for this submitter in a block."""
        return _AtWork(self)

    def context(self) -> Context:
        """Create a context for the submitter's code, with no other variables set.

        `Context.run` is implemented in C, so no frame of this package appears in tracebacks.
        """
        context = Context()
        context.run(self.take_over)
        return context


class _AtWork:
    """A class, because a generator would take three times as long for each piece of work."""

    __slots__ = ("_before", "_submitter")

    def __init__(self, submitter: Submitter) -> None:
        self._submitter = submitter

    def __enter__(self) -> None:
        self._before = Submitter.here()
        self._submitter.take_over()

    def __exit__(self, *_error: object) -> None:
        self._before.take_over()


OF_FOREGROUND = Context().run(Submitter.here)
"""The foreground as a submitter."""


def install(patches: Patches) -> None:
    """Carry submitters from now on."""
    patches.replace(_WorkItem, "__init__", _noting)
    patches.replace(_WorkItem, "run", _as_submitted)
    patches.replace(Future, "add_done_callback", _add_done_callback)
    for kind in (Queue, PriorityQueue, LifoQueue):
        patches.replace(kind, "_put", _put)
        patches.replace(kind, "_get", _get)
    after_import(ROUTES, patches)


def install_for_processes(patches: Patches) -> None:
    """Send the paths of this process's pipes along with work for other processes."""
    global _reading
    _reading = _Reading()
    patches.on_undo(_reading.close)


class _Reading:
    """The streams of this process, as worker processes find them."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._kernel = worker_streams.streams_of(DESCRIPTORS.values())
        self._foreground: Children | None = None
        if WATCHERS.are_there:
            # Output on the kernel's own descriptors does not tell its origin, and is attributed to
            # a task that runs alone.
            self._foreground = of_foreground()
            FOREGROUND.drain = self._foreground.drain

    def close(self) -> None:
        """Stop announcing streams. Output from remaining writers is shown until they end."""
        self._kernel = ()
        if self._foreground is not None:
            self._foreground.close()

    def ways_of(self, task: RunningTask | None) -> tuple[worker_streams.Streams, ...]:
        """Return the streams for a task's work, in order of preference."""
        if os.getpid() != self._owner or not self._kernel:
            return ()  # a fork, whose own workers print where it does
        own = None if task is None or task.has_ended else task.children
        readers = [each for each in (own, self._foreground) if each is not None]
        streams = [worker_streams.streams_of(map(each.stream, DESCRIPTORS)) for each in readers]
        return *streams, self._kernel


_reading: _Reading | None = None


class Carried:
    """The arguments of submitted work, which tell the worker for which submitter it works.

    A worker that unpacks them for a call acts on the submitter's behalf from then on. The function
    itself is not wrapped, so no frame of this package appears in its tracebacks.
    """

    __slots__ = ("_args", "_submitter")

    def __init__(self, args: Any, submitter: Submitter) -> None:
        self._args = args
        self._submitter = submitter

    def __iter__(self) -> Iterator[Any]:
        self._submitter.take_over()
        return iter(self._args)

    def __reduce__(self) -> Any:
        ways = () if _reading is None else _reading.ways_of(self._submitter.task)
        return worker_streams.arrive, (self._args, *ways)


# Executors.


def _noting(plain: Plain) -> Plain:
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        setattr(self, SUBMITTER, Submitter.here())

    return __init__


def _as_submitted(plain: Plain) -> Plain:
    def act(self: Any, *args: Any, **options: Any) -> Any:
        submitter: Submitter | None = getattr(self, SUBMITTER, None)
        if submitter is None:  # submitted before the extension was loaded
            return plain(self, *args, **options)
        with submitter.at_work():
            return plain(self, *args, **options)

    return act


def _add_done_callback(plain: Plain) -> Plain:
    def add_done_callback(self: Any, fn: Callable[[Any], object]) -> None:
        if self.done():  # it is called immediately
            plain(self, fn)
        else:
            in_context: Any = Submitter.here().context().run
            plain(self, partial(in_context, fn))

    return add_done_callback


def _route_executor(module: Any, patches: Patches) -> None:
    patches.replace(module._WorkItem, "__init__", _carrying)


def _carrying(plain: Plain) -> Plain:
    def __init__(self: Any, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
        plain(self, future, fn, Carried(args, Submitter.here()), kwargs)

    return __init__


# Pools of multiprocessing: threads and processes.


def _route_pool(module: Any, patches: Patches) -> None:
    for kind in (module.ApplyResult, module.MapResult):
        patches.replace(kind, "_set", _as_submitted)
    patches.replace(module.ApplyResult, "__init__", _noting)
    patches.replace(module.Pool, "apply_async", _apply_async)
    # A generator's code would not run until another thread asks for the first value.
    patches.stand_in(module.Pool, "_guarded_task_generation", _task_generation)


def _apply_async(plain: Plain) -> Plain:
    def apply_async(
        self: Any,
        func: Any,
        args: Any = (),
        kwds: Any = {},  # noqa: B006 - as the plain one has it, which changes it as little
        callback: Any = None,
        error_callback: Any = None,
    ) -> Any:
        carried = Carried(args, Submitter.here())
        return plain(self, func, carried, kwds, callback, error_callback)

    return apply_async


def _task_generation(plain: Plain) -> Plain:
    def _guarded_task_generation(self: Any, result_job: Any, func: Any, iterable: Any) -> Any:
        return _carried(plain(self, result_job, func, iterable), Submitter.here())

    return _guarded_task_generation


def _carried(tasks: Iterator[Any], submitter: Submitter) -> Iterator[Any]:
    """Yield the tasks that a pool's own thread takes from its submitter's iterable."""
    while True:
        with submitter.at_work():
            task = next(tasks, None)
        if task is None:
            return
        job, number, func, args, kwds = task
        yield job, number, func, Carried(args, submitter), kwds


# Queues to long-lived threads.

_lent: ContextVar[Submitter | None] = ContextVar("ipytaskpersist_lent", default=None)
"""The submitter for which the calling thread acts because it has taken that one's item."""


def _put(plain: Plain) -> Plain:
    def _put(self: Any, item: Any) -> None:
        owners = vars(self).get(OWNERS)
        if owners is not None or active_task.get() is not None:
            if owners is None or not self._qsize():
                # Also drop the entries of items that were taken without `get`.
                owners = vars(self)[OWNERS] = {}
            plain(self, item)
            owners.setdefault(id(item), deque()).append((item, Submitter.here()))
        else:
            plain(self, item)

    return _put


def _get(plain: Plain) -> Plain:
    def _get(self: Any) -> Any:
        item = plain(self)
        owners = vars(self).get(OWNERS)
        if owners is not None or _lent.get() is not None:
            _take_over(_owner_of(item, owners or {}))
        return item

    return _get


def _owner_of(item: Any, owners: dict[int, deque[tuple[Any, Submitter]]]) -> Submitter:
    """Return the submitter of an item, which is found by identity without inspecting its value."""
    known = owners.get(id(item))
    if not known:
        return OF_FOREGROUND
    _item, submitter = known.popleft()
    if not known:
        del owners[id(item)]
    return submitter


def _take_over(submitter: Submitter) -> None:
    """Act for the item's submitter unless the calling thread has work of its own.

    A task's own thread that takes another's item continues to act for its task.
    """
    lent, task = _lent.get(), active_task.get()
    if task is not None and (lent is None or lent.task is not task):
        return
    if not _runs_cells(threading.current_thread()):
        submitter.take_over()
        _lent.set(submitter)


def _runs_cells(thread: threading.Thread) -> bool:
    is_of_kernel = type(thread).__module__.startswith("ipykernel.")
    return is_of_kernel or thread is threading.main_thread()


# Other ways of passing work on.

_records: WeakKeyDictionary[Any, Submitter] = WeakKeyDictionary()
"""Submitters of log records that wait for a listener, which may use any kind of queue."""


def _route_listener(module: Any, patches: Patches) -> None:
    patches.replace(module.QueueHandler, "enqueue", _enqueue)
    patches.replace(module.QueueListener, "handle", _handle)


def _enqueue(plain: Plain) -> Plain:
    def enqueue(self: Any, record: Any) -> None:
        _records[record] = Submitter.here()
        plain(self, record)

    return enqueue


def _handle(plain: Plain) -> Plain:
    def handle(self: Any, record: Any) -> None:
        with (_records.pop(record, None) or Submitter.here()).at_work():
            plain(self, record)

    return handle


def _route_bars(module: Any, patches: Patches) -> None:
    """Attribute progress bars that tqdm's monitor thread redraws to their creators."""
    patches.replace(module.tqdm, "__new__", _new_bar)
    patches.replace(module.tqdm, "refresh", _refresh)


def _new_bar(plain: Plain) -> Plain:
    def __new__(cls: Any, *args: Any, **options: Any) -> Any:
        made = plain(cls, *args, **options)
        setattr(made, SUBMITTER, Submitter.here())
        return made

    return __new__


def _refresh(plain: Plain) -> Plain:
    as_made = _as_submitted(plain)

    def refresh(self: Any, *args: Any, **options: Any) -> Any:
        is_seen_to = threading.current_thread() is self.monitor
        return (as_made if is_seen_to else plain)(self, *args, **options)

    return refresh


ROUTES = {
    "multiprocessing.pool": _route_pool,
    "multiprocess.pool": _route_pool,
    "concurrent.futures.process": _route_executor,
    "joblib.externals.loky.process_executor": _route_executor,
    "loky.process_executor": _route_executor,
    "logging.handlers": _route_listener,
    "tqdm.std": _route_bars,
}
