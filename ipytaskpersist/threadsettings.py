"""Settings that a library keeps for each thread apart, from cell to cell.

What a foreground cell sets holds for the cells after it, though a task of them runs in a thread of
its own. So a task begins with what holds in the foreground when it is launched, and with what ended
tasks have set. What a task sets is the foreground's from its next cell on, as far as the foreground
has not set it anew.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Any

from ipytaskpersist import libraries
from ipytaskpersist.active import start_outside

_UNSET = object()
ThreadSetting = tuple[str, str]
"""The library that keeps it, by its name in `libraries`, and its name there."""
Settings = dict[ThreadSetting, Any]
LIBRARIES = [name for name, library in libraries.LIBRARIES.items() if library.is_of_thread]


def _read() -> Settings:
    """The calling thread's settings of all libraries that are imported."""
    return {
        (name, setting): value
        for name in LIBRARIES
        if name in sys.modules
        for setting, value in libraries.read(name).items()
    }


def _change(settings: Settings) -> None:
    for (name, setting), value in settings.items():
        libraries.write(name, {setting: value})


def _defaults() -> Settings:
    """The settings of a thread that has changed none."""
    settings: Settings = {}
    thread = threading.Thread(target=lambda: settings.update(_read()), daemon=True)
    if start_outside(thread):
        thread.join()
    return settings


@dataclass(frozen=True, slots=True)
class Launched:
    """What held when a task was launched."""

    foreground: Settings
    """In the thread that launched it."""
    task: Settings
    """For the task: the same, and what ended tasks have set."""


class ThreadSettings:
    """The settings of one notebook's tasks."""

    def __init__(self) -> None:
        self._set: dict[ThreadSetting, tuple[Any, Any]] = {}
        """What ended tasks have set, each with the foreground's value when they were launched."""
        self._given: Settings = {}
        """What the foreground was last given of it."""
        self._lock = threading.Lock()

    def at_launch(self) -> Launched:
        """What a task begins with that the calling thread launches now."""
        foreground = _read()
        with self._lock:
            return Launched(foreground, foreground | self._not_set_anew(foreground))

    def begin(self, launched: Launched) -> None:
        """Set what a task begins with, in its thread."""
        _change(launched.task)

    def keep(self, launched: Launched) -> None:
        """Keep what a task has set, in its thread, at its end."""
        ended = _read()
        if not ended.keys() <= launched.task.keys():  # it was the first to import the library
            defaults = _defaults()
            launched = Launched(defaults | launched.foreground, defaults | launched.task)
        with self._lock:
            for key, value in ended.items():
                if value is not launched.task.get(key, _UNSET):
                    self._set[key] = (value, launched.foreground.get(key, _UNSET))

    def before_cell(self, *_event: object) -> None:
        """Set in the foreground, whose thread calls this, what ended tasks have set."""
        with self._lock:
            settings = self._not_set_anew(_read()) if self._set else {}
            self._set.clear()
            self._given.update(settings)
        _change(settings)

    def _not_set_anew(self, foreground: Settings) -> Settings:
        """What ended tasks have set, where the foreground has not set it since."""
        return {
            key: value
            for key, (value, before) in self._set.items()
            if (now := foreground.get(key, _UNSET)) is before or now is self._given.get(key, before)
        }
