"""The source of code without a file, mostly of cells, which is carried with the code.

Tracebacks and ``inspect.getsource`` look up lines by the file name of a code object. A cell's is
known only to the process that compiled it.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """The lines behind a file name without a file."""

    name: str
    text: str
    number: int | None
    """Execution count of a cell; None for other code, such as what attrs generates."""


def of_code(name: str, shell: Any) -> Source | None:
    """Return the source behind a code object's file name; None if there is a file, or no source."""
    lines = [] if Path(name).exists() else linecache.getlines(name)
    if not lines:
        return None
    return Source(name, "".join(lines), _numbers(shell).get(name))


def have_here(source: Source, shell: Any) -> str:
    """Register the lines of a source in this process, and return its file name."""
    if source.name not in linecache.cache:
        lines = source.text.splitlines(keepends=True)
        # Without a modification time it is never checked against a file.
        linecache.cache[source.name] = (len(source.text), None, lines, source.name)
    if source.number is not None:
        _numbers(shell).setdefault(source.name, source.number)
    return source.name


def _numbers(shell: Any) -> dict[str, int]:
    """Return the execution counts of cells by file name, for IPython's names such as ``In[3]``."""
    numbers: dict[str, int] = getattr(getattr(shell, "compile", None), "_filename_map", {})
    return numbers
