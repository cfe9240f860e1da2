"""What is shown of any text steers nothing, stands where it should, and says what was printed."""

from __future__ import annotations

import io
import json
import math
import re
from datetime import UTC, datetime
from html import escape, unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from html5 import has_more_than_is_kept
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from tqdm import tqdm

from ipytaskpersist.base.legible import (
    LEFT_TO_RIGHT_MARK,
    MARKS_AT_MOST,
    kept_apart,
    legible,
    legible_lines,
)
from ipytaskpersist.base.records import Progress, TaskRecord, TaskState, from_timestamp
from ipytaskpersist.display import console, search_results
from ipytaskpersist.display.listing import Listing, list_html
from ipytaskpersist.display.tables import fit, task_table
from ipytaskpersist.history import search_query
from ipytaskpersist.text import progress_bars
from ipytaskpersist.text.colours import SEQUENCE, Colours
from ipytaskpersist.text.formatting import how_far
from ipytaskpersist.text.sanitized_html import KEPT, harmless_html
from ipytaskpersist.text.screen import (
    LINE_CHARACTERS,
    ROWS_BELOW,
    TAIL_CHARACTERS,
    WIDTH,
    LastLine,
    visible_lines,
)
from ipytaskpersist.text.search_words import as_shown, distinct_words, fold, words
from ipytaskpersist.text.terminal_filter import TerminalFilter
from properties.profiles import tried
from properties.texts import any_bytes, any_text, cut, places, terminal_texts

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


# The screen.


