"""What an error keeps alive: the local variables of all functions that it has come through.

An ended task's error is kept, with its traceback. Its frames need not keep what was in them.
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
# As the interpreter has them, whatever an error's class says.
_cause: Any = BaseException.__dict__["__cause__"].__get__
_context: Any = BaseException.__dict__["__context__"].__get__
_traceback: Any = BaseException.__dict__["__traceback__"].__get__
_members: Any = BaseExceptionGroup.__dict__["exceptions"].__get__
_forget_object: Any = AttributeError.__dict__["obj"].__set__


def related(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from or during, and the members of groups: each once."""
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
    """Free what the frames of an error's tracebacks hold, where they have ended.

    The tracebacks keep their places, and the error its message. What still runs, or will go on,
    keeps its variables.
    """
    errors = [*related(error)]
    frames = dict.fromkeys(frame for each in errors for frame in _frames(each))
    for frame in frames.keys() - _paused(frames):
        with suppress(RuntimeError):  # it still runs
            frame.clear()
        _ = frame.f_locals  # before Python 3.13 a copy, as it was when it was last looked at
    for each in errors:
        if issubclass(type(each), AttributeError):
            _forget_object(each, None)


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames of functions. What the others have is the notebook's, or a module's."""
    step = _traceback(error)
    while step is not None:
        if step.tb_frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            yield step.tb_frame
        step = step.tb_next


def _paused(frames: Any) -> set[FrameType]:
    """Those of generators and coroutines that will go on. Before Python 3.13 to clear ends them."""
    pausing = [frame for frame in frames if frame.f_code.co_flags & PAUSING]
    if not pausing or sys.version_info >= (3, 13):
        return set()
    owners = [each for each in gc.get_referrers(*pausing) if type(each) in _OWNERS]
    return {getattr(owner, _OWNERS[type(owner)]) for owner in owners}
