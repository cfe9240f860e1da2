"""Search the names, sources and outputs of all tasks: parse the words, rank, find the lines."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ipytaskpersist.archives import Archives
from ipytaskpersist.errors import InvalidRequest, StoreDamaged
from ipytaskpersist.paths import typed_path
from ipytaskpersist.plaintext import fold, words
from ipytaskpersist.records import TaskRecord, TaskState
from ipytaskpersist.store import Selection, TaskStore
from ipytaskpersist.store.database import storable
from ipytaskpersist.store.search import COLUMNS, Passage, SearchIndex, documents_of, task_of

QUOTED = re.compile(r'"([^"]*)(?:"|$)(\*?)|([^\s"]+)')
SHORTEST_PREFIX = 2
WEIGHTS = {"name": 10.0, "source": 4.0, "outputs": 1.0}
"""What a word counts, by where it is."""
SATURATION = 1.2
"""BM25's k1: how soon more of the same word counts no more."""
LATEST = 999_999
"""The store itself, as a month."""
LINES = 3
"""Of how many lines a hit shows."""
CANDIDATE_LINES = 30
LINE_CHARACTERS = 160
BEFORE_MATCH = 40
"""How many characters come before the first match, so that a narrow terminal shows it."""


@dataclass(frozen=True, slots=True)
class Term:
    """A word, or a phrase: words that must be next to each other."""

    words: tuple[str, ...]
    """Folded."""
    is_prefix: bool = False
    """Whether the last word is only the beginning of one."""

    @property
    def is_phrase(self) -> bool:
        """Whether the index alone cannot tell that it is there."""
        return len(self.words) > 1

    def places(self, folded: str) -> Iterator[tuple[int, int]]:
        """Where it is in a folded text: first character, and the one after the last."""
        # The pattern begins with plain letters, which is what makes looking for it quick.
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
    """What is looked for: tasks that have all of the terms."""

    text: str
    """As it was typed."""
    terms: tuple[Term, ...]


def parse(typed: Sequence[str]) -> Query:
    """The query that was typed, argument by argument. Raises `InvalidRequest` for an empty one.

    A shell has taken the quotes away, so an argument with a blank in it is a phrase.
    """
    # What the system handed over undecoded, and line feeds, are nothing to be shown.
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
    """Where is looked for it."""

    columns: Sequence[str] = COLUMNS
    states: Sequence[TaskState] = ()
    since: float | None = None
    """Only tasks created since then, in seconds since the epoch."""
    notebook: str = ""
    """Only this notebook's tasks: its path, or its file's name with or without suffix."""
    archived: bool = False
    """Also in the archives."""
    limit: int = 20


@dataclass(frozen=True, slots=True)
class Snippet:
    """A line in which something was found."""

    place: str
    """``name``, ``source``, ``stdout``, ``stderr`` or ``display``."""
    line: int
    """Its number there, counted from 1."""
    text: str
    """The line, or the part of it around the first match."""
    matches: tuple[tuple[int, int], ...]
    """Where in the text: first character, and the one after the last."""

    def as_json(self) -> dict[str, Any]:
        """The snippet as ``search --json`` gives it."""
        return {
            "in": self.place,
            "line": self.line,
            "text": self.text,
            "matches": [list(match) for match in self.matches],
        }


