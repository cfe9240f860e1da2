"""The last line of a task is what a person would see at the end of a terminal."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipytaskpersist.text.screen import LINE_CHARACTERS, TAIL_CHARACTERS, LastLine, visible_lines

unhurried = settings(deadline=None)
"""A machine that does something else at the same time is no error."""

ERASE = "\x1b[K"
UP = "\x1b[A"

SHOWN = {
    "plain lines": ("one\ntwo\n", ["one", "two", ""]),
    "no line feed at the end": ("one\ntwo", ["one", "two"]),
    "nothing": ("", [""]),
    "line feeds of Windows": ("one\r\ntwo\r\n", ["one", "two", ""]),
    "trailing blanks": ("one  \n  two  ", ["one", "  two"]),
    "tqdm": ("\r  0%|    | 0/2\r 50%|##  | 1/2\r100%|####| 2/2\n", ["100%|####| 2/2", ""]),
    "a shorter text over a longer one": ("downloading\rdone", ["doneloading"]),
    "a shorter text with blanks over the rest": ("downloading\rdone       ", ["done"]),
    "carriage return at the end": ("50 %\r", ["50 %"]),
    "pip": (
        f"  ━━━━╸━━━ 1.2/2.4 MB\r\x1b[2K  ━━━━━━━━ 2.4/2.4 MB\r\x1b[2K{ERASE}Installed x\n",
        ["Installed x", ""],
    ),
    "wget": (
        "\rfile    50%[=====>     ] 1.0M  --.-KB/s    "
        "\rfile   100%[==========>] 2.0M  --.-KB/s    in 0.1s \n\nsaved\n",
        ["file   100%[==========>] 2.0M  --.-KB/s    in 0.1s", "", "saved", ""],
    ),
    "nested bars": (
        f"outer 0/2\ninner 0/9\r{UP}outer 1/2\n\rinner 5/9\r{UP}outer 2/2\n\rinner 9/9",
        ["outer 2/2", "inner 9/9"],
    ),
    "cursor up by a number": ("a\nb\nc\x1b[2A\rx", ["x", "b", "c"]),
    "cursor up beyond the top": ("a\x1b[9A\rx", ["x"]),
    "cursor down": ("a\x1b[2B\rb", ["a", "", "b"]),
    "cursor left and right": ("abc\x1b[2Dx\x1b[1Cy", ["axcy"]),
    "cursor to a column": ("abc\x1b[1Gx\x1b[Gy\x1b[6Gz", ["ybc  z"]),
    "backspaces": ("working -\b\\\b|\b/", ["working /"]),
    "backspace at the start": ("\b\ba", ["a"]),
    "erase to the end of the line": (f"downloading\rdone{ERASE}", ["done"]),
    "erase from the start of the line": ("abcdef\x1b[3D\x1b[1K", ["   def"]),
    "erase the whole line": ("abc\x1b[2Kd", ["   d"]),
    "erase in a way that there is not": ("abc\x1b[5Kd", ["abcd"]),
    "clear the screen": ("old\nold\x1b[2Jnew", ["new"]),
    "colours": ("\x1b[1;31mred\x1b[0m and \x1b[38;5;12mblue\x1b[m", ["red and blue"]),
    "a colour with colons": ("\x1b[38:2::255:0:0mred\x1b[m", ["red"]),
    "a title, ended by a bell": ("\x1b]0;the title\x07text", ["text"]),
    "a title, ended by an escape": ("\x1b]2;the title\x1b\\text", ["text"]),
    "a link": ("\x1b]8;;https://a.b\x1b\\text\x1b]8;;\x1b\\", ["text"]),
    "a hidden cursor": ("\x1b[?25lbusy\x1b[?25h", ["busy"]),
    "an unknown sequence": ("a\x1b[5nb\x1b(Bc\x1b=d", ["abcd"]),
    "bells and zeros": ("a\x07b\0c\x7fd", ["abcd"]),
    "wide characters and emoji": ("日本\r語", ["語本"]),
}


@pytest.mark.parametrize(("text", "lines"), SHOWN.values(), ids=SHOWN)
def test_a_text_looks_as_in_a_terminal(text: str, lines: list[str]) -> None:
    assert visible_lines(text) == lines


@pytest.mark.parametrize(("text", "lines"), SHOWN.values(), ids=SHOWN)
def test_the_last_line_is_the_last_one_that_is_not_blank(text: str, lines: list[str]) -> None:
    filled = [line.strip() for line in lines if line.strip()]
    assert LastLine().feed(text) == (filled[-1] if filled else "")


@pytest.mark.parametrize(("text", "lines"), SHOWN.values(), ids=SHOWN)
def test_the_last_line_may_come_character_by_character(text: str, lines: list[str]) -> None:
    follower = LastLine()
    for character in text:
        follower.feed(character)
    filled = [line.strip() for line in lines if line.strip()]
    assert follower.text == (filled[-1] if filled else "")


def test_a_line_that_was_erased_is_remembered_until_there_is_another() -> None:
    """Between two messages of a spinner the list shows the first, not nothing."""
    follower = LastLine()
    assert [follower.feed(text) for text in ("first", f"\r{ERASE}", "second")] == [
        "first", "first", "second",
    ]  # fmt: skip


def test_a_long_line_is_cut() -> None:
    assert LastLine().feed("x" * 1000 + "\n") == "x" * LINE_CHARACTERS


def test_what_is_far_behind_does_not_matter() -> None:
    """Following a stream costs the same after a gigabyte as at its start."""
    follower = LastLine()
    for number in range(500):
        assert follower.feed(f"line {number}\n") == f"line {number}"
    for number in range(500):
        assert follower.feed(f"\rat {number:04}") == f"at {number:04}"


# Texts as programs write them: words, line ends, cursor moves and pieces of broken sequences.
terminal_texts = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "\n", "\r", "\r\n", "\b", "\t", "\x1b", "\x1b[", "\x1b[A", "\x1b[2A", "\x1b[B",
                "\x1b[3C", "\x1b[D", "\x1b[G", "\x1b[5G", "\x1b[K", "\x1b[1K", "\x1b[2K", "\x1b[2J",
                "\x1b[31m", "\x1b[0m", "\x1b]0;title\x07", "\x1b]0;", "\x07", "\x1b\\", "\x1bM",
            ]
        ),
        st.text(max_size=8),
        st.text("ab \n\r", max_size=8),
    ),
    max_size=30,
).map("".join)  # fmt: skip


def split(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@unhurried
@given(terminal_texts, st.lists(st.integers(0, 10_000), max_size=10))
def test_it_does_not_matter_in_which_pieces_a_text_comes(text: str, places: list[int]) -> None:
    """As long as the text fits into the tail that is kept, and leaves a line that is not blank.

    Where all is blank in the end, what was there before is remembered, and depends on the pieces.
    """
    at_once = LastLine().feed(text)
    follower = LastLine()
    for piece in split(text, places):
        follower.feed(piece)
    if len(text) < TAIL_CHARACTERS and any(line.strip() for line in visible_lines(text)):
        assert follower.text == at_once


@unhurried
@given(
    st.lists(st.text("ab cé日", min_size=1).filter(str.strip), min_size=1),
    st.lists(st.integers(0, 100_000), max_size=10),
)
def test_plain_lines_are_followed_however_many_there_are(
    lines: list[str], places: list[int]
) -> None:
    """Beyond the tail as well, because a tail that is cut begins at a line."""
    text = "".join(f"{line}\n" for line in lines) * 200
    follower = LastLine()
    for piece in split(text, places):
        follower.feed(piece)
    assert follower.text == lines[-1].strip()[:LINE_CHARACTERS]


@unhurried
@given(st.lists(st.one_of(terminal_texts, st.text()), max_size=5))
def test_any_text_can_be_followed(pieces: list[str]) -> None:
    follower = LastLine()
    for piece in pieces:
        last = follower.feed(piece)
        assert last == follower.text
        assert len(last) <= LINE_CHARACTERS
        assert last == last.strip()
        assert not set(last) & set("\n\r\b\x1b\x07\0")


@unhurried
@given(st.text("\x1b[]0123456789;?:ABCDGHJKm\\\x07 x\n"))
def test_any_control_sequence_can_be_shown(text: str) -> None:
    assert all("\x1b" not in line for line in visible_lines(text))


@pytest.mark.parametrize("count", ["9" * 300, "9" * 5000])
def test_an_absurd_count_is_not_an_error(count: str) -> None:
    assert visible_lines(f"a\x1b[{count}A\x1b[{count}Gb")[0].startswith("a")


def test_a_few_bytes_do_not_make_a_large_screen() -> None:
    assert len(visible_lines("\x1b[4096B" * 1000 + "x")) < 10
    assert len(visible_lines("\x1b[4096C" * 1000 + "x")[0]) <= 1001
    assert len(visible_lines("\x1b[4096Bx" * 1000)) <= 5000
