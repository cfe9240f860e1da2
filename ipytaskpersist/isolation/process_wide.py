"""What Python keeps once for a process, and what a task may set for its own process alone."""

from __future__ import annotations

import gc
import locale
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any


def settings() -> dict[str, Any]:
    """Return the present settings, by what they are called in messages."""
    found = {
        "the recursion limit": sys.getrecursionlimit(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "when garbage is collected": (gc.isenabled(), gc.get_threshold()),
        **dict(_handlers_of_signals()),
        **dict(_limits()),
        **dict(_handlers_of_loggers()),
    }
    socket: Any = sys.modules.get("socket")
    if socket is not None:
        found["the default timeout of sockets"] = socket.getdefaulttimeout()
    return found


def changed(before: dict[str, Any]) -> list[str]:
    """Return which settings have changed."""
    now = settings()
    # What was not there before, such as a logger, had nothing.
    return [name for name in now if now[name] != before.get(name, _of_nothing(now[name]))]


def _of_nothing(value: Any) -> Any:
    return [] if isinstance(value, list) else None


def _handlers_of_signals() -> Iterator[tuple[str, Any]]:
    for number, shown in _signals().items():
        with suppress(ValueError):
            yield shown, signal.getsignal(number)


@cache
def _signals() -> dict[int, str]:
    """Return what the handler of each signal is called."""
    names = {each.value: each.name for each in signal.Signals}
    return {
        number: f"the handler of {names.get(number, f'signal {number}')}"
        for number in map(int, signal.valid_signals())
    }


def _limits() -> Iterator[tuple[str, Any]]:
    with suppress(ImportError):
        import resource

        for name, number in vars(resource).items():
            if name.startswith("RLIMIT_"):
                yield f"the limit {name}", resource.getrlimit(number)


def _handlers_of_loggers() -> Iterator[tuple[str, Any]]:
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return
    yield "the handlers of logging", [*logging.root.handlers]
    for name, logger in [*logging.root.manager.loggerDict.items()]:
        handlers = getattr(logger, "handlers", None)
        # Not what a library gives a logger of its own when it is imported.
        if handlers and not all(type(each) is logging.NullHandler for each in handlers):
            yield f"the handlers of logging {name}", [*handlers]