class Grid:
    """A terminal as a table of characters: slow, and easy to believe."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], str] = {}
        self.row = self.column = 0
        self.rows = 1
        self.reached = 0

    def show(self, text: str) -> list[str]:
        place = 0
        while place < len(text):
            sequence = re.compile(r"\x1b\[(\d*)([A-Z])").match(text, place)
            if sequence:
                self._command(sequence[2], int(sequence[1]) if sequence[1] else None)
                place = sequence.end()
            else:
                self._character(text[place])
                place += 1
        return [self._line(row) for row in range(self.rows)]

    def _line(self, row: int) -> str:
        last = max((column for there, column in self.cells if there == row), default=-1)
        return "".join(self.cells.get((row, each), " ") for each in range(last + 1)).rstrip()

    def _character(self, character: str) -> None:
        if character == "\n":
            self.row, self.column = self.row + 1, 0
            self.reached = max(self.reached, self.row)
        elif character == "\r":
            self.column = 0
        elif character == "\b":
            self.column = max(0, self.column - 1)
        elif character == "\t":
            self.column = (self.column // 8 + 1) * 8
        else:
            self.cells[self.row, self.column] = character
            self.column += 1
            self.reached = max(self.reached, self.row)
        self.rows = max(self.rows, self.row + 1)

    def _command(self, command: str, given: int | None) -> None:
        count = given or 1
        if command == "A":
            self.row = max(0, self.row - count)
        elif command == "B":
            self.row = min(self.row + count, self.reached + ROWS_BELOW)
            self.rows = max(self.rows, self.row + 1)
        elif command == "C":
            self.column += count
        elif command == "D":
            self.column = max(0, self.column - count)
        elif command == "G":
            self.column = count - 1
        elif command == "K":
            self._erase(given or 0)
        elif command == "J" and given == 2:
            self.cells, self.rows = {}, 1
            self.row = self.column = self.reached = 0

    def _erase(self, which: int) -> None:
        for there, column in list(self.cells):
            is_before, is_after = column < self.column, column >= self.column
            if (
                there == self.row and ((which == 0 and is_after) or (which == 1 and is_before))
            ) or (there == self.row and which == 2):
                del self.cells[there, column]


understood = st.lists(
    st.one_of(
        st.sampled_from(["\n", "\r", "\b", "\t", "\x1b[2J", "a", "bc", "déf", " ", "日"]),
        st.builds(
            lambda command, count: f"\x1b[{count}{command}",
            st.sampled_from("ABCDGK"),
            st.sampled_from(["", "0", "1", "2", "5", "12"]),
        ),
    ),
    max_size=30,
).map("".join)


@tried(40)
@given(understood)
def test_a_screen_shows_what_a_table_of_characters_shows(text: str) -> None:
    assert visible_lines(text) == Grid().show(text)


@tried(40)
@given(any_text)
def test_visible_lines_have_nothing_that_steers_and_show_as_they_are(text: str) -> None:
    shown = visible_lines(text)
    assert not CONTROLS.search("".join(shown))
    assert visible_lines("\n".join(shown)) == shown
    assert len(shown) <= 1 + text.count("\n") + ROWS_BELOW * text.count("B")
    assert all(len(line) <= WIDTH + TAIL_CHARACTERS for line in shown)


# The last line.


@tried(50)
@given(st.lists(st.text("ab é日", min_size=1, max_size=300), min_size=1, max_size=80), places)
def test_the_last_line_of_plain_text_is_its_last_line_however_much_there_is(
    printed: list[str], at: list[int]
) -> None:
    text = "\n".join(printed)
    filled = [line.strip() for line in printed if line.strip()]
    expected = filled[-1][:LINE_CHARACTERS] if filled else ""
    at_once, follower = LastLine(), LastLine()
    assert at_once.feed(text) == expected or len(text) > TAIL_CHARACTERS
    for piece in cut(text, at):
        follower.feed(piece)
    if any(line.strip() for line in printed[-3:]):
        assert follower.text == at_once.text == expected


@tried(40)
@given(terminal_texts, places)
def test_the_last_line_that_came_in_pieces_is_the_one_that_came_at_once(
    text: str, at: list[int]
) -> None:
    follower = LastLine()
    for piece in cut(text, at):
        found = follower.feed(piece)
        assert found == follower.text
        assert len(found) <= LINE_CHARACTERS
        assert not CONTROLS.search(found)
    filled = [line for line in visible_lines(text) if line.strip()]
    if filled:
        assert follower.text == filled[-1].strip()[:LINE_CHARACTERS] == LastLine().feed(text)


# Text for the search.


@tried(40)
@given(any_text)
def test_text_as_it_is_shown_has_as_many_lines_as_it_has_line_feeds(text: str) -> None:
    """Otherwise the numbers of the lines that a search has found would be wrong."""
    assert as_shown(text).count("\n") == text.count("\n")
    assert "\x1b" not in as_shown(text)


@tried(40)
@given(any_text)
def test_folding_keeps_each_character_in_its_place(text: str) -> None:
    assert len(fold(text)) == len(text)
    for place, character in enumerate(text):
        assert fold(text)[place] == (fold(character) if not text.isascii() else character.lower())


@tried(90)
@given(any_bytes | any_text.map(lambda text: text.encode("utf-8", "replace")))
def test_the_words_of_bytes_are_those_of_the_text_that_is_shown(data: bytes) -> None:
    """They are found in two ways, of which one is quick."""
    text = as_shown(data.decode("utf-8", "replace"))
    assert set(distinct_words(data).split()) == set(words(text))


@tried(40)
@given(
    st.lists(st.sampled_from(["loss", "Größe", "0.125", "10.0.0.1", "v2", "naïve", "ΑΒΓ", "日"])),
    st.lists(st.sampled_from([" ", "\n", ", ", "(", ")", "_", "-", "."]), min_size=20),
)
def test_a_word_that_is_printed_is_found_by_the_same_word(
    printed: list[str], between: list[str]
) -> None:
    text = "".join(word + between[place % 20] + " " for place, word in enumerate(printed))
    found = set(distinct_words(text.encode()).split())
    for word in printed:
        (term,) = search_query.parse([word]).terms
        assert set(term.words) <= found
        matched = [fold(text)[begin:end] for begin, end in term.places(fold(text))]
        assert matched
        assert set(matched) == {fold(word)}


# Text among other text.


@tried(90)
@given(any_text)
def test_legible_text_only_shows(text: str) -> None:
    shown = legible(text)
    assert shown.isprintable()
    assert legible(shown) == shown
    assert len(shown) <= len(text)
    marks = "".join("m" if re.match("[\u0300-\u036f]", each) else "." for each in shown)
    assert "m" * (MARKS_AT_MOST + 1) not in marks
    assert legible_lines(text).count("\n") == text.count("\n")


@tried(40)
@given(any_text, places)
def test_the_beginning_of_a_text_looks_as_it_does_in_the_whole(text: str, at: list[int]) -> None:
    for end in at:
        assert legible(text).startswith(legible(text[: end % (len(text) + 1)]))


@tried(40)
@given(any_text)
def test_text_from_right_to_left_is_kept_apart_and_nothing_else(text: str) -> None:
    shown = legible(text)
    apart = kept_apart(shown)
    assert apart in (shown, f"{LEFT_TO_RIGHT_MARK}{shown}{LEFT_TO_RIGHT_MARK}")
    assert cell_len(apart) == cell_len(shown)


@tried(40)
@given(any_text, st.integers(-1, 30))
def test_text_fits_into_the_cells_that_there_are(text: str, cells: int) -> None:
    shown = legible(text)
    fitted = fit(shown, cells)
    assert cell_len(fitted) <= max(0, cells)
    if cell_len(shown) <= cells:
        assert fitted == shown
    elif cells > 0:
        assert fitted.endswith("…")
        assert shown.startswith(fitted[:-1])


# What a task printed for a terminal.

ALLOWED = re.compile(
    r"[^\x00-\x1f\x7f-\x9f]|[\n\r\b\t]|\x1b\[[0-9;:]*m|\x1b\[[0-9]*[CDGKJ]|\x1b\[[0-9]+[AB]"
)


def parts(text: str) -> list[str]:
    """A text that was let through, piece by piece. Fails at what should not have been."""
    found, place = [], 0
    while place < len(text):
        part = ALLOWED.match(text, place)
        assert part, repr(text[place : place + 20])
        found.append(part.group())
        place = part.end()
    return found


@tried(90)
@given(terminal_texts, places, st.booleans(), st.booleans())
def test_what_is_let_through_moves_only_within_its_own_lines(
    text: str, at: list[int], styled: bool, moving: bool
) -> None:
    passage = TerminalFilter(styled=styled, moving=moving)
    passed = "".join(map(passage.let_through, cut(text, at))) + passage.finish()
    row = below = 0
    is_coloured = False
    for part in parts(passed):
        is_sequence = part.startswith("\x1b[")
        assert moving or not is_sequence
        if is_sequence and part[-1] in "AB":
            row += int(part[2:-1]) * (1 if part[-1] == "B" else -1)
        elif part == "\n":
            row += 1
        elif is_sequence and part[-1] == "m":
            assert styled
            is_coloured = bool(part[2:-1].strip("0;"))
        assert 0 <= row <= (below := max(below, row if part == "\n" else 0))
    assert not is_coloured
    assert row == below


@tried(40)
@given(terminal_texts, places)
def test_it_does_not_matter_in_which_pieces_a_text_is_let_through(text: str, at: list[int]) -> None:
    whole, pieces = TerminalFilter(), TerminalFilter()
    at_once = whole.let_through(text) + whole.finish()
    assert "".join(map(pieces.let_through, cut(text, at))) + pieces.finish() == at_once


@tried(40)
@given(terminal_texts)
def test_what_was_let_through_is_let_through_again(text: str) -> None:
    first, second = TerminalFilter(), TerminalFilter()
    passed = first.let_through(text)
    assert second.let_through(passed) == passed


@tried(40)
@given(terminal_texts)
def test_the_text_itself_is_let_through(text: str) -> None:
    plain = re.sub("[\x00-\x09\x0b-\x1f\x7f-\x9f]", "", text)
    passage = TerminalFilter()
    assert passage.let_through(plain) + passage.finish() == plain


# Bars.


@tried(40)
@given(any_text | st.from_regex(progress_bars.BAR) | st.from_regex(progress_bars.COUNTER))
def test_a_line_shows_a_progress_that_makes_sense_or_none(line: str) -> None:
    found = progress_bars.of_line(line)
    if found is None:
        return
    assert math.isfinite(found.done)
    assert found.done >= 0
    assert found.total is None or (found.total > 0 and math.isfinite(found.total))
    assert len(found.text) <= progress_bars.TEXT_CHARACTERS
    assert found.fraction is None or 0 <= found.fraction <= 1
    json.dumps(found.as_json(), allow_nan=False)
    assert cell_len(how_far(found)) <= 40


@tried(40)
@given(
    st.integers(0, 999), st.none() | st.integers(1, 999), st.sampled_from(["", "train", "größe 2"]),
    st.sampled_from(["it", "B", "batch"]),
)  # fmt: skip
def test_a_bar_of_tqdm_is_understood(done: int, total: int | None, text: str, unit: str) -> None:
    done = done if total is None else min(done, total)
    line = tqdm.format_meter(done, total, 1.5, ncols=70, prefix=text, unit=unit)
    found = progress_bars.of_line(line)
    expected = None if total is None else float(total)
    assert found == Progress(float(done), expected, text)


# HTML.


class Tags(HTMLParser):
    """The text and the tags of some HTML."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@tried(40)
