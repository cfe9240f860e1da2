"""Streams that ask, with each write, to which task the writer belongs."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind
from ipytaskpersist.base.stand_ins import StandIn, is_stand_in, noted, plain_of, stand_in
from ipytaskpersist.capture.file_descriptors import WATCHERS, Watcher
from ipytaskpersist.running.running_task import FOREGROUND, active_task, redirects

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Route what is printed from now on."""
    route_present(patches)
    FOREGROUND.settle = WATCHERS.settle
    if hasattr(shell, "_tee"):
        patches.replace(shell, "_tee", partial(_tee, (sys.stdout, sys.stderr), patches))


def route_present(patches: Patches, *_event: object) -> None:
    """Route the streams that are in ``sys`` now.

    Once is not enough: who loads the extension within ``%%capture`` has other streams afterwards.
    """
    for kind in STREAM_KINDS:
        stream = getattr(sys, kind.value)
        if stream is not None and not is_routed(stream):
            route_stream(stream, kind, patches)


def routed_write(kind: OutputKind, plain: Callable[[str], Any]) -> StandIn:
    """A ``write`` that asks to which task the caller belongs."""
    return stand_in(plain, _routing(kind, plain))


def _routing(kind: OutputKind, plain: Callable[[str], Any]) -> Callable[[str], Any]:
    belongs_to = active_task.get

    def write(text: str) -> Any:
        task = belongs_to()
        if task is None:
            watcher = WATCHERS.of_thread(get_ident())
            if watcher is None:
                return plain(text)
            text, task = watcher.arrived(text), FOREGROUND.only_task
        return plain(text) if task is None else task.write(kind, text)

    return write


def is_kernel_stream(stream: Any) -> bool:
    """Whether a stream is one that a kernel has made for its cells."""
    return type(stream).__module__.startswith("ipykernel.")


def route_stream(stream: Any, kind: OutputKind, patches: Patches) -> None:
    """Make one stream object ask, in place."""
    if is_kernel_stream(stream):
        _route_kernel_stream(stream, kind, patches)
    elif hasattr(stream, "__dict__") and not is_stand_in(stream.write):
        patches.stand_in(stream, "write", partial(_routing, kind))


def _route_kernel_stream(stream: Any, kind: OutputKind, patches: Patches) -> None:
    """Give ipykernel's stream a class in which ``write`` is a property.

    IPython (from 9.0) sets ``stream.write`` anew with each cell and puts its own back at the
    end. The property takes what it sets as the plain way, and stays in front of it: otherwise
    what tasks print during a cell would also pile up in that cell's history.
    """
    plain_class = type(stream)
    if getattr(plain_class, "_ipytaskpersist_kind", None) is not None:
        return
    plain = stream.__dict__.pop("write", stream.write)
    stream.__class__ = _routed_class(plain_class, kind)
    stream.write = plain
    if getattr(stream, "watch_fd_thread", None) is not None:
        _follow_watcher(stream, patches)

    def undo() -> None:
        write = stream.__dict__.pop("_ipytaskpersist_write")._plain
        stream.__class__ = plain_class
        if getattr(write, "__func__", None) is not plain_class.write:
            stream.write = write

    patches.on_undo(undo)


def _follow_watcher(stream: Any, patches: Patches) -> None:
    watcher = stream._ipytaskpersist_watcher = Watcher(stream)
    WATCHERS.add(watcher)
    patches.on_undo(partial(WATCHERS.remove, watcher))
    patches.on_undo(partial(stream.__dict__.pop, "_ipytaskpersist_watcher"))
    watcher.wake()


def _routed_class(plain_class: type, kind: OutputKind) -> type:
    def set_write(self: Any, write: Any) -> None:
        self.__dict__["_ipytaskpersist_write"] = routed_write(kind, plain_of(write))

    def flush(self: Any) -> None:
        # What a task prints is on its way to the store at once: there is nothing to push.
        if active_task.get() is None:
            plain_class.flush(self)  # type: ignore[attr-defined]

    def fileno(self: Any) -> int:
        task = active_task.get()
        if task is None:
            return int(plain_class.fileno(self))  # type: ignore[attr-defined]
        return task.children.stream(kind)

    def read_end(self: Any) -> int | None:
        watcher = self.__dict__.get("_ipytaskpersist_watcher")
        if watcher is None or get_ident() != watcher.thread.ident:
            own: int | None = self.__dict__["_fid"]
            return own
        return int(watcher.next_descriptor())

    namespace = {
        "_fid": property(read_end),
        "write": property(attrgetter("_ipytaskpersist_write"), set_write),
        "flush": flush,
        "fileno": fileno,
        "_ipytaskpersist_kind": kind,
        "__module__": plain_class.__module__,
        "__qualname__": plain_class.__qualname__,
    }
    return type(plain_class.__name__, (plain_class,), namespace)


