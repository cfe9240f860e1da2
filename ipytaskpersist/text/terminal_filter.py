"""Pass a task's text to a terminal with its colours, but no other control over the terminal."""

from __future__ import annotations

import re
from functools import cache

TOKEN = (  # of a terminal, not of a person  # nosec B105
    r"(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
    r"|(?P<end>\n)|(?P<move>[\r\b\t])"
    r"|(?:\x1b\[|\x9b)(?P<arguments>[0-?]*)[ -/]*(?P<command>[@-~])"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c|(?=\x1b[^\\]))"
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*(?=[^ -~])|\x1b[ -/]*(?=[^ -~])"  # interrupted by something else
    # A single character of 0x80 to 0x9f is more often text in a wrong encoding than a command, and
    # UTF-8 terminals ignore most: none opens a string that would swallow what follows.
    r"|[\x00-\x1a\x1c-\x1f\x7f-\x9a\x9c-\x9f]"
)
"""Matches one unit of terminal input. No match while the rest has yet to come."""

UNFINISHED_AT_MOST = 4096
"""Maximum length of an unfinished sequence. No legitimate one is longer."""

STYLE = re.compile(r"[0-9;:]{0,64}")

COUNT = re.compile(r"[0-9]{0,4}")

WITHIN_THE_LINE = frozenset("CDGK")

RESET = "\x1b[m"


@cache
def _compiled() -> re.Pattern[str]:
    """Return the compiled pattern. Compiled on first use, not when the extension is loaded."""
    return re.compile(TOKEN)


def _without_introducer(rest: str) -> str:
    """Return a sequence that never ended, as the text that it then is."""
    return "".join(c for c in rest.lstrip("\x1b")[1:] if c.isprintable() or c == "\n")


class TerminalFilter:
    """Passes a task's text to a terminal, with its colours and moving progress bars.

    Movement stays within the lines that it has written. Titles, the clipboard, queries to the
    terminal, alternate screens and everything else are dropped.
    """

    def __init__(self, *, styled: bool = True, moving: bool = True) -> None:
        """Drop colours unless `styled`, and every sequence unless `moving`."""
        self._styled = styled and moving
        self._moving = moving
        self._rest: dict[str, str] = {}
        self._above = 0
        self._below = 0
        """Number of its own lines above and below the cursor."""
        self._is_styled = False
        self._in_line = False

    def let_through(self, text: str, source: str = "") -> str:
        """Return what the terminal may receive of the next piece of a source's text."""
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
        """Return what resets the terminal for others: no colour, below everything written."""
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
        """Whether the cursor's line contains text."""
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
        """Move up or down, but not beyond what was written."""
        lines = max(-self._above, min(lines, self._below))
        self._above, self._below = self._above + lines, self._below - lines
        # The resulting column does not matter to code that may only write here.
        start = "\r" if command in ("E", "F") else ""
        return start + (f"\x1b[{abs(lines)}{'A' if lines < 0 else 'B'}" if lines else "")
