"""Which settings a place has, and the command through which its agent is reached.

The command of every kind is a program whose standard streams carry the agent's messages: requests
on its input, and as many answers in the same order on its output, until its input ends. It answers
what the agent answers (`places.agent`), and besides:

* ``{"error": words, "unreachable": true}``: the place could not be asked. Whether the request was
  carried out is unknown, so ask again; the program connects by itself, at growing intervals.
* ``{"pending": true, "why": words}`` to ``start`` or ``put``: there is no room for the task yet,
  and nothing has been done. Ask again.
* ``{"started": true, "job": id}``: a queue has taken the task, and will start it by itself.
* The state ``pending`` with ``why``: the task has been taken, and waits in the queue of the place.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipytaskpersist.base.detached import python_command
from ipytaskpersist.errors import InvalidSetting

FOLDER = "~/.ipytaskpersist-tasks"
"""Folder of the tasks over there, unless the place names another."""
HERE = "here"


@dataclass(frozen=True, slots=True)
class Field:
    """One setting of a kind of place."""

    default: Any
    """Its value when it is not given; None for one that must be given."""
    expected: str
    """What it must be, in words."""
    is_valid: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Kind:
    """How the places of one kind are reached."""

    module: str
    """The module of this package whose ``main`` is the command."""
    fields: Mapping[str, Field]
    is_posix_only: bool = False


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_word(value: Any) -> bool:
    """Return whether a program cannot mistake a value for one of its options, nor for two words."""
    return _is_line(value) and not value.startswith("-") and " " not in value


def _is_port(value: Any) -> bool:
    return type(value) is int and 0 <= value < 65536


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_line, value))


def _is_amounts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_line(name) and type(amount) in (int, float) and amount > 0
        for name, amount in value.items()
    )


_ADDRESS = Field(None, "a text without spaces", lambda value: _is_word(value) and value != "")
_WORD = Field("", "a text without spaces", _is_word)
_LIST = Field((), "a list of texts", _is_list)
_PYTHON = Field("python3", "a command of one line, which a shell there reads", _is_line)
_FOLDER = Field(FOLDER, "a path over there", lambda value: _is_line(value) and value != "")

KINDS = {
    "ssh": Kind(
        "places.ssh_bridge",
        {
            "host": _ADDRESS,
            "port": Field(0, "a number of a port, or 0 for the one of ssh's settings", _is_port),
            "user": _WORD,
            "python": _PYTHON,
            "options": _LIST,
            "folder": _FOLDER,
        },
        is_posix_only=True,
    ),
    "dask": Kind(
        "places.dask_bridge",
        {
            "address": _ADDRESS,
            "resources": Field({}, "amounts by name, such as {'GPU': 1}", _is_amounts),
            "workers": _LIST,
            "folder": _FOLDER,
        },
    ),
    "slurm": Kind(
        "places.slurm_bridge",
        {"partition": _WORD, "options": _LIST, "python": _PYTHON, "folder": _FOLDER},
        is_posix_only=True,
    ),
}
"""The kinds of places. The keys of `Kind.fields` are those of the setting."""


def check(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a place as the user has set it, with ``name``, ``kind`` and every setting of its kind.

    Raises `InvalidSetting` for an unknown kind or setting, a missing one, and an invalid value.
    """
    name = spec.get("name")
    if not _is_word(name) or name in ("", HERE):
        raise InvalidSetting(f"a place cannot be named {name!r}; take a word such as 'cluster'")
    kind = KINDS.get(str(spec.get("kind")))
    if kind is None:
        raise InvalidSetting(
            f"place {name!r}: {spec.get('kind')!r} is no kind of place; its 'kind' must be "
            f"{_or(KINDS)}"
        )
    if kind.is_posix_only and os.name != "posix":
        raise InvalidSetting(
            f"place {name!r}: a place of kind {spec['kind']} needs Linux or macOS on this side"
        )
    _require_known(spec, kind)
    given = {key: _value(spec, key, field) for key, field in kind.fields.items()}
    return {"name": name, "kind": spec["kind"], **given}


def _require_known(spec: Mapping[str, Any], kind: Kind) -> None:
    unknown = [key for key in spec if key not in (*kind.fields, "name", "kind")]
    if unknown:
        similar = difflib.get_close_matches(str(unknown[0]), kind.fields, 1)
        hint = f"did you mean {similar[0]!r}?" if similar else f"there are {_and(kind.fields)}"
        raise InvalidSetting(
            f"place {spec['name']!r}: a place of kind {spec['kind']} has no setting "
            f"{unknown[0]!r}; {hint}"
        )


def _value(spec: Mapping[str, Any], key: str, field: Field) -> Any:
    value = spec.get(key, field.default)
    if value is None:
        raise InvalidSetting(f"place {spec['name']!r} needs the setting {key!r}: {field.expected}")
    if not field.is_valid(value):
        raise InvalidSetting(f"place {spec['name']!r}: {key} = {value!r} is not {field.expected}")
    return list(value) if isinstance(value, tuple) else value


def _or(words: Mapping[str, Any]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"


def _and(words: Mapping[str, Any]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}"


def connection_command(spec: Mapping[str, Any], state_directory: Path) -> list[str]:
    """Return the program whose standard streams carry the messages of a place.

    `state_directory` is where it may keep what connections share. Raises `InvalidSetting` for a
    place that is set wrongly, and `InvalidRequest` when no Python is found to run the program.
    """
    place = check(spec)
    module = KINDS[place["kind"]].module
    return [*python_command(module), json.dumps(place), str(state_directory)]
