"""Settings that a library keeps for each thread, carried from cell to cell.

A foreground setting applies to later cells, although a task's cell runs in another thread. So a
task begins with the foreground's settings at its launch and with those of ended tasks. Its own
settings apply to the foreground from the next cell on, unless the foreground has changed them.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Any

from ipytaskpersist.base.threads import start_outside
from ipytaskpersist.isolation import library_settings

_UNSET = object()
ThreadSetting = tuple[str, str]
"""A library's name in `library_settings`, and the setting's name."""
Settings = dict[ThreadSetting, Any]
LIBRARIES = [name for name, library in library_settings.LIBRARIES.items() if library.is_of_thread]


def _read() -> Settings:
    """Return the calling thread's settings of all imported libraries."""
    return {
        (name, setting): value
        for name in LIBRARIES
        if name in sys.modules
        for setting, value in library_settings.read(name).items()
    }


def _change(settings: Settings) -> None:
    for (name, setting), value in settings.items():
        library_settings.write(name, {setting: value})


def _defaults() -> Settings:
    """Return the settings of a thread that has changed none."""
    settings: Settings = {}
    thread = threading.Thread(target=lambda: settings.update(_read()), daemon=True)
    if start_outside(thread):
        thread.join()
    return settings


@dataclass(frozen=True, slots=True)
class Launched:
    """The settings when a task was launched."""

    foreground: Settings
    """Settings of the launching thread."""
    task: Settings
    """Settings of the task: the same, updated with those of ended tasks."""


class ThreadSettings:
    """The settings of one notebook's tasks."""

    def __init__(self) -> None:
        self._set: dict[ThreadSetting, tuple[Any, Any]] = {}
        """Values set by ended tasks, each with the foreground's value at their launch."""
        self._given: Settings = {}
        """Values last passed to the foreground."""
        self._lock = threading.Lock()

    def at_launch(self) -> Launched:
        """Return the initial settings of a task that the calling thread launches now."""
        foreground = _read()
        with self._lock:
            return Launched(foreground, foreground | self._not_set_anew(foreground))

    def begin(self, launched: Launched) -> None:
        """Apply a task's initial settings in its thread."""
        _change(launched.task)

    def keep(self, launched: Launched) -> None:
        """Keep the settings that a task has changed. Called in its thread at its end."""
        ended = _read()
        if not ended.keys() <= launched.task.keys():  # the task was the first to import the library
            defaults = _defaults()
            launched = Launched(defaults | launched.foreground, defaults | launched.task)
        with self._lock:
            for key, value in ended.items():
                if value is not launched.task.get(key, _UNSET):
                    self._set[key] = (value, launched.foreground.get(key, _UNSET))

    def before_cell(self, *_event: object) -> None:
        """Apply the settings of ended tasks to the foreground, in whose thread this is called."""
        with self._lock:
            settings = self._not_set_anew(_read()) if self._set else {}
            self._set.clear()
            self._given.update(settings)
        _change(settings)

    def _not_set_anew(self, foreground: Settings) -> Settings:
        """Return the settings of ended tasks that the foreground has not changed since."""
        return {
            key: value
            for key, (value, before) in self._set.items()
            if (now := foreground.get(key, _UNSET)) is before or now is self._given.get(key, before)
        }
