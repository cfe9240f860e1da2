"""Text as a search sees it: as a terminal shows it, with case and accents folded."""

from __future__ import annotations

import re
import unicodedata

from ipytaskpersist.text.screen import ROW_CHARACTERS, visible_lines

ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # control sequences
    r"|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # titles and links, to the end of the line at most
    r"|\x1b[ -/]*[0-~]?"  # other escapes
)
STEERING = ("\x08", "\r", "\x1b", "\x9b")
"""Characters that make a terminal show a line otherwise than it was written."""
STEERING_BYTES = tuple(character.encode() for character in STEERING)
WORD = re.compile(r"(?<![^\W_])[0-9]+(?:\.[0-9]+)+(?![^\W_])|[^\W_]+")
"""Letters and digits, or a number with points in it: nearly every log has a 0 and a 125 somewhere,
but few have 0.125."""
ASCII_WORD = re.compile(rb"(?<![0-9a-z])[0-9]+(?:\.[0-9]+)+(?![0-9a-z])|[0-9a-z]+")
FIRST_NOT_ASCII = 128
IS_OF_WORD = bytes(
    ord(chr(code).lower()) if chr(code).isalnum() or code == ord(".") else ord(" ")
    for code in range(FIRST_NOT_ASCII)
) + bytes(range(FIRST_NOT_ASCII, 256))
"""Maps ASCII separators to blanks and capitals to lower case. Points stay, for numbers."""


def as_shown(text: str) -> str:
    """Return the text as a terminal would show it, with as many lines as it has line feeds."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if not any(character in text for character in STEERING):
        return text
    text = text.replace("\r\n", "\n")
    if "\r" in text or "\x08" in text:
        text = "\n".join(map(_line_as_shown, text.split("\n")))
    return ESCAPES.sub("", text)


def _line_as_shown(line: str) -> str:
    if "\r" in line or "\x08" in line:
        # No row of a screen is longer, and no word is to be lost.
        starts = range(0, len(line), ROW_CHARACTERS)
        pieces = (visible_lines(line[start : start + ROW_CHARACTERS]) for start in starts)
        return " ".join(filter(None, (row for rows in pieces for row in rows)))
    return line


class _Folding(dict[int, int]):
    """Folded form of each character, computed on first use."""

    def __missing__(self, code: int) -> int:
        parts = unicodedata.normalize("NFD", chr(code))
        character = parts[0] if all(map(unicodedata.combining, parts[1:])) else chr(code)
        folded = character.casefold()
        self[code] = ord(folded if len(folded) == 1 else character)
        return self[code]


_folding = _Folding()


def fold(text: str) -> str:
    """Return the text without case and accents, each character in its place."""
    return text.lower() if text.isascii() else text.translate(_folding)


def words(text: str) -> tuple[str, ...]:
    """Return the folded words of a text in order."""
    return tuple(WORD.findall(fold(unicodedata.normalize("NFC", text))))


def distinct_words(data: bytes) -> str:
    """Return every folded word of a stream, most of them once, in any order."""
    if any(steering in data for steering in STEERING_BYTES):
        data = as_shown(data.decode("utf-8", "replace")).encode("utf-8", "replace")
    # Two calls in C for a megabyte: a regular expression takes five times as long.
    found = set(data.translate(IS_OF_WORD).split())
    if not all(map(bytes.isascii, found)):
        return " ".join(set(words(b" ".join(found).decode("utf-8", "replace"))))
    pointed = {each for each in found if b"." in each}
    return b" ".join(found - pointed | {*ASCII_WORD.findall(b" ".join(pointed))}).decode()
