"""Parse a typed search into terms and a scope."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.store.search_index import COLUMNS
from ipytaskpersist.text.search_words import words

QUOTED = re.compile(r'"([^"]*)(?:"|$)(\*?)|([^\s"]+)')

SHORTEST_PREFIX = 2


@dataclass(frozen=True, slots=True)
class Term:
    """A word, or a phrase: words that must be next to each other."""

    words: tuple[str, ...]
    """Folded words."""
    is_prefix: bool = False
    """Whether the last word is only a prefix."""

    @property
    def is_phrase(self) -> bool:
        """Whether the index alone cannot confirm a match."""
        return len(self.words) > 1

    def places(self, folded: str) -> Iterator[tuple[int, int]]:
        """Yield its places in a folded text, as first character and the one after the last."""
        # The pattern begins with plain letters, which makes searching fast.
        pattern = re.compile(r"[\W_]+".join(map(re.escape, self.words)))
        for match in pattern.finditer(folded):
            begin, end = match.span()
            begins_word = not folded[begin - 1 : begin].isalnum()
            if begins_word and (self.is_prefix or not folded[end : end + 1].isalnum()):
                yield begin, self._end_of_word(folded, end)

    def _end_of_word(self, folded: str, end: int) -> int:
        while self.is_prefix and end < len(folded) and folded[end].isalnum():
            end += 1
        return end


@dataclass(frozen=True, slots=True)
class Query:
    """The query: tasks that have all of the terms."""

    text: str
    """The query as typed."""
    terms: tuple[Term, ...]


def parse(typed: Sequence[str]) -> Query:
    """Parse the typed arguments into a query. Raise `InvalidRequest` for an empty one.

    A shell has removed the quotes, so an argument with a blank in it is a phrase.
    """
    # Remove undecodable characters and line feeds, which cannot be shown.
    arguments = [" ".join(each.encode("utf-8", "replace").decode().split()) for each in typed]
    terms = [term for argument in arguments for term in _terms_of(argument)]
    text = " ".join(filter(None, map(_quoted, arguments)))
    found = tuple(dict.fromkeys(term for term in terms if term.words))
    if not text:
        raise InvalidRequest(
            "search for what? Type words that a task's name, source or output has: "
            "%bg_search loss nan, or a phrase: %bg_search 'out of memory'"
        )
    if not found:
        raise InvalidRequest(f"{text} has no letters or digits, and only those are searched")
    for term in found:
        if term.is_prefix and len(term.words[-1]) < SHORTEST_PREFIX:
            raise InvalidRequest(
                f"{term.words[-1]}* means too many words; type at least {SHORTEST_PREFIX} "
                "characters before the *"
            )
    return Query(text, found)


def _terms_of(argument: str) -> Iterator[Term]:
    if '"' not in argument:
        yield Term(words(argument), argument.endswith("*"))
        return
    for phrase, star, word in QUOTED.findall(argument):
        yield Term(words(phrase or word), bool(star) or word.endswith("*"))


def _quoted(argument: str) -> str:
    return f'"{argument}"' if " " in argument and '"' not in argument else argument


@dataclass(frozen=True, slots=True)
class Scope:
    """The scope of a search."""

    columns: Sequence[str] = COLUMNS
    states: Sequence[TaskState] = ()
    since: float | None = None
    """Only tasks created since this time, in seconds since the epoch."""
    notebook: str = ""
    """Only this notebook's tasks: its path, or its file name with or without suffix."""
    archived: bool = False
    """Whether to search the archives, too."""
    limit: int = 20
