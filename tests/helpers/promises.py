"""What docs/reliability.md promises to say, to be compared with what was really said."""

from __future__ import annotations

import re

from layout import ROOT

PAGE = ROOT / "docs" / "reliability.md"
MESSAGE = re.compile(r"<!-- said: ([a-z-]+) -->\s*```text\n(.*?)\n```", re.DOTALL)


def messages() -> dict[str, str]:
    """The messages of the page, by their names. An ellipsis stands for what differs."""
    return {name: " ".join(text.split()) for name, text in MESSAGE.findall(PAGE.read_text("utf-8"))}


def is_said(name: str, text: str) -> bool:
    """Whether a text has the message of this name in it."""
    parts = map(re.escape, messages()[name].split("…"))
    return re.search(".+?".join(parts), " ".join(text.split())) is not None


def assert_said(name: str, text: str) -> None:
    """Fail unless a text has the message of this name in it, word for word."""
    assert is_said(name, text), f"not said: {messages()[name]}\nbut: {text}"
