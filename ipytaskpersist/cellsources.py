"""The source of code that has no file, carried with the code: that of cells, above all.

Tracebacks and ``inspect.getsource`` look for lines by the file name of a code object. That of a
cell is known to the process alone that has compiled it.
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
    """The execution count of a cell; None for other code, as that which attrs generates."""


def of_code(name: str, shell: Any) -> Source | None:
    """The source behind the file name of a code object; None where there is a file, or none."""
    lines = [] if Path(name).exists() else linecache.getlines(name)
    if not lines:
        return None
    return Source(name, "".join(lines), _numbers(shell).get(name))


def have_here(source: Source, shell: Any) -> str:
    """Have the lines of a source in this process, and return its file name."""
    if source.name not in linecache.cache:
        lines = source.text.splitlines(keepends=True)
        # Without a time of modification it is never checked against a file.
        linecache.cache[source.name] = (len(source.text), None, lines, source.name)
    if source.number is not None:
        _numbers(shell).setdefault(source.name, source.number)
    return source.name


def _numbers(shell: Any) -> dict[str, int]:
    """The execution counts of cells by their file names, by which IPython calls them ``In[3]``."""
    numbers: dict[str, int] = getattr(getattr(shell, "compile", None), "_filename_map", {})
    return numbers
