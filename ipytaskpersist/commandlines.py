"""A command line as a person types it in a cell: its words, its comment, and what is unfinished."""

from __future__ import annotations

import re
import shlex

WORD = re.compile(r"""(?:\\.|'[^']*(?:'|$)|"(?:\\.|[^"\\])*(?:"|$)|[^\s'"\\]|\\$)+""")
PLAIN = re.compile(r"[^\s'\"\\#${}]+")


def words(line: str) -> list[str]:
    """The words of a line, without quotes, and without the comment that a ``#`` by itself begins.

    Raises `ValueError` for a quote that is not closed.
    """
    return shlex.split(_without_comment(line))


def _without_comment(line: str) -> str:
    """A ``#`` in quotes or inside a word, as in ``#3`` and ``run#3``, is one of the word's."""
    found = (word.start() for word in WORD.finditer(line) if word.group() == "#")
    return line[: next(found, len(line))]


def words_so_far(line: str) -> tuple[list[str], str]:
    """The words that are complete, and the one at the end as it stands there."""
    found = list(WORD.finditer(line))
    last = found.pop().group() if found and found[-1].end() == len(line) else ""
    return [without_quotes(word.group()) for word in found], last


def without_quotes(word: str) -> str:
    """What a word means, also when its quote is not closed yet."""
    from click.shell_completion import split_arg_string

    return "".join(split_arg_string(word))


def quoted(word: str) -> str:
    """The word so that it is one; `shlex.quote` would quote every letter beyond ASCII."""
    return word if PLAIN.fullmatch(word) else shlex.quote(word)
