"""Route what code prints and displays to the task to which it belongs.

Nothing is captured by replacing ``sys.stdout`` while a task runs: that would catch what the
foreground prints meanwhile. Instead the objects that everybody prints to learn to ask, with each
write, which task the writing context belongs to. Handlers that hold such an object since before
the task began are therefore routed too.
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import getpass
import io
import select
import sys
import threading
import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from threading import get_ident
from time import sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.error import StdinNotImplementedError
from IPython.utils.capture import CapturedIO, capture_output

from ipytaskpersist.active import FOREGROUND, ActiveTask, active_task, redirects
from ipytaskpersist.errors import TaskCancelled
from ipytaskpersist.patches import Patches
from ipytaskpersist.records import STREAM_KINDS, OutputKind

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

SETTLE_S = 0.02
LAST_ERROR = ("last_type", "last_value", "last_traceback", "last_exc")
PACKAGE = str(Path(__file__).parent)
_watchers: dict[int | None, int] = {}
"""The kernel's threads that read what C code writes to file descriptors 1 and 2, each with the file
descriptor that it reads. Nothing in what they read says who has written it."""
_displayed_by: dict[str, ActiveTask] = {}
"""Which task first showed a display with this id: updates go there, whoever makes them."""


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Route from now on, until the patches are undone."""
    for kind in STREAM_KINDS:
        route_stream(getattr(sys, kind.value), kind, patches)
    _route_redirections(patches)
    _route_displays(shell, patches)
    _route_results(shell, patches)
    _route_errors(shell, patches)
    _refuse_input(shell, patches)
    if hasattr(shell, "_tee"):
        patches.set(shell, "_tee", _tee(shell._tee, patches))
    _route_prompt(patches)
    for event, call in (
        ("pre_execute", FOREGROUND.begin_cell),
        ("post_execute", FOREGROUND.end_cell),
    ):
        shell.events.register(event, call)
        patches.on_undo(partial(shell.events.unregister, event, call))


# Streams.


def routed_write(kind: OutputKind, plain: Callable[[str], Any]) -> Callable[[str], Any]:
    """A ``write`` that asks to which task the caller belongs."""

    belongs_to = active_task.get

    def write(text: str) -> Any:
        task = belongs_to()
        if task is None:
            if get_ident() not in _watchers:
                return plain(text)
            task = FOREGROUND.only_task
        return plain(text) if task is None else task.write(kind, text)

    write.plain = plain  # type: ignore[attr-defined]
    return write


def settle(task: ActiveTask) -> None:
    """Let the kernel's watchers read what the ending task has written past Python."""
    deadline = time.monotonic() + SETTLE_S
    was_readable = False
    while _watchers and FOREGROUND.only_task is task and time.monotonic() < deadline:
        if not select.select(list(_watchers.values()), [], [], 0)[0]:
            if was_readable:
                sleep(SETTLE_S / 20)  # what was read has still to be recorded
            return
        was_readable = True
        sleep(SETTLE_S / 20)


def _is_kernel_stream(stream: Any) -> bool:
    return type(stream).__module__.startswith("ipykernel.")


def route_stream(stream: Any, kind: OutputKind, patches: Patches) -> None:
    """Make one stream object ask, in place."""
    if _is_kernel_stream(stream):
        _route_kernel_stream(stream, kind, patches)
    elif hasattr(stream, "__dict__") and not hasattr(stream.write, "plain"):
        patches.set(stream, "write", routed_write(kind, stream.write))


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
    watcher = getattr(stream, "watch_fd_thread", None)
    if watcher is not None:
        _watchers[watcher.ident] = stream._fid
        patches.on_undo(partial(_watchers.__delitem__, watcher.ident))

    def undo() -> None:
        write = stream.__dict__.pop("_ipytaskpersist_write").plain
        stream.__class__ = plain_class
        if getattr(write, "__func__", None) is not plain_class.write:
            stream.write = write

    patches.on_undo(undo)


