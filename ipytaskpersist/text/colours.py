"""Colours that programs print for terminals, as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape

SEQUENCE = re.compile(
    r"\x1b\[(?P<arguments>[0-9;:]*)m"  # colours
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # other control sequences
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|\x1b[ -/]*[0-~]"  # other escapes
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
NAMES = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
ARGUMENTS_CHARACTERS = 128
"""As much of one sequence is looked at. No honest one is longer."""
LEVELS = (0, 95, 135, 175, 215, 255)


@dataclass(frozen=True, slots=True)
class Style:
    """How text looks from here on."""

    foreground: str = ""
    """A class of the page for one of the 16 colours, else a colour of CSS."""
    background: str = ""
    bold: bool = False
    faint: bool = False
    italic: bool = False
    underlined: bool = False

    def html(self, text: str) -> str:
        """The text in this style."""
        classes = [
            name for name in ("bold", "faint", "italic", "underlined") if getattr(self, name)
        ]
        styles = []
        for colour, prefix, css in (
            (self.foreground, "", "color"),
            (self.background, "on-", "background-color"),
        ):
            if colour.startswith("#"):
                styles.append(f"{css}:{colour}")
            elif colour:
                classes.append(prefix + colour)
        if not classes and not styles:
            return escape(text)
        attributes = f' class="{" ".join(classes)}"' if classes else ""
        attributes += f' style="{";".join(styles)}"' if styles else ""
        return f"<span{attributes}>{escape(text)}</span>"


PLAIN = Style()
FLAGS = {
    1: {"bold": True},
    2: {"faint": True},
    3: {"italic": True},
    4: {"underlined": True},
    22: {"bold": False, "faint": False},
    23: {"italic": False},
    24: {"underlined": False},
    39: {"foreground": ""},
    49: {"background": ""},
}


class Colours:
    """Turns lines of a stream into HTML. A colour goes on until the stream ends it."""

    def __init__(self) -> None:
        self._style = PLAIN

    def html(self, text: str) -> str:
        """The next piece of the text, which must not end inside a sequence."""
        return "".join(self._pieces(text))

    def _pieces(self, text: str) -> Iterator[str]:
        start = 0
        for found in SEQUENCE.finditer(text):
            if found.start() > start:
                yield self._style.html(text[start : found.start()])
            start = found.end()
            if found["arguments"] is not None:
                self._style = changed(self._style, found["arguments"])
        if start < len(text):
            yield self._style.html(text[start:])


def changed(style: Style, arguments: str) -> Style:
    """The style after the numbers of one sequence."""
    words = arguments[:ARGUMENTS_CHARACTERS].split(";")
    numbers = [number for word in words for number in _numbers(word)]
    while numbers:
        number = numbers.pop(0)
        if number == 0:
            style = PLAIN
        elif number in FLAGS:
            style = replace(style, **FLAGS[number])  # type: ignore[arg-type]
        elif number in (38, 48):
            style = _coloured(style, _extended(numbers), is_text=number == 38)
        else:
            style = _basic(style, number)
    return style


def _numbers(word: str) -> list[int]:
    """The numbers of one argument. What follows its colons belongs to it (ISO 8613-6)."""
    first, *details = (int(part[:9]) if part else 0 for part in word.split(":"))
    if first in (38, 48):
        # The form with colons may name a colour space: 38:2:SPACE:r:g:b.
        has_space = details[:1] == [2] and len(details) > 4
        return [first, *([2, *details[2:5]] if has_space else details)]
    return [24] if first == 4 and details == [0] else [first]


def _basic(style: Style, number: int) -> Style:
    """One of the 16 colours."""
    tens, unit = divmod(number, 10)
    if unit > 7 or tens not in (3, 4, 9, 10):
        return style
    name = f"{'bright-' if tens > 4 else ''}{NAMES[unit]}"
    return _coloured(style, name, is_text=tens in (3, 9))


def _coloured(style: Style, colour: str, *, is_text: bool) -> Style:
    return replace(style, foreground=colour) if is_text else replace(style, background=colour)


def _extended(numbers: list[int]) -> str:
    """A colour out of 256, or of red, green and blue. Takes its numbers away."""
    kind = numbers.pop(0) if numbers else 0
    if kind == 5 and numbers:
        return _of_256(min(numbers.pop(0), 255))
    if kind == 2 and len(numbers) >= 3:
        values = [min(numbers.pop(0), 255) for _ in range(3)]
        return "#{:02x}{:02x}{:02x}".format(*values)
    return ""


def _of_256(number: int) -> str:
    if number < 16:
        return f"{'bright-' if number > 7 else ''}{NAMES[number % 8]}"
    if number > 231:
        return "#" + f"{8 + 10 * (number - 232):02x}" * 3
    red, rest = divmod(number - 16, 36)
    green, blue = divmod(rest, 6)
    return f"#{LEVELS[red]:02x}{LEVELS[green]:02x}{LEVELS[blue]:02x}"
