"""Export tasks as one static web page: no script, no network access, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from ipytaskpersist.base.legible import legible_lines, unturned
from ipytaskpersist.history.exporting import Export, ExportedTask, heading
from ipytaskpersist.output import replay
from ipytaskpersist.output.replay import Output
from ipytaskpersist.text import formatting
from ipytaskpersist.text.colours import Colours
from ipytaskpersist.text.pictures import SVG, joined, picture_source
from ipytaskpersist.text.sanitized_html import harmless_html

LINE_CHARACTERS = 64 * 1024
"""Length from which an unfinished line is written."""
STYLE = """
:root { color-scheme: light dark }
body { font-family: system-ui, -apple-system, sans-serif; font-size: 14px; line-height: 1.45;
  max-width: 980px; margin: 2em auto; padding: 0 1em; background: Canvas; color: CanvasText }
section { border: 1px solid rgba(128,128,128,.28); border-left-width: 4px; border-radius: 6px;
  padding: 8px 14px; margin: 0 0 1.2em }
h1 { font-size: 1.3em } h2 { font-size: 1.05em; margin: .2em 0 }
.facts { opacity: .7; font-size: 12px }
pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12px;
  line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; margin: .5em 0 }
pre.source { background: rgba(128,128,128,.1); padding: 6px 10px; border-radius: 4px }
pre.stderr { background: rgba(214,69,61,.1) }
img { max-width: 100% } .white { background: #fff }
table { border-collapse: collapse; font-size: 12px }
td, th { border: 1px solid rgba(128,128,128,.28); padding: 2px 8px; text-align: right }
.bold { font-weight: 600 } .faint { opacity: .65 } .italic { font-style: italic }
.underlined { text-decoration: underline }
"""
COLOURS = {
    "black": "#3e424d", "red": "#d6453d", "green": "#2e9e5b", "yellow": "#b58900",
    "blue": "#2f7de1", "magenta": "#a347ba", "cyan": "#1899a8", "white": "#a1a6b2",
    "bright-black": "#8a8f98", "bright-red": "#e75c58", "bright-green": "#43b36c",
    "bright-yellow": "#c98a00", "bright-blue": "#4b93ee", "bright-magenta": "#b862ce",
    "bright-cyan": "#35aeba", "bright-white": "#c5c9d2",
}  # fmt: skip
"""The 16 colours of a terminal, chosen to be legible on white and on black."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(export: Export) -> Iterator[bytes]:
    """Yield the page, piece by piece."""
    rules = "".join(
        f".{name} {{ color: {value} }} .on-{name} {{ background-color: {value} }}\n"
        for name, value in COLOURS.items()
    )
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Background tasks</title>\n<style>{STYLE}{rules}</style></head>\n"
        "<body><h1>Background tasks</h1>\n"
    ).encode()
    for found in export.tasks():
        for piece in _section(found):
            yield piece.encode("utf-8", "replace")
    yield b"</body></html>\n"


def _section(found: ExportedTask) -> Iterator[str]:
    task = found.record
    name, facts = heading(task)
    colour = formatting.STATE_STYLES[task.state].colour
    yield (
        f'<section style="border-left-color:{colour}"><h2>{escape(name)}</h2>\n'
        f'<div class="facts">{escape(facts)}</div>\n'
        f'<pre class="source">{escape(legible_lines(task.source.rstrip().expandtabs(8)))}</pre>\n'
    )
    yield from _outputs(replay.of_task(found.store, task.key))
    yield "</section>\n"


def _outputs(pieces: Iterable[Output]) -> Iterator[str]:
    stream: _Stream | None = None
    for piece in pieces:
        name = piece["name"] if piece["output_type"] == "stream" else ""
        if stream is not None and stream.name != name:
            yield stream.end()
            stream = None
        if not name:
            yield shown(piece)
            continue
        if stream is None:
            stream = _Stream(name)
            yield f'<pre class="{name}">'
        yield stream.html(piece["text"])
    if stream is not None:
        yield stream.end()


class _Stream:
    """A stream, converted line by line to what a terminal finally shows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._colours = Colours()
        self._line = ""

    def html(self, text: str) -> str:
        *lines, self._line = (self._line + text).split("\n")
        if len(self._line) > LINE_CHARACTERS:
            lines.append(self._line)
            self._line = ""
        return "".join(f"{self._html_of(line)}\n" for line in lines)

    def _html_of(self, line: str) -> str:
        return self._colours.html(_overwritten(unturned(line)))

    def end(self) -> str:
        return f"{self._html_of(self._line)}</pre>\n"


def _overwritten(line: str) -> str:
    """Apply the carriage returns of a line, with which progress bars start over."""
    return line.rstrip("\r").rpartition("\r")[2]


def shown(output: Output) -> str:
    """Return a display, a result or an error as inert HTML."""
    if output["output_type"] == "error":
        text = "\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}"
        return f'<pre class="stderr">{Colours().html(unturned(text))}</pre>\n'
    data = {mime: joined(value) for mime, value in output.get("data", {}).items()}
    source = picture_source(data)
    if source:
        white = ' class="white"' if source.startswith(f"data:{SVG}") else ""
        return f'<img alt=""{white} src="{source}">\n'
    if "text/html" in data:
        return f"<div>{harmless_html(unturned(data['text/html']))}</div>\n"
    text = data.get("text/plain", f"<{', '.join(data)}>")
    return f"<pre>{Colours().html(unturned(text))}</pre>\n"