def _routed_class(plain_class: type, kind: OutputKind) -> type:
    def set_write(self: Any, write: Any) -> None:
        plain = getattr(write, "plain", write)
        self.__dict__["_ipytaskpersist_write"] = routed_write(kind, plain)

    def flush(self: Any) -> None:
        # What a task prints is on its way to the store at once: there is nothing to push.
        if active_task.get() is None:
            plain_class.flush(self)  # type: ignore[attr-defined]

    def fileno(self: Any) -> int:
        task = active_task.get()
        if task is None:
            return int(plain_class.fileno(self))  # type: ignore[attr-defined]
        return task.children.stream(kind)

    namespace = {
        "write": property(attrgetter("_ipytaskpersist_write"), set_write),
        "flush": flush,
        "fileno": fileno,
        "_ipytaskpersist_kind": kind,
        "__module__": plain_class.__module__,
        "__qualname__": plain_class.__qualname__,
    }
    return type(plain_class.__name__, (plain_class,), namespace)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a task's context sends one of its streams."""

    target: Any
    """A file, or None to drop what is printed."""
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


class RoutedText:
    """Stands in ``sys.stdout`` or ``sys.stderr``, and asks who prints and whether it redirects.

    Only what is printed through ``sys`` comes here: a log handler that holds the stream itself is
    not redirected, in a task as in the foreground.
    """

    def __init__(self, plain: Any, kind: OutputKind) -> None:
        self._plain = plain
        self._kind = kind

    @property
    def _behind(self) -> Any:
        """What the calling context has in place of this."""
        redirect = redirects.get().get(self._kind)
        return self._plain if redirect is None else redirect.target

    def write(self, text: str) -> Any:
        """Write to where the calling context redirects, to its task, or to the stream behind."""
        redirect = redirects.get().get(self._kind)
        if redirect is not None:
            return redirect.write(text)
        task = active_task.get()
        return self._plain.write(text) if task is None else task.write(self._kind, text)

    def flush(self) -> None:
        """Flush what is behind, for code that does not print to a task."""
        behind = self._behind
        if behind is not None and (behind is not self._plain or active_task.get() is None):
            behind.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


def _stand_before(name: str, kind: OutputKind) -> None:
    """Put a `RoutedText` before what is in ``sys`` now, unless one is there."""
    stream = getattr(sys, name)
    if stream is not None and not isinstance(stream, RoutedText):
        setattr(sys, name, RoutedText(stream, kind))


def _tee(plain_tee: Any, patches: Patches) -> Any:
    """IPython's copying of a cell's output, kept behind the routing also in a terminal.

    What IPython restores at a cell's end is what it found at its beginning, so in a cell that has
    unloaded the extension the routing is taken away once more.
    """

    @contextmanager
    def tee(channel: str) -> Iterator[None]:
        kind = OutputKind(channel)
        stream: Any = sys.stdout if kind is OutputKind.STDOUT else sys.stderr
        if not hasattr(stream.write, "plain"):
            stream.write = routed_write(kind, stream.write)
        with plain_tee(channel):
            if not _is_kernel_stream(stream):
                stream.write = routed_write(kind, stream.write)
            yield
        if patches.are_undone:
            _unroute(stream)

    return tee


def _unroute(stream: Any) -> None:
    write: Any = stream.__dict__.get("write")
    if not hasattr(write, "plain"):
        return
    while hasattr(write, "plain"):
        write = write.plain
    is_of_class = getattr(write, "__self__", None) is stream
    if is_of_class:
        del stream.write
    else:
        stream.write = write


def _route_prompt(patches: Patches) -> None:
    """While IPython's terminal waits at its prompt, both streams are one object of another kind."""
    terminal = sys.modules.get("IPython.terminal.interactiveshell")
    if terminal is None or not hasattr(terminal, "patch_stdout"):
        return
    plain = terminal.patch_stdout

    @contextmanager
    def patch_stdout(*args: Any, **kwargs: Any) -> Iterator[None]:
        with plain(*args, **kwargs):
            for kind in STREAM_KINDS:
                _stand_before(kind.value, kind)
            yield

    patches.set(terminal, "patch_stdout", patch_stdout)


# Redirections: in a task they hold for the task alone.


