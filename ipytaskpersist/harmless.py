"""Displays that do nothing but show: for what comes from elsewhere, and for static pages.

Jupyter trusts what a kernel sends. So what a task of another machine displayed must not reach a
notebook as it is: its HTML could run scripts with all that the notebook may do.
"""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser
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
SILENT = frozenset(("script", "style", "head", "title", "template", "noscript", "iframe", "svg"))
DEPTH_AT_MOST = 100
SPAN = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)


class _Harmless(HTMLParser):
    """Keeps text and its structure: no attribute but the spans of cells, so nothing that acts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._open: list[str] = []
        self._silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._silent or tag in SILENT:
            self._silent.extend([tag] if tag in SILENT else [])
        elif tag in KEPT and len(self._open) < DEPTH_AT_MOST:
            spans = "".join(
                f' {name}="{value}"'
                for name, value in attrs
                if name in ("colspan", "rowspan") and value and SPAN.fullmatch(value)
            )
            self.pieces.append(f"<{tag}{spans}>")
            if tag not in VOID:
                self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in SILENT:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            if tag == self._silent[-1]:
                self._silent.pop()
        elif tag in self._open:
            # What is still open inside is closed with it, so that the page stays whole.
            while (inner := self._open.pop()) != tag:
                self.pieces.append(f"</{inner}>")
            self.pieces.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(escape(data))

    def finish(self) -> str:
        self.close()
        self.pieces.extend(f"</{tag}>" for tag in reversed(self._open))
        return "".join(self.pieces)


def harmless_html(html: str) -> str:
    """The HTML without anything that acts, loads or looks different from its text and tables."""
    parser = _Harmless()
    parser.feed(html)
    return parser.finish()


def harmless_output(output: dict[str, Any]) -> dict[str, Any]:
    """The output with only those of its forms that do nothing, and its HTML made so."""
    if "data" not in output:
        return output
    data = {mime: value for mime, value in output["data"].items() if mime in PASSIVE}
    html = output["data"].get("text/html")
    if html is not None:
        data["text/html"] = harmless_html("".join(html))
    return {**output, "data": data, "metadata": {}}