@dataclass(slots=True)
class Redirect:
    """Where a task's context sends one of its streams."""

    target: Any
    """A file, or None to drop what is printed. What the block assigns to the stream replaces it."""
    outer: dict[OutputKind, Any]
    """What held before: it holds for the target too, which may copy to the stream before it."""

    def write(self, text: str) -> Any:
        """Write to the target."""
        if self.target is None:
            return len(text)
        token = redirects.set(self.outer)
        try:
            return self.target.write(text)
        finally:
            redirects.reset(token)


_recent: deque[RoutedText] = deque(maxlen=256)
"""Kept a while after the last use: up to Python 3.13 `print` holds no reference of its own to what
it has found in ``sys.stdout``, and would crash when a redirection ends in another thread."""


class RoutedText:
    """Stands in ``sys.stdout`` or ``sys.stderr``, and asks who prints and what that has there.

    Only what is printed through ``sys`` comes here: a log handler that holds the stream itself is
    not redirected, in a task as in the foreground.
    """

    def __init__(self, plain: Any, kind: OutputKind) -> None:
        self._plain = plain
        self._kind = kind
        self.write = self._writing()
        _recent.append(self)

    @property
    def _behind(self) -> Any:
        """What the calling context has in place of this."""
        redirect = redirects.get().get(self._kind)
        if redirect is not None:
            return redirect.target
        task = active_task.get()
        return self._plain if task is None else task.assigned.get(self._kind, self._plain)

    def _writing(self) -> Callable[[str], Any]:
        """Return ``write``: to the context's redirection, the task, or the stream behind.

        A closure, which a print reaches in half the time of a method. Most code redirects and
        assigns nothing, and looking up a member of an enumeration costs as much as the rest.
        """
        kind, redirections, current = self._kind, redirects.get, active_task.variable.get

        def write(text: str) -> Any:
            redirected = redirections()
            redirect = redirected.get(kind) if redirected else None
            if redirect is not None:
                return redirect.write(text)
            task = current()
            if task is None or task.has_ended:
                stream = self._plain
            elif not task.assigned or (stream := task.assigned.get(kind, self)) is self:
                return task.write(kind, text)
            return len(text) if stream is None else stream.write(text)

        return noted(write)

    @noted
    def flush(self) -> None:
        """Flush what is behind, for code that does not print to a task."""
        behind = self._behind
        if behind is not None and (behind is not self._plain or active_task.get() is None):
            behind.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


def is_routed(stream: Any) -> bool:
    """Return whether a stream routes by the calling task, and was not replaced."""
    return isinstance(stream, RoutedText) or is_stand_in(getattr(stream, "write", None))


def _tee(own_streams: tuple[Any, Any], patches: Patches, plain: Any) -> Any:
    """IPython's copying of a cell's output, kept behind the routing also in a terminal.

    What IPython restores at a cell's end is what it found at its beginning, so in a cell that has
    unloaded the extension the routing is taken away once more.
    """

    @contextmanager
    def tee(channel: str) -> Iterator[None]:
        kind = OutputKind(channel)
        stream: Any = sys.stdout if kind is OutputKind.STDOUT else sys.stderr
        # What code has assigned there is left alone.
        is_own = any(stream is own for own in own_streams) and not is_kernel_stream(stream)
        if is_own and not is_stand_in(stream.write):
            stream.write = routed_write(kind, stream.write)
        with plain(channel):
            if is_own:
                stream.write = routed_write(kind, stream.write)
            yield
        if patches.are_undone:
            _unroute(stream)

    return tee


def _unroute(stream: Any) -> None:
    write: Any = stream.__dict__.get("write")
    if not is_stand_in(write):
        return
    write = plain_of(write)
    is_of_class = getattr(write, "__self__", None) is stream
    if is_of_class:
        del stream.write
    else:
        stream.write = write