@given(terminal_texts | st.text("<&>\"'a"))
def test_colours_as_html_say_what_the_text_says(text: str) -> None:
    html = Colours().html(text)
    tags = Tags(html)
    assert tags.open == []
    assert {tag for tag, _attributes in tags.tags} <= {"span"}
    assert all(attributes.keys() <= {"class", "style"} for _tag, attributes in tags.tags)
    assert unescape(re.sub("<[^>]*>", "", html)) == SEQUENCE.sub("", text)


html_pieces = st.lists(
    st.one_of(
        st.sampled_from(
            ["<b>", "</b>", "<table>", "<td colspan=2 onclick=x>", "</td>", "<script>", "</script>",
             "<style>", "</style>", "<img src=x onerror=y>", "<svg/onload=z>", "</svg>", "<br>",
             "<br/>", "<!-- ", "-->", "<![CDATA[", "]]>", "<?x ", "<a href=javascript:1>", "&lt;",
             "&#60;script&#62;", "<", ">", "</", "<textarea>", "<iframe srcdoc='<script>'>",
             "'", '"', "<td rowspan='1&#34; onclick=x'>", "<plaintext>", "<math><mi>", "\0"]
        ),
        st.text(max_size=6),
    ),
    max_size=15,
).map("".join)  # fmt: skip


