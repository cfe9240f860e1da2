"""The objects that an error keeps alive: the local variables of all frames in its traceback.

An ended task's error is kept, with its traceback. The frames need not keep their variables.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

PAUSING = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_OWNERS = {
    GeneratorType: "gi_frame",
    CoroutineType: "cr_frame",
    AsyncGeneratorType: "ag_frame",
}
# The interpreter's own attributes, whatever the error's class defines.
_cause: Any = BaseException.__dict__["__cause__"].__get__
_context: Any = BaseException.__dict__["__context__"].__get__
_traceback: Any = BaseException.__dict__["__traceback__"].__get__
_members: Any = BaseExceptionGroup.__dict__["exceptions"].__get__
_forget_object: Any = AttributeError.__dict__["obj"].__set__


def related(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts, and the members of groups, each once."""
    seen, left = set[int](), [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [_cause(each), _context(each)]
            if issubclass(type(each), BaseExceptionGroup):
                left += _members(each)


def let_go(error: BaseException | None) -> None:
    """Free the variables of the ended frames in an error's tracebacks.

    The tracebacks keep their positions, and the error its message. Running and suspended frames
    keep their variables.
    """
    errors = [*related(error)]
    frames = dict.fromkeys(frame for each in errors for frame in _frames(each))
    for frame in frames.keys() - _paused(frames):
        with suppress(RuntimeError):  # it still runs
            frame.clear()
        _ = frame.f_locals  # refreshes the copy that Python before 3.13 keeps of it
    for each in errors:
        if issubclass(type(each), AttributeError):
            _forget_object(each, None)


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of functions. The variables of others are a notebook's or a module's."""
    step = _traceback(error)
    while step is not None:
        if step.tb_frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            yield step.tb_frame
        step = step.tb_next


def _paused(frames: Any) -> set[FrameType]:
    """Return the frames of suspended generators and coroutines.

    Before Python 3.13, clearing these frames ends them.
    """
    pausing = [frame for frame in frames if frame.f_code.co_flags & PAUSING]
    if not pausing or sys.version_info >= (3, 13):
        return set()
    owners = [each for each in gc.get_referrers(*pausing) if type(each) in _OWNERS]
    return {getattr(owner, _OWNERS[type(owner)]) for owner in owners}
