"""Pages of the documentation, as tests read them: links, headings, and examples in order.

A fenced block says its language. Of these, some are run, page by page and from top to bottom:

    python      a cell, in the page's one kernel
    ipython     a transcript: each `In [1]: …` is a cell, what stands below it is what it shows
    console     each line that begins with `$ ` is run by a shell, the others are what it shows

HTML comments before a block, which a reader does not see, say more about it:

    <!-- restart -->            the kernel is restarted at this place of the page
    <!-- before: … -->          a cell that is run at this place: what an example takes as given,
                                or the name of the file that has it
    <!-- fails -->              the next block ends with an error, and is meant to
    <!-- shows -->              what stands below the next block's commands, or in the text block
                                after a cell, is what it shows; `…` stands for anything
    <!-- file: name -->         the next block is written into this file
    <!-- not run: why -->       the next block is not run
    <!-- needs: verb … -->      the next block or passage needs these verbs; not run without them
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layout import ROOT

RUN = ("python", "ipython", "console")
SAYINGS = ("fails", "shows", "file", "not run", "needs")

FENCE = re.compile(
    r"^(?P<margin> *)(?P<mark>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=margin)(?P=mark) *$",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"^ *<!--(?P<words>.*?)-->", re.MULTILINE | re.DOTALL)
LINK = re.compile(
    r"!?\[(?P<text>[^][]*(?:\[[^][]*\][^][]*)*)\]\((?P<target>[^()\s]*(?:\([^()]*\))?)\)"
)
ADDRESS = re.compile(r"<(?P<target>https?:[^>\s]*)>")
HEADING = re.compile(r"^#+ +(?P<title>.*?) *#*$", re.MULTILINE)


def pages() -> list[Path]:
    """Every page of the documentation."""
    top = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    return [*top, ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """A page's path in the project."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block and what the comments before it say."""

    language: str
    text: str
    line: int
    """Where in the page it begins."""
    shows: bool = False
    fails: bool = False
    file: str = ""
    """The file into which it is written."""
    not_run: str = ""
    """Why it is not run."""
    needs: tuple[str, ...] = ()
    """Verbs that it needs."""


@dataclass(frozen=True, slots=True)
class Restart:
    """The kernel is restarted here."""


Step = Block | Restart


def steps(page: Path) -> Iterator[Step]:
    """What happens on a page, in order: blocks, hidden cells and restarts."""
    text = page.read_text(encoding="utf-8")
    said: dict[str, str] = {}
    end = 0
    for found in sorted([*FENCE.finditer(text), *comments(text)], key=lambda each: each.start()):
        line = text.count("\n", 0, found.start()) + 1
        if text[end : found.start()].strip():
            # What was said stands before a passage, not before this block.
            assert not set(said) - {"needs"}, f"{page.name}, before line {line}: {said}"
            said = {}
        end = found.end()
        if found.re is FENCE:
            yield _block(found, line, said)
            said = {}
            continue
        key, _colon, words = found["words"].partition(":")
        if key.strip() == "restart":
            yield Restart()
        elif key.strip() == "before":
            yield Block("python", _given(words), line)
        elif key.strip() in SAYINGS:
            said[key.strip()] = words.strip()


def _given(words: str) -> str:
    path = ROOT / words.strip()
    inline = "\n" in words or path.suffix != ".py"
    return words.strip("\n") + "\n" if inline else path.read_text(encoding="utf-8")


def _block(found: re.Match[str], line: int, said: dict[str, str]) -> Block:
    return Block(
        found["language"].strip(),
        textwrap.dedent(found["text"]) if found["margin"] else found["text"],
        line,
        shows="shows" in said,
        fails="fails" in said,
        file=said.get("file", ""),
        not_run=said.get("not run", ""),
        needs=tuple(said.get("needs", "").replace(",", " ").split()),
    )


def comments(text: str) -> Iterator[re.Match[str]]:
    """The comments that are not part of a fenced block."""
    blocks = [found.span() for found in FENCE.finditer(text)]
    for comment in COMMENT.finditer(text):
        if not any(start <= comment.start() < end for start, end in blocks):
            yield comment


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [step for step in steps(page) if isinstance(step, Block)]


def prose(page: Path) -> str:
    """A page without its blocks, comments and inline code."""
    text = COMMENT.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    return re.sub(r"`[^`\n]*`", "`code`", text)


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead."""
    text = prose(page)
    return [found["target"] for kind in (LINK, ADDRESS) for found in kind.finditer(text)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    seen: dict[str, int] = {}
    for found in HEADING.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", found["title"])
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = seen.get(anchor, 0)
        seen[anchor] = count + 1
        if count:
            seen[f"{anchor}-{count}"] = 1
    return set(seen)


# What is shown, compared loosely.

LOOSE = (
    # ipykernel says it at every start of a kernel.
    (re.compile(r"^\[IPKernelApp\] WARNING .*\n", re.MULTILINE), ""),
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\b[0-9a-f]{8}\b"), "ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "DAY"),
    (re.compile(r"\b\d{1,2}(:\d\d){1,2}\b"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (m?s|s CPU)\b"), "TIME"),
    (re.compile(r"[ \t]+"), " "),
)


def loosely(text: str) -> str:
    """A text without what differs from run to run: times, ids, colours, the width of columns."""
    for pattern, stands_for in LOOSE:
        text = pattern.sub(stands_for, text)
    return "\n".join(line.strip() for line in text.strip().splitlines() if line.strip())


def is_shown(expected: str, shown: str) -> bool:
    """Whether a page shows what was really shown, with `…` for anything."""
    parts = (re.escape(part) for part in loosely(expected).split("…"))
    return re.fullmatch(r".*?".join(parts), loosely(shown), re.DOTALL) is not None
