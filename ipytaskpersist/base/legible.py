"""Make the text of tasks safe to show: unable to control a terminal or to disguise itself.

`legible` is for a text among others, as in a list; `Passage` for a task's output.
"""

from __future__ import annotations

import unicodedata
from typing import Any

REPLACEMENT = "�"
LEFT_TO_RIGHT_MARK = "\u200e"
MARKS_AT_MOST = 2
"""Per character: enough for every script, too few to reach into other lines."""
LEFT_OUT = frozenset("\u00ad\u034f\u200c\u200d")
"""Invisible hyphens, and joiners: terminals disagree on the width of what these join."""
BLANK_LETTERS = frozenset("\u115f\u1160\u17b4\u17b5\u3164\uffa0")
SKIN_TONES = range(0x1F3FB, 0x1F400)
FLAG_LETTERS = range(0x1F1E6, 0x1F200)
FORMS = (range(0x180B, 0x180E), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
"""Variation selectors, which make a character wider in some terminals only."""
TURNS = dict.fromkeys((*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
"""Characters that change the order in which others are shown."""
RIGHT_TO_LEFT = frozenset(("R", "AL", "AN"))


def legible(text: str) -> str:
    """Return the text in visible characters of a width on which terminals agree.

    The result for a prefix is a prefix of the result.
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks = MARKS_AT_MOST  # no character precedes that could carry a mark
    for character in text:
        is_mark = unicodedata.category(character) == "Mn"
        if is_mark and (marks := marks + 1) > MARKS_AT_MOST:
            continue
        piece = _legible(character)
        shown.append(piece)
        if piece and not is_mark:
            marks = 0
    return "".join(shown)


def legible_lines(text: str) -> str:
    """Return the text of several lines, each of them legible."""
    return "\n".join(map(legible, text.split("\n")))


def _legible(character: str) -> str:
    code = ord(character)
    if character in LEFT_OUT or code in SKIN_TONES or any(code in form for form in FORMS):
        return ""
    if unicodedata.category(character) == "Me":
        return ""  # an enclosing circle or key is wider than the character
    if code in FLAG_LETTERS:
        return chr(ord("A") + code - FLAG_LETTERS.start)
    if character == "\t" or unicodedata.category(character) == "Zs":
        return " "
    if not character.isprintable() or character in BLANK_LETTERS:
        return REPLACEMENT
    return character


def unturned(text: str) -> str:
    """Return the text without the characters that change the order of others."""
    return text if text.isascii() else text.translate(TURNS)


def kept_apart(text: str) -> str:
    """Return legible text isolated so that, if right-to-left, it does not affect its neighbours."""
    if text.isascii() or not RIGHT_TO_LEFT.intersection(map(unicodedata.bidirectional, text)):
        return text
    return f"{LEFT_TO_RIGHT_MARK}{text}{LEFT_TO_RIGHT_MARK}"


def encodable(text: str, stream: Any) -> str:
    """Return the text in characters that a stream can encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
