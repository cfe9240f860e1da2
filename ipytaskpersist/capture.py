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
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from threading import get_ident
from time import sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any

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
    _route_errors(shell, patches)
    _refuse_input(shell, patches)
    if hasattr(shell, "_tee") and not _is_kernel_stream(sys.stdout):
        patches.set(shell, "_tee", _tee(shell._tee))
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


class RoutedText:
    """Stands in ``sys.stdout`` or ``sys.stderr`` before a stream that must not be changed."""

    def __init__(self, plain: Any, kind: OutputKind) -> None:
        self._plain = plain
        self.write = routed_write(kind, plain.write)

    def flush(self) -> None:
        """Flush the stream behind, for code that does not belong to a task."""
        if active_task.get() is None:
            self._plain.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


def _stand_before(name: str, kind: OutputKind) -> None:
    stream = getattr(sys, name)
    if stream is not None and not hasattr(getattr(stream, "write", None), "plain"):
        setattr(sys, name, RoutedText(stream, kind))


def _tee(plain_tee: Any) -> Any:
    """IPython's copying of a cell's output, kept behind the routing also in a terminal."""

    @contextmanager
    def tee(channel: str) -> Iterator[None]:
        kind, stream = OutputKind(channel), getattr(sys, channel)
        if not hasattr(stream.write, "plain"):
            stream.write = routed_write(kind, stream.write)
        with plain_tee(channel):
            stream.write = routed_write(kind, stream.write)
            yield

    return tee


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

    def restore(self) -> None:
        redirects.set(self.redirects)


def _redirect_enter(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def __enter__(self: Any) -> Any:
        if self._stream not in STREAM_KINDS:
            return plain(self)
        kind = OutputKind(self._stream)
        if active_task.get() is None:
            target = plain(self)
            _stand_before(self._stream, kind)
            return target
        self._old_targets.append(_Previous())
        redirects.set({**redirects.get(), kind: self._new_target})
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
        self._ipytaskpersist_previous = _Previous()
        targets: dict[OutputKind, Any] = {
            OutputKind.STDOUT: io.StringIO() if self.stdout else None,
            OutputKind.STDERR: io.StringIO() if self.stderr else None,
            OutputKind.DISPLAY_DATA: [] if self.display else None,
        }
        taken = {kind: target for kind, target in targets.items() if target is not None}
        redirects.set({**redirects.get(), **taken})
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
        if active_task.get() is not None:
            hide_own_frames(sys.exc_info()[1])
        plain_whole(*args, **options)

    patches.set(shell, "showtraceback", show_whole)


def hide_own_frames(error: BaseException | None) -> None:
    """Take the frames of this package out of the traceback of an error and of its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = _without_own(error.__traceback__)
        error = error.__cause__ or error.__context__


def _without_own(traceback: TracebackType | None) -> TracebackType | None:
    if traceback is None:
        return None
    rest = _without_own(traceback.tb_next)
    if traceback.tb_frame.f_code.co_filename.startswith(PACKAGE):
        return rest
    traceback.tb_next = rest
    return traceback


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
