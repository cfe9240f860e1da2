"""Search the names, sources and outputs of all tasks: rank them, and find the lines."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.errors import InvalidRequest, StoreDamaged
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.search_query import Query, Scope, Term
from ipytaskpersist.store.file.database import storable
from ipytaskpersist.store.search_index import COLUMNS, Passage, SearchIndex, documents_of, task_of
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text.search_words import fold

WEIGHTS = {"name": 10.0, "source": 4.0, "outputs": 1.0}
"""Weight of a word by its place."""
SATURATION = 1.2
"""BM25's k1: how soon further occurrences of a word stop counting."""
LATEST = 999_999
"""Month that stands for the store itself."""
LINES = 3
"""Number of lines that a hit shows."""
CANDIDATE_LINES = 30
LINE_CHARACTERS = 160
BEFORE_MATCH = 40
"""Characters shown before the first match, few enough for a narrow terminal."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A line with matches."""

    place: str
    """``name``, ``source``, ``stdout``, ``stderr`` or ``display``."""
    line: int
    """Its line number there, from 1."""
    text: str
    """The line, or the part of it around the first match."""
    matches: tuple[tuple[int, int], ...]
    """Matches in the text, as first character and the one after the last."""

    def as_json(self) -> dict[str, Any]:
        """Return the snippet as in ``search --json``."""
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
    """Relevance; only the order is meaningful."""
    snippets: tuple[Snippet, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The results of a search."""

    query: Query
    hits: Sequence[Hit]
    """Best first."""
    searched: int
    """Number of tasks that were searched."""
    has_more: bool
    """Whether the limit has left some out."""
    archives_left_out: int
    """Number of archives that were not searched."""

    def as_json(self, now: datetime) -> dict[str, Any]:
        """Return the document of ``search --json``."""
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
    """Update the indexes, and search. `progress` receives the bytes done and in all."""
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
    places = [_SearchedStore(each, query, scope) for each in stores if each.exists]
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


def _require_notebook(wanted: str, places: Sequence[_SearchedStore]) -> None:
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
"""Negated score, month, key and place of a task: sorts best first, of equals newest first."""


def _best(
    places: Sequence[_SearchedStore], limit: int, archives: Archives
) -> tuple[list[Hit], bool]:
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


class _SearchedStore:
    """One store or archive to search."""

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
        """Return the tasks that may be found; without tasks that only the index knows."""
        scope = self._scope
        selection = Selection(states=scope.states, created_after=scope.since)
        if not scope.notebook:
            return self.store.tasks.keys(selection)
        keys = self.store.tasks.keys
        return set().union(*(keys(replace(selection, notebook_key=k)) for k in self.notebooks))

    # Which tasks match.

    def ranked(self, number: int) -> list[_Ranked]:
        """Return the tasks that have all of the words. Only the text can confirm phrases."""
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

    # The matching lines.

    def hit(self, key: int, score: float) -> Hit | None:
        """Return the task with its lines; None if it is gone, or lacks the phrases after all."""
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
"""A line: its place, its number there, and its text."""


class _Matching:
    """The places of a term's words."""

    def __init__(self) -> None:
        self.frequencies: dict[int, float] = defaultdict(float)
        """Weight of the words' places, by task."""
        self._documents: list[list[int]] = []

    def add(self, documents: list[int], weight: float) -> None:
        """Add documents, in order, that have the words."""
        self._documents.append(documents)
        for key in {task_of(document) for document in documents}:
            self.frequencies[key] += weight

    def documents_of(self, key: int) -> list[int]:
        """Return the documents of one task."""
        first, last = documents_of(key)
        return sorted(
            {
                document
                for each in self._documents
                for document in each[bisect_left(each, first) : bisect_right(each, last)]
            }
        )


def _scores(matching: _Matching, total: int) -> dict[int, float]:
    """Return BM25 of one term without document lengths: the index knows each word only once."""
    having = len(matching.frequencies)
    rarity = math.log(1 + (max(total, having) - having + 0.5) / (having + 0.5))
    return {
        key: rarity * frequency * (SATURATION + 1) / (frequency + SATURATION)
        for key, frequency in matching.frequencies.items()
    }


def _covering(lines: dict[_Line, set[Term]]) -> list[_Line]:
    """Return a few lines, in order, that together cover as many terms as possible."""
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
    """Merge overlapping matches."""
    joined: list[tuple[int, int]] = []
    for start, stop in matches:
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


class _Reader:
    """Reads the text of a task's documents, each once."""

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
        """Return the matching lines of the first document that has any; all have the words."""
        return next(filter(None, (self._lines(document, term) for document in documents)), [])

    def _lines(self, document: int, term: Term) -> list[_Line]:
        found: dict[_Line, None] = {}
        for passage, folded in self._passages(document):
            text, counted_to, number, stop = passage.text, 0, passage.first_line + 1, -1
            for begin, _end in term.places(folded):
                if begin < stop:
                    continue  # part of the previous line
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
