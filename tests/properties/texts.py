"""Texts and bytes as people and programs write them, and as nobody should."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import strategies as st

SEQUENCES = (
    *("\n", "\r", "\r\n", "\b", "\t", "\x07", "\x0b", "\x0c", "\x7f", "\x85", "\x9b", "\x9c"),
    *("\x1b", "\x1b[", "\x1b\\", "\x1bM", "\x1bc", "\x1b(B", "\x1b[?25l", "\x1b[6n", "\x1b[!p"),
    *("\x1b[A", "\x1b[2A", "\x1b[99A", "\x1b[B", "\x1b[3B", "\x1b[C", "\x1b[7C", "\x1b[D"),
    *("\x1b[2D", "\x1b[E", "\x1b[2F", "\x1b[G", "\x1b[5G", "\x1b[99999999999G", "\x9b3G"),
    *("\x1b[K", "\x1b[0K", "\x1b[1K", "\x1b[2K", "\x1b[J", "\x1b[1J", "\x1b[2J", "\x1b[3;4H"),
    *("\x1b[m", "\x1b[0m", "\x1b[1;31m", "\x1b[38;5;200m", "\x1b[48;2;1;2;300m", "\x1b[38:2m"),
    *("\x1b]0;title\x07", "\x1b]0;", "\x1b]8;;http://a\x1b\\", "\x1b]52;c;AAAA\x9c"),
    *("\x1bP", "\x1b_", "שלום"),
    *("\u202e", "\u200d", "\u0301", "\u0301\u0302\u0303", "\ufe0f", "🏳️‍🌈", "👩‍💻", "🇩🇪", "日本"),
    *("한", "ᄀ", "\u115f", "e\u0301", "ﷺ", "\U000e0041", "\ufeff", "\ud800", "\udcff", "ß", "İ"),
)  # fmt: skip

lines = st.text(st.sampled_from("ab \n"), max_size=12)
terminal_texts = st.lists(
    st.one_of(
        st.sampled_from(SEQUENCES),
        st.text(max_size=8),
        lines,
        st.integers(0, 0x9F).map(chr),
    ),
    max_size=25,
).map("".join)
"""What steers a terminal, whole and in pieces, between words in any script."""

any_text = st.one_of(
    terminal_texts,
    st.text(max_size=60),
    st.text(st.characters(), max_size=40),
    st.text("0123456789.-:TZ+smhdw \"'*@/[]{}", max_size=30),
)
any_bytes = st.one_of(
    st.binary(max_size=80),
    terminal_texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
)
places = st.lists(st.integers(0, 10_000), max_size=8)
"""Where something is cut; see `cut`."""


def cut(whole: str, at: list[int]) -> list[str]:
    """A text in pieces."""
    edges = [0, *sorted(place % (len(whole) + 1) for place in at), len(whole)]
    return [whole[start:end] for start, end in pairwise(edges)]


def cut_bytes(whole: bytes, at: list[int]) -> list[bytes]:
    """Bytes in pieces."""
    edges = [0, *sorted(place % (len(whole) + 1) for place in at), len(whole)]
    return [whole[start:end] for start, end in pairwise(edges)]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([math.nan, math.inf])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
"""What the json module reads and writes, with the numbers that no standard knows."""