def _route_redirections(patches: Patches) -> None:
    base = contextlib._RedirectStream
    patches.set(base, "__enter__", _redirect_enter(base.__enter__))
    patches.set(base, "__exit__", _redirect_exit(base.__exit__))
    patches.set(capture_output, "__enter__", _capture_enter(capture_output.__enter__))
    patches.set(capture_output, "__exit__", _capture_exit(capture_output.__exit__))


class _Previous:
    """What a task's context had redirected before."""

    def __init__(self) -> None:
        self.redirects = redirects.get()

        self._streams: list[OutputKind] = []

    def redirect(self, targets: dict[OutputKind, Any]) -> None:
        """Redirect the calling context's streams, and catch its displays in a list."""
        redirected = dict(self.redirects)
        for kind, target in targets.items():
            if kind in STREAM_KINDS:
                _STANDING.begin(kind)
                self._streams.append(kind)
                redirected[kind] = Redirect(target, self.redirects)
            else:
                redirected[kind] = target
        redirects.set(redirected)

    def restore(self) -> None:
        """End the redirection."""
        redirects.set(self.redirects)
        for kind in self._streams:
            _STANDING.end(kind)


class _Standing:
    """What stands before the kernel's streams for as long as any task redirects its own."""

    def __init__(self) -> None:
        self._count = Counter[OutputKind]()
        self._placed: dict[OutputKind, RoutedText] = {}
        self._lock = threading.Lock()

    def begin(self, kind: OutputKind) -> None:
        """A task begins to redirect a stream."""
        with self._lock:
            self._count[kind] += 1
            stream = getattr(sys, kind.value)
            if not isinstance(stream, RoutedText):
                self._placed[kind] = RoutedText(stream, kind)
                setattr(sys, kind.value, self._placed[kind])

    def end(self, kind: OutputKind) -> None:
        """A task's redirection ends; after the last one the stream itself is back."""
        with self._lock:
            self._count[kind] -= 1
            placed = self._placed.get(kind)
            if not self._count[kind] and placed is getattr(sys, kind.value):
                setattr(sys, kind.value, self._placed.pop(kind)._plain)


_STANDING = _Standing()


