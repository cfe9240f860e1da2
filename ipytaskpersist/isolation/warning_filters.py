"""Confine ``warnings.catch_warnings`` in a task to its block.

Before Python 3.14, it changes the filters of the whole process and restores those that it found.
When two blocks overlap, the last one to end leaves the other's filters in place for good.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.isolation.process_state import attribute, caught_warnings, give_class
from ipytaskpersist.running.running_task import active_task

NAMES = ("filters", "showwarning", "_showwarnmsg_impl")
"""Attributes of the module that a block changes and restores."""
KEEP = "_ipytaskpersist_block"


class Block:
    """The filters and hooks of one block of a task."""

    def __init__(self) -> None:
        module: Any = warnings
        self.outer = caught_warnings.get()
        for name in NAMES:
            setattr(self, name, getattr(module, name))


def install(patches: Patches) -> None:
    """Keep the blocks of tasks separate."""
    if sys.version_info >= (3, 14):
        return  # implemented differently there, with an option to use contexts
    give_class(warnings, {name: _attribute(name) for name in NAMES}, patches)
    for name, replacement in (
        ("_add_filter", _add_filter),
        ("resetwarnings", _resetwarnings),
        ("_showwarnmsg", _showwarnmsg),
    ):
        patches.replace(warnings, name, replacement)
    patches.replace(warnings.catch_warnings, "__enter__", _enter)
    patches.replace(warnings.catch_warnings, "__exit__", _exit)


def _attribute(name: str) -> property:
    def own() -> Any:
        return getattr(caught_warnings.get(), name, None)

    def set_own(value: Any) -> bool:
        block = caught_warnings.get()
        if block is not None:
            setattr(block, name, value)
        return block is not None

    return attribute(name, own, set_own)


def _enter(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def __enter__(self: Any) -> Any:
        if active_task.get() is not None and self._module is warnings and not self._entered:
            block = Block()
            setattr(self, KEEP, block)
            caught_warnings.set(block)
        return plain(self)

    return __enter__


def _exit(plain: Callable[..., None]) -> Callable[..., None]:
    def __exit__(self: Any, *raised: Any) -> None:
        block = vars(self).pop(KEEP, None)
        if block is None:
            plain(self, *raised)
        elif caught_warnings.get() is block:  # a generator may be closed in another context
            plain(self, *raised)
            caught_warnings.set(block.outer)

    return __exit__


# These functions use the module's globals, bypassing its class.


def _add_filter(plain: Callable[..., None]) -> Callable[..., None]:
    def _add_filter(*item: Any, append: bool) -> None:
        block = caught_warnings.get()
        if block is None:
            plain(*item, append=append)
            return
        if not append:
            block.filters[:] = [item, *(each for each in block.filters if each != item)]
        elif item not in block.filters:
            block.filters.append(item)
        _forget_shown()

    return _add_filter


def _resetwarnings(plain: Callable[[], None]) -> Callable[[], None]:
    def resetwarnings() -> None:
        block = caught_warnings.get()
        if block is None:
            plain()
        else:
            block.filters[:] = []
            _forget_shown()

    return resetwarnings


def _forget_shown() -> None:
    module: Any = warnings
    module._filters_mutated()


def _showwarnmsg(plain: Callable[[Any], None]) -> Callable[[Any], None]:
    def _showwarnmsg(msg: Any) -> None:
        module: Any = warnings
        block = caught_warnings.get()
        if block is None:
            plain(msg)
        elif block.showwarning is module._showwarning_orig:
            block._showwarnmsg_impl(msg)
        else:
            block.showwarning(
                msg.message, msg.category, msg.filename, msg.lineno, msg.file, msg.line
            )

    return _showwarnmsg