@tried(40)
@given(html_pieces)
def test_html_made_harmless_has_only_what_shows(html: str) -> None:
    made = harmless_html(html)
    tags = Tags(made)
    assert tags.open == []
    for tag, attributes in tags.tags:
        assert tag in KEPT
        assert attributes.keys() <= {"colspan", "rowspan"}
        assert all(value.isdecimal() for value in attributes.values())
    assert harmless_html(made) == made
    assert not has_more_than_is_kept(made)


@tried(40)
@given(any_text, st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4))
def test_marked_text_says_the_same(text: str, spans: list[tuple[int, int]]) -> None:
    matches, done = [], 0
    for begin, length in sorted(spans):
        if begin >= done and begin + length <= len(text):
            matches.append((begin, done := begin + length))
    assert unescape(re.sub("</?mark>", "", search_results.marked(text, matches))) == unescape(
        re.sub("</?mark>", "", escape(text))
    )


# Lists.

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
times = st.none() | st.floats(1e9, 2e9).map(from_timestamp)
progresses = st.none() | st.builds(
    Progress,
    st.floats(0, 1e18),
    st.none() | st.floats(0, 1e18),
    any_text,
)


@st.composite
def tasks(draw: st.DrawFn) -> TaskRecord:
    """Any task, as hostile as a file can make it."""
    unknown = dict.fromkeys(
        ("exit_code", "cell_id", "execution_count", "cancel_requested_at", "cleared_at", "rerun_of")
    )
    known: dict[str, Any] = {
        "key": 1, "id": f"{draw(st.sampled_from(['0123abcd', 'x']))}-1",
        "number": draw(st.integers(1, 10**9)), "name": draw(any_text), "notebook_key": 1,
        "notebook": draw(any_text), "session": "s", "kind": "python", "runner": "thread",
        "state": draw(st.sampled_from(TaskState)), "reason": draw(st.none() | any_text),
        "source": draw(any_text), "created_at": NOW, "started_at": draw(times),
        "ended_at": draw(times), "is_call": False, "progress": draw(progresses),
        "last_line": draw(st.none() | any_text),
    }  # fmt: skip
    return TaskRecord(**unknown, **known)


@tried(50)
@given(st.lists(tasks(), min_size=1, max_size=4), st.booleans(), st.integers(40, 200))
def test_a_list_is_as_wide_as_the_terminal_and_one_line_for_each_task(
    listed: list[TaskRecord], every_notebook: bool, width: int
) -> None:
    assume(all(len(str(task.number)) < 10 for task in listed))
    listing = Listing(listed, len(listed), every_notebook, NOW)
    target = io.StringIO()
    output = Console(file=target, width=width, color_system=None, force_jupyter=False)
    for renderable in task_table(listing):
        output.print(renderable, highlight=False, markup=False, emoji=False)
    shown = target.getvalue().split("\n")
    assert len(shown) == len(listed) + 2
    for line in shown:
        assert cell_len(line.rstrip()) <= width
        assert line.replace(LEFT_TO_RIGHT_MARK, "").isprintable()


@tried(40)
@given(st.lists(tasks(), min_size=1, max_size=3), st.booleans())
def test_a_list_for_a_notebook_is_html_that_does_nothing(
    listed: list[TaskRecord], every_notebook: bool
) -> None:
    tags = Tags(list_html(Listing(listed, len(listed), every_notebook, NOW)))
    assert tags.open == []
    for _tag, attributes in tags.tags:
        assert not [name for name in attributes if name.startswith(("on", "href", "src"))]
    rows = [tag for tag, _attributes in tags.tags if tag == "tr"]
    are_both = len({task.state.is_final for task in listed}) > 1
    assert len(rows) == len(listed) + 1 + are_both


@tried(40)
@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    | st.text("0123456789٣")
)
def test_the_width_of_a_terminal_is_a_number_whatever_the_environment_says(columns: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", columns)
        assert console.width(io.StringIO()) > 0
