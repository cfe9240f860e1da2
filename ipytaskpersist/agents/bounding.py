"""Documents for agents: only what they need of a task, and no more than so many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

BRIEF = (
    *("id", "name", "state", "reason", "exit_code", "elapsed_s", "waiting", "progress"),
    *("last_line", "snippets"),
)
"""What a list says of each task. An agent asks `show` for the rest."""
LIMITS = ((2_000, 50), (1_000, 30), (500, 20), (250, 12), (120, 8), (60, 4), (40, 2))
"""How many characters of each text and entries of each list are kept, the first that suffices."""


def brief(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the short form of a task as ``list --json`` gives it, without what is not known."""
    kept = {name: task[name] for name in BRIEF if task.get(name) not in (None, [], "")}
    if "elapsed_s" in kept:
        kept["elapsed_s"] = round(kept["elapsed_s"], 1)
    return kept


def without_empty(value: Any) -> Any:
    """Return a document without the members that say nothing: null, and empty lists and objects."""
    if isinstance(value, list):
        return [without_empty(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {name: without_empty(each) for name, each in value.items()}
    return {name: each for name, each in kept.items() if each not in (None, [], {})}


def bounded(document: Any, at_most: int, encode: Callable[[Any], str]) -> Any:
    """Return a document that is no longer than so many bytes once it is encoded.

    Texts and lists lose their ends first, then whole members; each says that it has.
    """
    cut = document
    for characters, entries in LIMITS:
        if _size(cut, encode) <= at_most:
            return cut
        cut = _cut(document, characters, entries)
    for smaller in _without_largest(cut, encode):
        cut = smaller
        if _size(cut, encode) <= at_most:
            break
    return cut


def _size(document: Any, encode: Callable[[Any], str]) -> int:
    return len(encode(document).encode("utf-8", "replace"))


def _cut(value: Any, characters: int, entries: int) -> Any:
    if isinstance(value, str):
        rest = len(value) - characters
        return f"{value[:characters]}… ({rest:,} more characters)" if rest > 0 else value
    if isinstance(value, list):
        kept = [_cut(each, characters, entries) for each in value[:entries]]
        return kept + ([f"({len(value) - entries:,} more)"] if len(value) > entries else [])
    if isinstance(value, dict):
        return {name: _cut(each, characters, entries) for name, each in value.items()}
    return value


def _without_largest(
    document: Mapping[str, Any], encode: Callable[[Any], str]
) -> Iterator[dict[str, Any]]:
    """Yield the document with its largest member left out, then with the next one, too."""
    kept = dict(document)
    sizes = {name: _size(value, encode) for name, value in kept.items()}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        kept[name] = f"(left out: {sizes[name]:,} bytes)"
        yield kept
