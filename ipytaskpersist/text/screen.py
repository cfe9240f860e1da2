"""Text as a terminal would show it: carriage returns, backspaces and cursor moves resolved.

Progress bars draw over themselves: tqdm, pip and wget return to the start of the line, nested bars
move the cursor up. A list that shows a task's last line must show what a user would see, not the
raw characters.
"""

from __future__ import annotations

import re

TOKEN = re.compile(
    r"(?:\x1b\[|\x9b)(?P<arguments>[0-?]*)[ -/]*(?P<command>[@-~])"  # control sequences
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles and links
    r"|\x1b[ -/]*[0-~]?"  # other escapes
    r"|(?P<control>[\x00-\x1f\x7f-\x9f])"
    r"|(?P<run>[^\x00-\x1f\x7f-\x9f]+)"
)
MOVES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that make a terminal show a text otherwise than line by line."""
TAIL_CHARACTERS = 4096
LINE_CHARACTERS = 240
TAB = 8
ROWS_BELOW = 4
"""How far a cursor can be moved below everything written."""
ROW_CHARACTERS = 64 * 1024
"""Maximum length of a row. A change takes time proportional to it."""
WIDTH = 1000
"""Columns to which a cursor can be moved: otherwise a few bytes would make a line of megabytes."""


class Screen:
    """A terminal wider than any line of legitimate output: rows of text and a cursor."""

    row_characters = ROW_CHARACTERS

    def __init__(self) -> None:
        self.rows = [""]
        self.row = 0
        self.column = 0
        self._reached = 0
        """The lowest row that was written, or reached by a line feed."""

    def feed(self, text: str) -> None:
        """Show `text`, starting at the cursor."""
        for token in TOKEN.finditer(text):
            if token["run"]:
                self._write(token["run"])
            elif token["control"]:
                self._control(token["control"])
            elif token["command"]:
                self._command(token["command"], token["arguments"])

    def _write(self, run: str) -> None:
        self._reached = max(self._reached, self.row)
        row = self.rows[self.row].ljust(self.column)
        run = run[: self.row_characters - self.column]
        end = self.column + len(run)
        self.rows[self.row] = row[: self.column] + run + row[end:]
        self.column = end

    def _control(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._move_down(1)
            self._reached = max(self._reached, self.row)
            self.column = 0
        elif character == "\t":
            self.column = min(self.column + TAB - self.column % TAB, self.row_characters)
        elif character == "\b":
            self.column = max(0, self.column - 1)

    def _move_down(self, count: int) -> None:
        self.row += count
        self.rows.extend([""] * (self.row + 1 - len(self.rows)))

    def _command(self, command: str, arguments: str) -> None:
        first = arguments.split(";", maxsplit=1)[0]
        count = min(int(first[:9]), TAIL_CHARACTERS) if first.isdecimal() else 0
        if command == "A":
            self.row = max(0, self.row - max(1, count))
        elif command == "B":
            self._move_down(min(max(1, count), self._reached + ROWS_BELOW - self.row))
        elif command == "C":
            self.column = self._within(self.column + max(1, count))
        elif command == "D":
            self.column = max(0, self.column - max(1, count))
        elif command == "G":
            self.column = self._within(max(0, count - 1))
        elif command == "K":
            self._erase_line(count)
        elif command == "J" and count == 2:
            self.rows, self.row, self.column, self._reached = [""], 0, 0, 0

    def _within(self, column: int) -> int:
        """Limit a column to what was written, or to a wide terminal."""
        return min(column, max(WIDTH, len(self.rows[self.row])))

    def _erase_line(self, which: int) -> None:
        row = self.rows[self.row]
        if which == 0:
            self.rows[self.row] = row[: self.column]
        elif which == 1:
            self.rows[self.row] = " " * self.column + row[self.column :]
        elif which == 2:
            self.rows[self.row] = ""


def beginning(line: str) -> str:
    """Return the displayed part of a visible line; empty when it is blank.

    Text that a cursor move has put further to the right is shown as well: a terminal has its edge
    there.
    """
    return line[:LINE_CHARACTERS].rstrip() or line.strip()[:LINE_CHARACTERS]


def visible_lines(text: str) -> list[str]:
    """Return the lines that a terminal would show of `text`, without colours."""
    if MOVES.search(text) is None and "\t" not in text:
        return [row[:ROW_CHARACTERS].rstrip() for row in text.split("\n")]
    screen = Screen()
    screen.feed(text)
    return [row.rstrip() for row in screen.rows]


class LastLine:
    """Follows one stream and knows its last visible line that is not blank."""

    def __init__(self) -> None:
        self._tail = ""
        self.text = ""
        self.lines: list[str] = []
        """The non-blank visible lines of the last piece, or at least the last of them."""

    def feed(self, text: str) -> str:
        """Process the next piece of the stream and return its present last line."""
        tail = (self._tail + text)[-TAIL_CHARACTERS:]
        if len(tail) == TAIL_CHARACTERS:
            # A cut line would look like a whole one, so start after it if possible.
            start = tail.find("\n", 0, -1)
            tail = tail[start + 1 :]
        self._tail = tail
        if MOVES.search(tail) is None:
            # Only line ends move the cursor: the last line shows as it is.
            tail = tail.rstrip()[-TAIL_CHARACTERS:]
            tail = tail[tail.rfind("\n") + 1 :]
        self.lines = filled = [line for line in visible_lines(tail) if line.strip()]
        if filled:
            self.text = filled[-1].strip()[:LINE_CHARACTERS]
        return self.text
