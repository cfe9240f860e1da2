"""Progress bars in a task's output: how far it has come, without a change to its code.

Recognised are tqdm's bars, and those of programs that draw likewise: wget's, and cmake's
percentages. A percentage that is not part of a bar may be anything, such as an accuracy, and is
ignored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ipytaskpersist.base.records import Progress

TEXT_CHARACTERS = 80
LINE_CHARACTERS = 240
_COUNT = r"\d[\d.]*[kMGTPEZY]?"
BAR = re.compile(
    r"^(?:(?P<text>.*?):? +|(?P<glued>.*?): )?"
    r"(?P<percent>\d{1,3})%(?:\|.*\||\[[^\]]*\])"  # 70%|███   | of tqdm, 70%[==> ] of wget
    rf"(?: *(?P<done>{_COUNT})/(?P<total>{_COUNT}))?",
    re.ASCII,
)
COUNTER = re.compile(
    rf"^(?:(?P<text>.*?): )?(?P<done>{_COUNT})[A-Za-z]* "
    r"\[(?:\d+:)?\d+:\d\d, +(?:\?|[\d.]+)\S*/\S+[\],]",
    re.ASCII,
)
"""tqdm's form when the total is unknown: ``123it [00:05, 24.6it/s]``."""
BUILD = re.compile(r"^\[ *(?P<percent>\d{1,3})%\] ", re.ASCII)
SCALES = {letter: 1000.0 ** (place + 1) for place, letter in enumerate("kMGTPEZY")}


def of_line(line: str) -> Progress | None:
    """Return the progress that a line shows; None when it is no progress bar."""
    form = _form(line)
    found = form and form.match(line[:LINE_CHARACTERS].strip())
    if found is None:
        return None
    parts = found.groupdict()
    text = (parts.get("text") or parts.get("glued") or "").strip().rstrip(":")[:TEXT_CHARACTERS]
    done, total = _number(parts.get("done")), _number(parts.get("total"))
    percent = parts.get("percent")
    if percent is not None and (done is None or not total):
        return Progress(min(100.0, float(percent)), 100.0, text)
    return None if done is None else Progress(done, total, text)


def _form(line: str) -> re.Pattern[str] | None:
    """Return the bar that a line may be. Most lines are none, and all are checked."""
    if "%|" in line or "%[" in line:
        return BAR
    if "%] " in line:
        return BUILD
    return COUNTER if " [" in line else None


def _number(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return float(text.rstrip("kMGTPEZY")) * SCALES.get(text[-1], 1.0)
    except ValueError:
        return None


def _which(bar: Progress) -> tuple[str, float | None]:
    """Return what distinguishes a bar from others."""
    return bar.text, bar.total


class Bars:
    """Follows the progress bars of one stream. Of nested ones the outermost counts."""

    def __init__(self) -> None:
        self._outermost: tuple[str, float | None] | None = None

    def feed(self, lines: Sequence[str]) -> Progress | None:
        """Return the progress that the last visible lines show; None when they show none."""
        last = of_line(lines[-1]) if lines else None
        if last is None:
            self._outermost = None
            return None
        outer = last
        for line in reversed(lines[:-1]):
            above = of_line(line)
            if above is None:
                break
            outer = above
        if _which(outer) != _which(last):
            self._outermost = _which(outer)
        elif self._outermost not in (None, _which(last)):
            # Only an inner bar is in sight, because it has been drawn so often since.
            return None
        return outer