@dataclass(frozen=True, slots=True)
class Hit:
    """A task that has all of the terms."""

    task: TaskRecord
    score: float
    """How well it answers; only the order means something."""
    snippets: tuple[Snippet, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found."""

    query: Query
    hits: Sequence[Hit]
    """The best first."""
    searched: int
    """How many tasks were looked at."""
    has_more: bool
    """Whether the limit has left some out."""
    archives_left_out: int
    """How many archives there are that were not searched."""

    def as_json(self, now: datetime) -> dict[str, Any]:
        """The document that ``search --json`` gives."""
        tasks = [
            {
                **hit.task.as_json(now),
                "score": round(hit.score, 3),
                "snippets": [snippet.as_json() for snippet in hit.snippets],
            }
            for hit in self.hits
        ]
        return {"query": self.query.text, "tasks": tasks, "count": len(tasks)}


def search(
    store: TaskStore,
    archives: Archives,
    query: Query,
    scope: Scope,
    progress: Callable[[int, int], None],
) -> Found:
    """Bring the indexes up to date, and search. `progress` is told of bytes done and in all."""
    try:
        return _search(store, archives, query, scope, progress)
    except StoreDamaged:
        if not any(SearchIndex(each).is_damaged for each in (store, *archives.all())):
            raise
        return _search(store, archives, query, scope, progress)


def _search(
    store: TaskStore,
    archives: Archives,
    query: Query,
    scope: Scope,
    progress: Callable[[int, int], None],
) -> Found:
    there = archives.all()
    stores = [store, *there] if scope.archived else [store]
    places = [_Place(each, query, scope) for each in stores if each.exists]
    _require_notebook(scope.notebook, places)
    try:
        for place in places:
            place.index.catch_up(progress=progress)
        hits, has_more = _best(places, scope.limit, archives)
    finally:
        for place in places:
            place.index.close()
    searched = sum(len(place.keys) for place in places)
    return Found(query, hits, searched, has_more, 0 if scope.archived else len(there))


def _require_notebook(wanted: str, places: Sequence[_Place]) -> None:
    if not wanted or any(place.notebooks for place in places):
        return
    paths = [notebook.path for place in places for notebook in place.store.sessions.notebooks()]
    names = ", ".join(dict.fromkeys(_last_part(path) for path in reversed(paths[-5:])))
    raise InvalidRequest(
        f"no notebook '{wanted}'; " + (f"there are {names}" if names else "there is none yet")
    )


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _is_called(path: str, wanted: str) -> bool:
    name = _last_part(path)
    names = (path, name, name.rpartition(".")[0])
    typed = wanted.rstrip("/")
    return storable(typed) in names or path == storable(str(typed_path(typed)))


_Ranked = tuple[float, int, int, int]
"""The negated score, month and key of a task, and its place: so sorted, the best come first, and of
those that are as good the newest."""


def _best(places: Sequence[_Place], limit: int, archives: Archives) -> tuple[list[Hit], bool]:
    hits: list[Hit] = []
    ranked = sorted(each for number, place in enumerate(places) for each in place.ranked(number))
    for score, _month, key, number in ranked:
        hit = places[number].hit(-key, -score)
        if hit is None or (hit.task.archive and not archives.without_own([hit.task])):
            continue
        if len(hits) == limit:
            return hits, True
        hits.append(hit)
    return hits, False


class _Place:
    """One store or archive that is searched."""

    def __init__(self, store: TaskStore, query: Query, scope: Scope) -> None:
        self.store = store.open()
        self.month = int(store.directory.month.replace("-", "") or LATEST)
        self.index = SearchIndex(store)
        self.notebooks = [
            notebook.key
            for notebook in store.sessions.notebooks()
            if scope.notebook and _is_called(notebook.path, scope.notebook)
        ]
        self.keys: set[int] = set()
        self._query = query
        self._terms: list[tuple[Term, _Matching]] = []
        self._scope = scope

    def _allowed(self) -> set[int]:
        """The tasks that may be found. Those of which only the index knows are not in it."""
        scope = self._scope
        selection = Selection(states=scope.states, created_after=scope.since)
        if not scope.notebook:
            return self.store.tasks.keys(selection)
        keys = self.store.tasks.keys
        return set().union(*(keys(replace(selection, notebook_key=k)) for k in self.notebooks))

    # Which tasks.

    def ranked(self, number: int) -> list[_Ranked]:
        """The tasks that have all of the words; whether also the phrases, the text must tell."""
        self.keys = self._allowed()
        self._terms = [(term, self._matching(term)) for term in self._query.terms]
        total = self.index.count()
        scores = [_scores(matching, total) for _term, matching in self._terms]
        keys = self.keys.intersection(*scores)
        return [
            (-round(sum(score[key] for score in scores), 3), -self.month, -key, number)
            for key in keys
        ]

    def _matching(self, term: Term) -> _Matching:
        groups = {
            "name": [column for column in self._scope.columns if column == "name"],
            "source": [column for column in self._scope.columns if column == "source"],
            "outputs": [each for each in self._scope.columns if each not in ("name", "source")],
        }
        matching = _Matching()
        for group, columns in groups.items():
            if columns:
                found = self.index.documents(term.words, columns, is_prefix=term.is_prefix)
                matching.add(found, WEIGHTS[group])
        return matching

    # What they say.

    def hit(self, key: int, score: float) -> Hit | None:
        """The task with its lines; None when it has gone, or has not the phrases after all."""
        reader = _Reader(self.index, self._scope.columns)
        lines: dict[_Line, set[Term]] = defaultdict(set)
        for term, matching in self._terms:
            found = reader.first_lines(matching.documents_of(key), term)
            if term.is_phrase and not found:
                return None
            for line in found:
                lines[line].add(term)
        task = self.store.tasks.get(key)
        if task is None:
            return None
        chosen = _covering(lines)
        return Hit(task, score, tuple(_snippet(*line, self._query.terms) for line in chosen))


_Line = tuple[str, int, str]
"""Of a line: where it is, its number there, and its text."""


class _Matching:
    """Where a term's words are."""

    def __init__(self) -> None:
        self.frequencies: dict[int, float] = defaultdict(float)
        """By task: what it counts that the words are where they are."""
        self._documents: list[list[int]] = []

    def add(self, documents: list[int], weight: float) -> None:
        """These documents, in their order, have the words."""
        self._documents.append(documents)
        for key in {task_of(document) for document in documents}:
            self.frequencies[key] += weight

    def documents_of(self, key: int) -> list[int]:
        """Those of one task."""
        first, last = documents_of(key)
        return sorted(
            {
                document
                for each in self._documents
                for document in each[bisect_left(each, first) : bisect_right(each, last)]
            }
        )


def _scores(matching: _Matching, total: int) -> dict[int, float]:
    """BM25 of one term, but for the documents' lengths: their words are known only once each."""
    having = len(matching.frequencies)
    rarity = math.log(1 + (max(total, having) - having + 0.5) / (having + 0.5))
    return {
        key: rarity * frequency * (SATURATION + 1) / (frequency + SATURATION)
        for key, frequency in matching.frequencies.items()
    }


def _covering(lines: dict[_Line, set[Term]]) -> list[_Line]:
    """A few lines that together have as many of the terms as can be, in their order."""
    chosen: list[_Line] = []
    covered: set[Term] = set()
    left = dict(lines)
    while left and len(chosen) < LINES:
        best = max(left, key=lambda line: len(left[line] - covered))
        covered |= left.pop(best)
        chosen.append(best)
    return sorted(chosen, key=lambda line: (COLUMNS.index(line[0]), line[1]))


def _snippet(place: str, number: int, line: str, terms: Sequence[Term]) -> Snippet:
    matches = sorted({match for term in terms for match in term.places(fold(line))})
    first = matches[0][0] if matches else 0
    begin = max(0, first - BEFORE_MATCH)
    end = begin + LINE_CHARACTERS
    before, after = "…" if begin else "", "…" if end < len(line) else ""
    moved = (
        (max(start, begin) - begin + len(before), min(stop, end) - begin + len(before))
        for start, stop in _joined(matches)
        if start < end and stop > begin
    )
    return Snippet(place, number, f"{before}{line[begin:end]}{after}", tuple(moved))


def _joined(matches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Matches that overlap made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in matches:
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


class _Reader:
    """Reads what a task's documents say, each once."""

    def __init__(self, index: SearchIndex, columns: Sequence[str]) -> None:
        self._index = index
        self._columns = columns
        self._read: dict[int, list[tuple[Passage, str]]] = {}

    def _passages(self, document: int) -> list[tuple[Passage, str]]:
        if document not in self._read:
            passages = self._index.passages(document, self._columns)
            self._read[document] = [(passage, fold(passage.text)) for passage in passages]
        return self._read[document]

    def first_lines(self, documents: Sequence[int], term: Term) -> list[_Line]:
        """The lines with the term of the first document that has it; its words all may have."""
        return next(filter(None, (self._lines(document, term) for document in documents)), [])

    def _lines(self, document: int, term: Term) -> list[_Line]:
        found: dict[_Line, None] = {}
        for passage, folded in self._passages(document):
            text, counted_to, number, stop = passage.text, 0, passage.first_line + 1, -1
            for begin, _end in term.places(folded):
                if begin < stop:
                    continue  # in the line that was found last
                number += text.count("\n", counted_to, begin)
                counted_to = begin
                start = text.rfind("\n", 0, begin) + 1
                end = text.find("\n", begin)
                stop = len(text) if end < 0 else end
                line = text[start:stop]
                found[passage.column, number, line] = None
                if len(found) >= CANDIDATE_LINES:
                    return [*found]
        return [*found]
