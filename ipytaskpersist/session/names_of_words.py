"""Find the names of several words among the words that a user types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from ipytaskpersist.errors import AmbiguousReference


def references(
    words: Sequence[str], names: Collection[str], is_task: Callable[[str], bool]
) -> Iterator[Sequence[str]]:
    """Yield the words of each reference: one word, or several that are the name of a task.

    `names` are the names of several words. Raise `AmbiguousReference` if the words are a name, and
    `is_task` says that each of them is a task, too.
    """
    place = 0
    while place < len(words):
        parts = _longest_name(words[place:], names)
        if len(parts) > 1 and all(map(is_task, parts)):
            raise AmbiguousReference(
                f"'{' '.join(parts)}' is the name of a task, and {', '.join(parts)} are tasks, "
                "too; put the name in quotes, or type numbers"
            )
        yield parts
        place += len(parts)


def _longest_name(words: Sequence[str], names: Collection[str]) -> Sequence[str]:
    """Return the most words from the first on that are a name; the first word if none are."""
    ends = range(len(words), 1, -1) if names else ()
    return next((words[:end] for end in ends if " ".join(words[:end]) in names), words[:1])
