"""The parameters of a command as the arguments of a tool, and these as words of a command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ipytaskpersist.commands.definition import json_text
from ipytaskpersist.errors import InvalidRequest

FLAG = re.compile(r"--([a-z][a-z-]*)")
SENTENCE_END = re.compile(r"(?<=[a-z)\d])\.(?:\s|$)")
SHOWN_CHARACTERS = 80


def name_of(param: click.Parameter) -> str:
    """Return the name of a tool's argument: that of the option as it is typed."""
    typed = max(param.opts, key=len)
    is_word = isinstance(param, click.Option) and typed.startswith("--")
    return typed[2:].replace("-", "_") if is_word else str(param.name)


def schema_of(param: click.Parameter) -> dict[str, Any]:
    """Return the JSON Schema of an argument, with the first sentence of its help."""
    if isinstance(param, click.Option) and param.is_flag:
        schema: dict[str, Any] = {"type": "boolean"}
    elif isinstance(param.type, click.Choice):
        schema = {"enum": [*param.type.choices]}
    elif isinstance(param.type, click.types.IntParamType):
        schema = {"type": "integer"}
    elif isinstance(param.type, click.types.FloatParamType):
        schema = {"type": "number"}
    else:
        schema = {"type": "string"}
    if _is_several(param):
        schema = {"type": "array", "items": schema}
    text = getattr(param, "help", None)
    if not text:
        return schema
    said = FLAG.sub(lambda flag: flag[1].replace("-", "_"), first_sentence(text))
    return {**schema, "description": said}


def _is_several(param: click.Parameter) -> bool:
    """Return whether an argument is a list. The words of one reference are one text."""
    return param.multiple or (param.nargs == -1 and param.name != "ref")


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, without its full stop."""
    return SENTENCE_END.split(text, maxsplit=1)[0]


def line_of(params: Mapping[str, click.Parameter], arguments: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that mean these arguments, options first.

    No value can be taken for an option. Raise `InvalidRequest` for one that is no text or number.
    """
    given = [
        (params[name], value)
        for name, value in arguments.items()
        if name in params and value is not None
    ]
    options = [word for param, value in given for word in _option(param, value)]
    references = [word for param, value in given for word in _reference(param, value)]
    return [*options, "--", *references]


def _option(param: click.Parameter, value: Any) -> Iterator[str]:
    if not isinstance(param, click.Option):
        return
    if param.is_flag:
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name_of(param)} is true or false, not {_shown(value)}")
        yield from [param.opts[0]] if value else []
        return
    typed = max(param.opts, key=len)
    joint = "=" if typed.startswith("--") else ""
    for text in _texts(param, value):
        yield f"{typed}{joint}{text}"


def _reference(param: click.Parameter, value: Any) -> Iterator[str]:
    if isinstance(param, click.Argument):
        yield from _texts(param, value)


def _texts(param: click.Parameter, value: Any) -> Iterator[str]:
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, (str, int, float)) or isinstance(each, bool):
            raise InvalidRequest(f"{name_of(param)} cannot be {_shown(each)}")
        yield str(each)


def _shown(value: Any) -> str:
    return json_text(value, indent=None)[:SHOWN_CHARACTERS]
