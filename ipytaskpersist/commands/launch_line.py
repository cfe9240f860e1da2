"""Parse the lines of ``%%background``, with options and a name, and ``%background``, with code."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence

import click

from ipytaskpersist.base.legible import legible
from ipytaskpersist.commands.command_line import WORD, without_comment, without_quotes
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.text.formatting import shorten

OPTION = re.compile(r"-[hop]$|--[a-z]")
SHOWN_CHARACTERS = 60
IN_NAMES = (
    ast.Expression, ast.Name, ast.Attribute, ast.Constant, ast.Tuple, ast.Load,
    ast.BinOp, ast.Sub, ast.Div, ast.MatMult, ast.UnaryOp, ast.USub, ast.Not,
    ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.In, ast.NotIn, ast.Is, ast.IsNot,
)  # fmt: skip
"""What Python finds in names such as ``train-2``, ``2024-11-15``, ``a/b`` and ``not yet``."""


def options_and_code(line: str, command: click.Command) -> tuple[list[str], str]:
    """Split a line into the options that it begins with, and the code after them as typed."""
    options: list[str] = []
    words = WORD.finditer(line)
    for word in words:
        if not OPTION.match(word.group()):
            return options, line[word.start() :]
        options.extend(_with_value(word.group(), words, command))
    return options, ""


def require_code(code: str) -> None:
    """Raise `InvalidRequest` if no code follows the options."""
    if not code.strip():
        raise InvalidRequest(
            "there is no code to run: write the code after %background, or on the lines below "
            "%%background"
        )


def refuse_code(line: str, command: click.Command) -> None:
    """Raise `InvalidRequest` if there is code where a name belongs, unless it is in quotes."""
    options: list[str] = []
    name: list[str] = []
    words = WORD.finditer(without_comment(line))
    for word in words:
        if OPTION.match(word.group()):
            options.extend(_with_value(word.group(), words, command))
        else:
            name.append(word.group())
    code = "" if all(word[0] in "\"'" for word in name) else _code_in(name)
    if "--shell" in options and any(word.startswith("-") for word in name):
        code = " ".join(name)
    if code:
        raise InvalidRequest(_how_to_write(code, options))


def _how_to_write(code: str, options: Sequence[str]) -> str:
    shown = legible(shorten(code, SHOWN_CHARACTERS))
    in_one_line = " ".join(["%background", *map(shlex.quote, options), shown])
    or_so = "" if code.endswith(":") else f", or all in one line: {in_one_line}"
    return (
        f"'{shown}' is code, and the line of %%background takes the name of the task; write the "
        f"code on the lines below it{or_so}. A name like this needs quotes"
    )


def _with_value(
    option: str, following: Iterator[re.Match[str]], command: click.Command
) -> Sequence[str]:
    """Return the words of an option, the next one if it is its value."""
    known = {name: each for each in command.params for name in each.opts}.get(option)
    takes_value = isinstance(known, click.Option) and not known.is_flag
    value = next(following, None) if takes_value else None
    return [without_quotes(word) for word in (option, value.group() if value else "") if word]


def _code_in(words: Sequence[str]) -> str:
    """Return the words that cannot be meant as a name: all, or those after a name; empty if none.

    After a name only what does something counts: ``first pass`` and ``best lr=0.1`` are names.
    """
    text = " ".join(words)
    if text.startswith(("!", "%")) or not all(map(_can_be_name, _statements(text))):
        return text
    for place in range(1, len(words)):
        rest = words[place:]
        nodes = [node for each in _statements(" ".join(rest)) for node in ast.walk(each)]
        if any(isinstance(node, ast.Call) for node in nodes) or (nodes and "=" in rest):
            return " ".join(rest)
    return ""


def _statements(text: str) -> list[ast.stmt]:
    """Return the statements of a line, or of the head of a block; none if it is not Python."""
    for code in (text, f"{text} pass"):
        try:
            return ast.parse(code).body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
    return []


def _can_be_name(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.AnnAssign):  # train:fast
        return statement.value is None
    if not isinstance(statement, ast.Expr):
        return False
    return all(isinstance(node, IN_NAMES) for node in ast.walk(statement.value))