def _redirect_enter(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def __enter__(self: Any) -> Any:
        if self._stream not in STREAM_KINDS:
            return plain(self)
        kind = OutputKind(self._stream)
        if active_task.get() is None:
            target = plain(self)
            _stand_before(self._stream, kind)
            return target
        previous = _Previous()
        self._old_targets.append(previous)
        previous.redirect({kind: self._new_target})
        return self._new_target

    return __enter__


def _redirect_exit(plain: Callable[..., None]) -> Callable[..., None]:
    def __exit__(self: Any, *exception: Any) -> None:
        if self._old_targets and isinstance(self._old_targets[-1], _Previous):
            self._old_targets.pop().restore()
        else:
            plain(self, *exception)

    return __exit__


def _capture_enter(plain: Callable[[Any], CapturedIO]) -> Callable[[Any], CapturedIO]:
    def __enter__(self: Any) -> CapturedIO:
        if active_task.get() is None:
            captured = plain(self)
            for kind in STREAM_KINDS:
                _stand_before(kind.value, kind)
            return captured
        targets: dict[OutputKind, Any] = {
            OutputKind.STDOUT: io.StringIO() if self.stdout else None,
            OutputKind.STDERR: io.StringIO() if self.stderr else None,
            OutputKind.DISPLAY_DATA: [] if self.display else None,
        }
        previous = self._ipytaskpersist_previous = _Previous()
        previous.redirect({kind: to for kind, to in targets.items() if to is not None})
        return CapturedIO(*targets.values())

    return __enter__


def _capture_exit(plain: Callable[..., None]) -> Callable[..., None]:
    def __exit__(self: Any, *exception: Any) -> None:
        previous = self.__dict__.pop("_ipytaskpersist_previous", None)
        if previous is None:
            plain(self, *exception)
        else:
            previous.restore()

    return __exit__


# Displays.


def _route_displays(shell: InteractiveShell, patches: Patches) -> None:
    publisher: Any = shell.display_pub
    patches.set(publisher, "publish", _publish(publisher.publish))
    patches.set(publisher, "clear_output", _clear_output(publisher.clear_output))
    # The foreground's %%capture puts one of these in the publisher's place.
    capturing: Any = CapturingDisplayPublisher
    patches.set(capturing, "publish", _publish_of_class(capturing.publish))
    patches.set(capturing, "clear_output", _clear_output_of_class(capturing.clear_output))
    patches.on_undo(_displayed_by.clear)


def _publish(plain: Callable[..., None]) -> Callable[..., None]:
    def publish(data: Any, metadata: Any = None, *args: Any, **options: Any) -> None:
        if not publish_for_task(data, metadata, options):
            plain(data, metadata, *args, **options)

    return publish


def _publish_of_class(plain: Callable[..., None]) -> Callable[..., None]:
    def publish(self: Any, data: Any, metadata: Any = None, *args: Any, **options: Any) -> None:
        if not publish_for_task(data, metadata, options):
            plain(self, data, metadata, *args, **options)

    return publish


def _clear_output(plain: Callable[..., None]) -> Callable[..., None]:
    def clear_output(wait: bool = False) -> None:
        if not _clear_for_task(wait):
            plain(wait)

    return clear_output


def _clear_output_of_class(plain: Callable[..., None]) -> Callable[..., None]:
    def clear_output(self: Any, wait: bool = False) -> None:
        if not _clear_for_task(wait):
            plain(self, wait)

    return clear_output


def publish_for_task(data: Any, metadata: Any, options: dict[str, Any]) -> bool:
    """Record a display for the task that it belongs to. Returns False when the front end gets it.

    An update belongs to the task that first showed the display. A task that updates a display of
    the foreground has named it by its id, and means it.
    """
    task = active_task.get()
    transient = options.get("transient") or {}
    display_id, update = transient.get("display_id"), bool(options.get("update"))
    owner = _displayed_by.get(display_id, task) if display_id else task
    if update and display_id not in _displayed_by:
        return False
    if task is None and not update:
        return False
    assert owner is not None
    content = {"data": clean(data), "metadata": metadata or {}, "transient": transient}
    captured = redirects.get().get(OutputKind.DISPLAY_DATA)
    if task is not None and captured is not None:
        captured.append({**content, "update": update})
        return True
    if display_id and not update and task is not None:
        _displayed_by[display_id] = task
    record_display(owner, content, update=update)
    return task is not None


def record_display(task: ActiveTask, content: dict[str, Any], *, update: bool = False) -> None:
    """Record a display, after what the task's children have printed before it."""
    if task.children.in_child:
        task.write(OutputKind.STDOUT, str(content["data"].get("text/plain", "")) + "\n")
        return
    task.children.drain()
    kind = OutputKind.UPDATE_DISPLAY_DATA if update else OutputKind.DISPLAY_DATA
    task.recording.add(kind, content)


def _clear_for_task(wait: bool) -> bool:
    task = active_task.get()
    if task is None:
        return False
    task.recording.add(OutputKind.CLEAR_OUTPUT, {"wait": wait})
    return True


def clean(data: Any) -> dict[str, Any]:
    """A MIME bundle as JSON can hold it: bytes become base64, as in a notebook file."""
    return {
        mime: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for mime, value in dict(data).items()
    }


# Results.


def _route_results(shell: InteractiveShell, patches: Patches) -> None:
    """Make IPython's display hook, and with it ``sys.displayhook``, show a task's values to it."""
    classes: list[Any] = [DisplayHook]
    if "ipykernel.displayhook" in sys.modules:
        # What a kernel has in `sys.displayhook` while no cell runs.
        classes.append(sys.modules["ipykernel.displayhook"].ZMQDisplayHook)
    for hook_class in classes:
        patches.set(hook_class, "__call__", _display_hook(shell, hook_class.__call__))
    # What is there only while a cell runs, `get_ipython` without an import, is there for tasks.
    shell.builtin_trap.__enter__()
    patches.on_undo(partial(shell.builtin_trap.__exit__, None, None, None))


def _display_hook(shell: InteractiveShell, plain: Callable[..., None]) -> Callable[..., None]:
    def __call__(self: Any, value: Any = None) -> None:
        task = active_task.get()
        if task is None:
            plain(self, value)
        else:
            show_result(shell, task, value)

    return __call__


def show_result(shell: Any, task: ActiveTask, value: Any) -> str | None:
    """Record a value as a cell's result is shown. Returns its text form; None for no value."""
    if value is None:
        return None
    shown_before = task.shown_error
    data, metadata = shell.display_formatter.format(value)
    # A value whose repr fails shows that, but its cell has not failed.
    task.shown_error = shown_before
    if not data:
        return ""
    content = {"data": clean(data), "metadata": metadata}
    captured = redirects.get().get(OutputKind.DISPLAY_DATA)
    if captured is not None:
        captured.append(content)
    else:
        task.children.drain()
        content["execution_count"] = task.record.execution_count
        task.recording.add(OutputKind.EXECUTE_RESULT, content)
    return str(data.get("text/plain", ""))


# Errors and input.


def _route_errors(shell: InteractiveShell, patches: Patches) -> None:
    plain = shell._showtraceback

    def show(etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        task = active_task.get()
        if task is None:
            plain(etype, evalue, stb)
        elif not (task.cancelled and isinstance(evalue, TaskCancelled | CancelledError)):
            task.show_error(etype.__name__, str(evalue), list(stb))

    patches.set(shell, "_showtraceback", show)
    plain_whole = shell.showtraceback

    def show_whole(*args: Any, **options: Any) -> None:
        if active_task.get() is None:
            plain_whole(*args, **options)
            return
        hide_own_frames(sys.exc_info()[1])
        last = {name: getattr(sys, name) for name in LAST_ERROR if hasattr(sys, name)}
        try:
            plain_whole(*args, **options)
        finally:
            # What %tb and %debug look at is the foreground's own last error.
            for name in LAST_ERROR:
                if name in last:
                    setattr(sys, name, last[name])
                elif hasattr(sys, name):
                    delattr(sys, name)

    patches.set(shell, "showtraceback", show_whole)


def hide_own_frames(error: BaseException | None) -> None:
    """Take the frames of this package out of the traceback of an error and of its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = _without_own(error.__traceback__)
        error = error.__cause__ or error.__context__


def _without_own(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and _is_own(traceback):
        traceback = traceback.tb_next
    kept = traceback
    while kept is not None:
        while kept.tb_next is not None and _is_own(kept.tb_next):
            kept.tb_next = kept.tb_next.tb_next
        kept = kept.tb_next
    return traceback


def _is_own(traceback: TracebackType) -> bool:
    return traceback.tb_frame.f_code.co_filename.startswith(PACKAGE)


def _refuse_input(shell: InteractiveShell, patches: Patches) -> None:
    kernel = getattr(shell, "kernel", None)
    owners: list[tuple[Any, str]] = [(builtins, "input"), (getpass, "getpass")]
    if kernel is not None:
        owners += [(kernel, "raw_input"), (kernel, "getpass")]
    for owner, name in owners:
        patches.set(owner, name, _refusing(getattr(owner, name), name))
    if kernel is not None:
        # While a cell runs the kernel keeps the interpreter's own functions here, and puts them
        # back at the cell's end: after that they are what a task would call.
        for name in ("_sys_raw_input", "_save_getpass"):
            plain = getattr(kernel, name, None)
            if plain is not None:
                setattr(kernel, name, _refusing(plain, name))
                patches.on_undo(partial(setattr, kernel, name, plain))


def _refusing(plain: Callable[..., str], name: str) -> Callable[..., str]:
    asked = "getpass()" if name.endswith("getpass") else "input()"

    def ask(*args: Any, **kwargs: Any) -> str:
        task = active_task.get()
        if task is None:
            return plain(*args, **kwargs)
        raise StdinNotImplementedError(
            f"{asked} was called in background task {task.record.label}, which has no keyboard; "
            "ask in a foreground cell and use the variable in the background"
        )

    return ask
