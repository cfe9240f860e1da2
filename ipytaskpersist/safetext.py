"""Text of tasks made safe to show: it can neither steer a terminal nor look like what it is not.

`legible` is for a text among others, as in a list; `Passage` for what a task has printed.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

REPLACEMENT = "�"
LEFT_TO_RIGHT_MARK = "\u200e"
MARKS_AT_MOST = 2
"""On one character: enough for every script, too few to climb into other lines."""
LEFT_OUT = frozenset("\u00ad\u034f\u200c\u200d")
"""Hyphens that do not show, and joiners: terminals do not agree on how wide what they join is."""
BLANK_LETTERS = frozenset("\u115f\u1160\u17b4\u17b5\u3164\uffa0")
SKIN_TONES = range(0x1F3FB, 0x1F400)
FLAG_LETTERS = range(0x1F1E6, 0x1F200)
FORMS = (range(0x180B, 0x180E), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
"""Variation selectors, which make a character wider in some terminals and not in others."""
TURNS = dict.fromkeys((*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
"""What change the order in which other characters are shown."""
RIGHT_TO_LEFT = frozenset(("R", "AL", "AN"))


def legible(text: str) -> str:
    """The text in characters that all show, each where it stands and as wide as terminals agree.

    What a text becomes begins with what its beginnings become.
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks = MARKS_AT_MOST  # there is nothing yet that could carry one
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
    """The text of several lines, each of them legible."""
    return "\n".join(map(legible, text.split("\n")))


def _legible(character: str) -> str:
    code = ord(character)
    if character in LEFT_OUT or code in SKIN_TONES or any(code in form for form in FORMS):
        return ""
    if unicodedata.category(character) == "Me":
        return ""  # a circle or a key around a character is wider than that
    if code in FLAG_LETTERS:
        return chr(ord("A") + code - FLAG_LETTERS.start)
    if character == "\t" or unicodedata.category(character) == "Zs":
        return " "
    if not character.isprintable() or character in BLANK_LETTERS:
        return REPLACEMENT
    return character


def unturned(text: str) -> str:
    """The text without the characters that change the order in which others are shown."""
    return text if text.isascii() else text.translate(TURNS)


def kept_apart(text: str) -> str:
    """The legible text so that, where it is written from right to left, its neighbours are not."""
    if text.isascii() or not RIGHT_TO_LEFT.intersection(map(unicodedata.bidirectional, text)):
        return text
    return f"{LEFT_TO_RIGHT_MARK}{text}{LEFT_TO_RIGHT_MARK}"


def encodable(text: str, stream: Any) -> str:
    """The text in characters that a stream can take."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


TOKEN = (  # of a terminal, not of a person  # nosec B105
    r"(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
    r"|(?P<end>\n)|(?P<move>[\r\b\t])"
    r"|(?:\x1b\[|\x9b)(?P<arguments>[0-?]*)[ -/]*(?P<command>[@-~])"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c|(?=\x1b[^\\]))"
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*(?=[^ -~])|\x1b[ -/]*(?=[^ -~])"  # broken off by something else
    # A single character of 0x80 to 0x9f is more often text in a wrong encoding than a command, and
    # UTF-8 terminals make nothing of most: none opens a string that would swallow what follows.
    r"|[\x00-\x1a\x1c-\x1f\x7f-\x9a\x9c-\x9f]"
)
"""What a terminal takes as one. No match where the rest has yet to come."""
UNFINISHED_AT_MOST = 4096
"""Characters of a sequence whose end has not come. No honest one is longer."""
STYLE = re.compile(r"[0-9;:]{0,64}")
COUNT = re.compile(r"[0-9]{0,4}")
WITHIN_THE_LINE = frozenset("CDGK")
RESET = "\x1b[m"


@cache
def _compiled() -> re.Pattern[str]:
    """Compiled for the first text of a task, not when the extension is loaded."""
    return re.compile(TOKEN)


def _without_introducer(rest: str) -> str:
    """A sequence whose end never came, as the text that it then is."""
    return "".join(c for c in rest.lstrip("\x1b")[1:] if c.isprintable() or c == "\n")


class Passage:
    """Lets text of a task through to a terminal: its colours, and progress bars that move.

    It moves only within the lines that it has itself written. Titles, the clipboard, questions to
    the terminal, other screens and whatever else there is do not come through.
    """

    def __init__(self, *, styled: bool = True, moving: bool = True) -> None:
        """Without `styled` colours are left out, and without `moving` every sequence."""
        self._styled = styled and moving
        self._moving = moving
        self._rest: dict[str, str] = {}
        self._above = 0
        self._below = 0
        """How many lines of its own are above and below the cursor."""
        self._is_styled = False
        self._in_line = False

    def let_through(self, text: str, source: str = "") -> str:
        """What the terminal may have of the next piece of a source's text."""
        text = self._rest.pop(source, "") + text
        token_at = _compiled().match
        passed, place = [], 0
        while place < len(text):
            token = token_at(text, place)
            if token is None:
                if len(text) - place > UNFINISHED_AT_MOST:
                    place += 1
                    continue
                self._rest[source] = text[place:]
                break
            passed.append(self._passed(token))
            place = token.end()
        return "".join(passed)

    def finish(self) -> str:
        """What makes the terminal ready for others: no colour, below all that was written."""
        down = f"\x1b[{self._below}B" if self._below else ""
        passed = f"{RESET if self._is_styled else ''}{down}"
        if self._below:
            passed += "\r\n"
            self._in_line = False
        held = "".join(map(_without_introducer, self._rest.values()))
        self._rest.clear()
        self._above, self._below, self._is_styled = 0, 0, False
        return held + passed

    @property
    def in_line(self) -> bool:
        """Whether something stands in the line of the cursor."""
        return self._in_line

    def _passed(self, token: re.Match[str]) -> str:
        if token["text"]:
            self._in_line = True
            return token["text"]
        if token["end"]:
            self._above, self._below, self._in_line = (
                self._above + 1,
                max(0, self._below - 1),
                False,
            )
            return "\n"
        if token["move"]:
            return token["move"]
        return self._command(token["command"], token["arguments"]) if token["command"] else ""

    def _command(self, command: str, arguments: str) -> str:
        if command == "m":
            if not self._styled or not STYLE.fullmatch(arguments):
                return ""
            self._is_styled = bool(arguments.strip("0;"))
            return f"\x1b[{arguments}m"
        if not self._moving or not COUNT.fullmatch(arguments):
            return ""
        if command in WITHIN_THE_LINE or (command == "J" and not arguments.strip("0")):
            return f"\x1b[{arguments}{command}"
        if command in ("A", "F"):
            return self._vertical(-max(1, int(arguments or 1)), command)
        if command in ("B", "E"):
            return self._vertical(max(1, int(arguments or 1)), command)
        return ""

    def _vertical(self, lines: int, command: str) -> str:
        """Move up or down, but not out of what was written."""
        lines = max(-self._above, min(lines, self._below))
        self._above, self._below = self._above + lines, self._below - lines
        # In which column the cursor then stands is all the same to whoever may only write here.
        start = "\r" if command in ("E", "F") else ""
        return start + (f"\x1b[{abs(lines)}{'A' if lines < 0 else 'B'}" if lines else "")
