"""``redirect_stdout`` and ``%%capture``: in a task they hold for the task alone.

In the foreground they assign to ``sys``, which does not reach tasks.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from IPython.utils.capture import CapturedIO, capture_output

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind
from ipytaskpersist.capture.streams import Redirect, RoutedText, route_present
from ipytaskpersist.running.running_task import active_task, redirects


def install(patches: Patches) -> None:
    """Make redirections hold for the context that makes them."""
    base = contextlib._RedirectStream
    patches.replace(base, "__enter__", _redirect_enter)
    patches.replace(base, "__exit__", partial(_redirect_exit, patches))
    patches.replace(capture_output, "__enter__", _capture_enter)
    patches.replace(capture_output, "__exit__", partial(_capture_exit, patches))


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
    """What stands before the streams of a process task for as long as it redirects its own.

    In a kernel `system_attributes` has put routers there for good.
    """

    def __init__(self) -> None:
        self._count = Counter[OutputKind]()
        self._placed: dict[OutputKind, RoutedText] = {}
        self._lock = threading.Lock()

    def begin(self, kind: OutputKind) -> None:
        """A task begins to redirect a stream."""
        with self._lock:
            self._count[kind] += 1
            # The dictionary, because the attribute is the task's own.
            stream = vars(sys)[kind.value]
            if not isinstance(stream, RoutedText):
                self._placed[kind] = RoutedText(stream, kind)
                vars(sys)[kind.value] = self._placed[kind]

    def end(self, kind: OutputKind) -> None:
        """A task's redirection ends; after the last one the stream itself is back."""
        with self._lock:
            self._count[kind] -= 1
            placed = self._placed.get(kind)
            if not self._count[kind] and placed is vars(sys)[kind.value]:
                vars(sys)[kind.value] = self._placed.pop(kind)._plain


_STANDING = _Standing()


def _redirect_enter(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def __enter__(self: Any) -> Any:
        if active_task.get() is None or self._stream not in STREAM_KINDS:
            return plain(self)
        previous = _Previous()
        self._old_targets.append(previous)
        previous.redirect({OutputKind(self._stream): self._new_target})
        return self._new_target

    return __enter__


def _redirect_exit(patches: Patches, plain: Callable[..., None]) -> Callable[..., None]:
    def __exit__(self: Any, *exception: Any) -> None:
        if self._old_targets and isinstance(self._old_targets[-1], _Previous):
            self._old_targets.pop().restore()
        else:
            plain(self, *exception)
            _route_again(patches)

    return __exit__


def _route_again(patches: Patches) -> None:
    """What is back may have been hidden when the extension was loaded."""
    if not patches.are_undone:
        route_present(patches)


def _capture_enter(plain: Callable[[Any], CapturedIO]) -> Callable[[Any], CapturedIO]:
    def __enter__(self: Any) -> CapturedIO:
        if active_task.get() is None:
            return plain(self)
        targets: dict[OutputKind, Any] = {
            OutputKind.STDOUT: io.StringIO() if self.stdout else None,
            OutputKind.STDERR: io.StringIO() if self.stderr else None,
            OutputKind.DISPLAY_DATA: [] if self.display else None,
        }
        previous = self._ipytaskpersist_previous = _Previous()
        previous.redirect({kind: to for kind, to in targets.items() if to is not None})
        return CapturedIO(*targets.values())

    return __enter__


def _capture_exit(patches: Patches, plain: Callable[..., None]) -> Callable[..., None]:
    def __exit__(self: Any, *exception: Any) -> None:
        previous = self.__dict__.pop("_ipytaskpersist_previous", None)
        if previous is None:
            plain(self, *exception)
            _route_again(patches)
        else:
            previous.restore()

    return __exit__
