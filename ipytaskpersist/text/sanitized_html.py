"""Displays that do nothing but show: for what comes from elsewhere, and for static pages.

Jupyter trusts what a kernel sends. So what a task of another machine displayed must not reach a
notebook as it is: its HTML could run scripts with all that the notebook may do.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
PASSIVE = frozenset((*IMAGES, "text/plain", "text/latex", "application/json"))
"""What front ends show without running anything."""
KEPT = frozenset(
    (
        *("table", "thead", "tbody", "tfoot", "tr", "td", "th", "caption", "b", "i", "em"),
        *("p", "div", "span", "pre", "code", "ul", "ol", "li", "dl", "dt", "dd", "h1", "h2", "h3"),
        *("h4", "h5", "h6", "br", "hr", "sub", "sup", "small", "blockquote", "s", "u", "strong"),
    )
)
VOID = frozenset(("br", "hr"))
SILENT = frozenset(("head", "template", "svg"))
"""Whose text is not shown."""
DEPTH_AT_MOST = 100
CHARACTERS_AT_MOST = 8_000_000
"""How much of one display's HTML is looked at."""
SPANS = ("colspan", "rowspan")
SPAN = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)
MARKUP = re.compile(
    r"<(?:!(?P<comment>--)|(?P<other>[!?]|/[^a-zA-Z])|(?P<end>/)?(?P<tag>[a-zA-Z][^ \t\n\r\f/>]*+))"
)
ATTRIBUTE = re.compile(
    r"[ \t\n\r\f/]*+(?P<name>[^ \t\n\r\f/>][^ \t\n\r\f/>=]*+)(?:[ \t\n\r\f]*+=[ \t\n\r\f]*+"
    r"(?:\"(?P<double>[^\"]*+)\"|'(?P<single>[^']*+)'|(?P<bare>[^ \t\n\r\f>\"'][^ \t\n\r\f>]*+)))?+"
)
CLOSE = re.compile(r"[ \t\n\r\f/]*+(?P<empty>(?<=/))?>")
END_OF_TAG = re.compile(">")
END_OF_COMMENT = re.compile("--!?>")
END_OF_TEXT = {
    tag: re.compile(rf"</{tag}(?=[ \t\n\r\f/>])", re.IGNORECASE)
    for tag in ("script", "style", "title", "noscript", "iframe")
}
"""Where what is no markup inside an element ends."""
REFERENCE = re.compile(
    r"&(?:#[0-9]{1,7}+(?![0-9]);?|#[xX][0-9a-fA-F]{1,6}+(?![0-9a-fA-F]);?|[a-zA-Z][a-zA-Z0-9]{1,31};?)"
)
"""A character by its number or name. No character has a longer one."""


class _Harmless:
    """Keeps text and its structure: no attribute but the spans of cells, so nothing that acts.

    It need not take markup for what each browser takes it for, because all that it gives is a tag
    of `KEPT`, written here, or escaped text. So it is short, and goes through the HTML once: it
    never looks at a character again, or it ends.
    """

    def __init__(self, html: str) -> None:
        self._html = html
        self._pieces: list[str] = []
        self._open: list[str] = []
        self._silent: list[str] = []

    def whole(self) -> str:
        """The HTML made harmless."""
        place = 0
        while (markup := MARKUP.search(self._html, place)) is not None:
            self._text(place, markup.start())
            place = self._after(markup)
        self._text(place, len(self._html))
        self._pieces.extend(f"</{tag}>" for tag in reversed(self._open))
        return "".join(self._pieces)

    def _text(self, start: int, end: int) -> None:
        if not self._silent and start < end:
            self._pieces.append(escape(REFERENCE.sub(_character, self._html[start:end])))

    def _after(self, markup: re.Match[str]) -> int:
        """Take in what begins here, and return where it ends: at the end, where it never does."""
        if markup["comment"]:
            return self._past(END_OF_COMMENT, markup.start("comment"))
        if markup["other"]:
            return self._past(END_OF_TAG, markup.start("other"))
        tag, spans, place = markup["tag"].lower(), "", markup.end()
        while (attribute := ATTRIBUTE.match(self._html, place)) is not None:
            place = attribute.end()
            spans += _span(attribute)
        close = CLOSE.match(self._html, place)
        if close is None:
            return len(self._html)
        if markup["end"]:
            self._end(tag)
        elif tag in END_OF_TEXT:
            return self._past(END_OF_TAG, self._past(END_OF_TEXT[tag], close.end()))
        elif tag in SILENT and close["empty"] is None:
            self._silent.append(tag)
        elif tag in KEPT and not self._silent and len(self._open) < DEPTH_AT_MOST:
            self._begin(tag, spans)
        return close.end()

    def _past(self, end: re.Pattern[str], place: int) -> int:
        found = end.search(self._html, place)
        return len(self._html) if found is None else found.end()

    def _begin(self, tag: str, spans: str) -> None:
        self._pieces.append(f"<{tag}{spans}>")
        if tag not in VOID:
            self._open.append(tag)

    def _end(self, tag: str) -> None:
        if self._silent:
            if tag == self._silent[-1]:
                self._silent.pop()
        elif tag in self._open:
            # What is still open inside is closed with it, so that the page stays whole.
            while (inner := self._open.pop()) != tag:
                self._pieces.append(f"</{inner}>")
            self._pieces.append(f"</{tag}>")


def _character(reference: re.Match[str]) -> str:
    return unescape(reference[0])


def _span(attribute: re.Match[str]) -> str:
    name = attribute["name"].lower()
    value = attribute["double"] or attribute["single"] or attribute["bare"] or ""
    return f' {name}="{value}"' if name in SPANS and SPAN.fullmatch(value) else ""


def harmless_html(html: str) -> str:
    """The HTML without anything that acts, loads or looks different from its text and tables."""
    left_out = len(html) - CHARACTERS_AT_MOST
    made = _Harmless(html[:CHARACTERS_AT_MOST]).whole()
    return made if left_out <= 0 else f"{made}<p>[{left_out:,} more characters of HTML]</p>"


def harmless_output(output: dict[str, Any]) -> dict[str, Any]:
    """The output with only those of its forms that do nothing, and its HTML made so."""
    if "data" not in output:
        return output
    data = {mime: value for mime, value in output["data"].items() if mime in PASSIVE}
    html = output["data"].get("text/html")
    if html is not None:
        data["text/html"] = harmless_html("".join(html))
    return {**output, "data": data, "metadata": {}}
