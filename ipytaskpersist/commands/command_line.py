"""Parse a command line as typed in a cell: its words, its comment, and an unfinished word."""

from __future__ import annotations

import re
import shlex

WORD = re.compile(r"""(?:\\.|'[^']*(?:'|$)|"(?:\\.|[^"\\])*(?:"|$)|[^\s'"\\]|\\$)+""")
PLAIN = re.compile(r"[^\s'\"\\#${}]+")


def words(line: str) -> list[str]:
    """Return the words of a line, without quotes and without a comment.

    A comment begins with a ``#`` that stands alone. Raise `ValueError` for an unclosed quote.
    """
    return shlex.split(without_comment(line))


def without_comment(line: str) -> str:
    """Drop the comment. A ``#`` in quotes or inside a word, as in ``#3`` and ``run#3``, stays."""
    found = (word.start() for word in WORD.finditer(line) if word.group() == "#")
    return line[: next(found, len(line))]


def words_so_far(line: str) -> tuple[list[str], str]:
    """Return the complete words, and the unfinished word at the end as typed."""
    found = list(WORD.finditer(line))
    last = found.pop().group() if found and found[-1].end() == len(line) else ""
    return [without_quotes(word.group()) for word in found], last


def without_quotes(word: str) -> str:
    """Return the word without its quotes, even if a quote is not closed yet."""
    from click.shell_completion import split_arg_string

    return "".join(split_arg_string(word))


def quoted(word: str) -> str:
    """The word so that it is one; `shlex.quote` would quote every letter beyond ASCII."""
    return word if PLAIN.fullmatch(word) else shlex.quote(word)
