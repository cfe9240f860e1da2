"""What a stranger's text looks like changes nothing about how long it takes to show it.

Twice as much takes about twice as long. What takes time for the square of its size takes minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from ipytaskpersist.base.records import OutputKind, OutputRecord
from ipytaskpersist.base.widget_marks import moving
from ipytaskpersist.history.search_query import parse
from ipytaskpersist.history.text_search import _Reader
from ipytaskpersist.output import replay
from ipytaskpersist.panel import selected
from ipytaskpersist.store.search_index import Passage
from ipytaskpersist.text import colours, screen, search_words, terminal_filter
from ipytaskpersist.text.sanitized_html import CHARACTERS_AT_MOST, harmless_html

SHORT, LONG = 10_000, 50_000
"""Characters. What takes time for the square of them takes 25 times as long for the second."""
PIECES = [
    "<a ", "<", "</", "</a ", "<!--", "<!-- -", "<!", "<?", "&", "&#9", "&#x", "&amp", "<![CDATA[",
    "<div>", "<b>", "</b>", "<td colspan=2>", "<td><table>", "<p><b>x", '<a b="', "<a b='", "<a b=",
    "<a =", "<a/", "<script>", "<script", "<script></script ", "<svg>", "<title>", "<style><!--",
    "<a b =     ", " a", "<tr><td>1</td></tr>", "<a \"'>",
    "<ul><li>", "<p><b id=1>", "<table><p>x</p>", "<p>x</p>", "</p>x",
    "\x1b[", "\x1b", "\x1b]", "\x1b]0;", "\x1b[1", "\x1b[;", "\x1b[1mx", "\x1b[38;5;1", "\x1bP",
    "\x9b", "\x1b(", "1;", "\r", "ab\r", "x\b", "\x1b[5C", "\x1b[5Cx", "\x1b[A", "\n\x1b[A",
    "\x1b[K", "x\x1b[1K", "\x1b[2J", "\x1b[1000Cx\r", "\t", "\tx", "a\u0301", "\u0301", "\u200f",
    "1.", "100%|",
]  # fmt: skip


def through(text: str) -> str:
    passage = terminal_filter.TerminalFilter()
    return passage.let_through(text) + passage.finish()


def lines(text: str) -> list[str]:
    return selected.stream_lines(text)


WAYS: list[Callable[[str], object]] = [
    harmless_html, lambda text: colours.Colours().html(text), screen.visible_lines, lines, through,
    search_words.as_shown,
]  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    """Of this thread alone: others have the machine, too."""
    begun = time.thread_time()
    call()
    return time.thread_time() - begun


@pytest.mark.parametrize("begin", ["", "x" * SHORT], ids=["", "long"])
def test_every_shape_takes_time_for_its_length_alone(begin: str) -> None:
    slow = []
    for piece in PIECES:
        for number, way in enumerate(WAYS):
            long = seconds(partial(way, begin + piece * (LONG // len(piece))))
            if long > 0.3:
                short = seconds(partial(way, begin + piece * (SHORT // len(piece))))
                if long > 12 * short:
                    slow.append((piece, number, short, long))
    assert slow == []


def test_html_is_looked_at_up_to_a_limit_and_the_rest_is_counted() -> None:
    made = harmless_html("&" * (CHARACTERS_AT_MOST + 1234))
    assert made.endswith("&amp;<p>[1,234 more characters of HTML]</p>")
    assert harmless_html("&#" + "9" * 5000 + ";") == "&amp;#" + "9" * 5000 + ";"


def records(contents: list[tuple[OutputKind, object]]) -> list[OutputRecord]:
    now = datetime.now(UTC)
    return [
        OutputRecord(
            number, kind, now, each if isinstance(each, bytes) else json.dumps(each).encode(), 0
        )
        for number, (kind, each) in enumerate(contents)
    ]


def test_many_records_take_time_for_their_number_alone() -> None:
    """Displays that are all updated, widgets that are all cleared, or entered and never left."""
    one = {"data": {"text/plain": "x"}, "metadata": {}, "transient": {"display_id": "one"}}
    shown, update = (OutputKind.DISPLAY_DATA, one), (OutputKind.UPDATE_DISPLAY_DATA, one)
    printed, clear = (OutputKind.STDOUT, b"x" * 100), OutputKind.CLEAR_OUTPUT
    many = range(4_000)
    cleared = [(clear, {"widget": f"w{number}", "wait": False}) for number in many]
    entered = [
        (OutputKind.UPDATE_DISPLAY_DATA, moving(f"w{number % 40_000}", inside=number < 40_000))
        for number in range(80_000)
    ]
    for shape in (
        entered,
        entered[40_000:],
        [shown for _ in many] + [update for _ in many],
        [each for _ in many for each in (shown, update)],
        [shown for _ in many] + [each for one in cleared for each in (printed, one)],
        [update] + [printed for _ in range(40_000)],
    ):
        assert seconds(partial(replay.resolve, records(shape))) < 4


def test_a_long_line_with_a_word_many_times_is_found_once() -> None:
    class Index:
        def passages(self, *_which: object) -> list[Passage]:
            return [Passage("stdout", "error " * 100_000 + "\nerror", 0)]

    index: Any = Index()
    (term,) = parse(["error"]).terms
    found: list[Any] = []
    assert seconds(lambda: found.extend(_Reader(index, ["stdout"]).first_lines([1], term))) < 5
    assert [number for _column, number, _text in found] == [1, 2]
