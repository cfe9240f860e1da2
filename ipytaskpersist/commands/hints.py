"""What was probably meant by what was typed wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import click

from ipytaskpersist.base.vocabulary import VERBS

ELSEWHERE = {
    "abort": "cancel", "attach": "output --follow", "cat": "output", "find": "search",
    "get": "result", "grep": "search", "help": "--help", "info": "show", "jobs": "list",
    "join": "wait", "kill": "cancel", "log": "output", "logs": "output", "ls": "list",
    "print": "output", "ps": "list", "remove": "delete", "retry": "rerun", "rm": "delete",
    "set": "config", "settings": "config", "status": "list", "stop": "cancel", "tail": "output",
    "tasks": "list", "terminate": "cancel", "value": "result",
}  # fmt: skip
"""Verbs of other programs, and ours for them."""
REDIRECTION = (">", ">>", "|")


def of_verb(word: str) -> str:
    """Return what to type instead of a word that is no verb."""
    near = difflib.get_close_matches(word, VERBS, n=1)
    meant = ELSEWHERE.get(word) or (f"show {word}" if re.fullmatch(r"-?\d+", word) else "")
    meant = meant or "".join(near)
    return f"did you mean '{meant}'?" if meant else f"there are {', '.join(VERBS)}."


def of_words(words: Iterable[str], command: click.Command) -> str:
    """Return the option that was meant by words which a verb cannot take; empty for none."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    flags = {name for each in options if each.is_flag for name in each.opts}
    for word in words:
        if f"--{word}" in flags:
            return f"did you mean --{word}?"
        for option in options:
            if isinstance(option.type, click.Choice) and word in option.type.choices:
                return f"did you mean {option.opts[0]} {word}?"
        if word in REDIRECTION and any("--save" in option.opts for option in options):
            return "did you mean --save FILE?"
    return ""
