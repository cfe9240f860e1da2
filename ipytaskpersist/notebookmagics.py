"""The magics of a notebook, in the processes of its tasks: extensions, aliases, and its own.

Extensions are loaded anew, by their names, so their state begins anew. The notebook's own magics
are pickled. One that cannot be had says why when it is used: a task that needs it not is not told.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from IPython.core.alias import Alias, AliasError
from IPython.core.error import UsageError
from IPython.core.magic import MagicAlias, Magics

from ipytaskpersist.elsewhere import MAIN
from ipytaskpersist.interruption import is_from_outside
from ipytaskpersist.mishaps import describe
from ipytaskpersist.pickling import Unpickler, to_bytes
from ipytaskpersist.vocabulary import VERBS

OURS = "ipytaskpersist"
OF_EVERY_SHELL = {"IPython", "ipykernel"}
STORE, AUTORELOAD = "storemagic", "autoreload"
OWN_EXTENSIONS = "IPython.extensions."
"""Where IPython has those two. By their short names, a file in the notebook's folder goes first."""
OWN = ("", MAIN)
"""The modules of what a notebook has defined itself."""
MODE = ("enabled", "check_all", "autoload_obj")
"""What ``%autoreload`` sets."""
ONLY_THERE = "is for cells of the notebook: this one runs in the process of a task"
NOT_HERE = "of the notebook is not in this process: "
OUR_MAGICS = ("background", "bg", *(f"bg_{verb}" for verb in VERBS))
Names = dict[str, list[str]]
"""Names of magics by ``line`` and ``cell``."""
Kinds = dict[str, dict[str, Any]]
"""Magics by ``line`` and ``cell``, and name."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What a notebook has besides the magics of every shell."""

    extensions: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    """The commands of ``%alias``."""
    pickled: list[tuple[Names, bytes]] = field(default_factory=list)
    """Other magics, pickled; those that are methods of one object together."""
    missing: dict[str, dict[str, str]] = field(default_factory=lambda: {"line": {}, "cell": {}})
    """What is said of others, unless an extension brings them."""
    lost: dict[str, dict[str, str]] = field(default_factory=lambda: {"line": {}, "cell": {}})
    """What is said of those that cannot be pickled. They may replace magics of every shell."""
    autoreload: dict[str, bool] = field(default_factory=dict)


def of_notebook(shell: Any, namespace: dict[str, Any]) -> Carried:
    """The magics of a notebook, as far as they can be carried. Without a shell there are none."""
    if shell is None:
        return Carried()
    extensions = sorted(shell.extension_manager.loaded - {OURS})
    carried = Carried(
        extensions=extensions,
        aliases=dict(shell.alias_manager.aliases),
        autoreload=_autoreload(shell),
    )
    brought = {name.partition(".")[0] for name in extensions}
    for kind, name, magic in _all(shell):
        package = _module(magic).partition(".")[0]
        if package in brought:
            carried.missing[kind][name] = NOT_HERE + "no extension that is loaded here has it"
    for magics in _own(shell, {*brought, *OF_EVERY_SHELL, OURS}):
        _pickle(magics, namespace, carried)
    return carried


def _all(shell: Any) -> Iterator[tuple[str, str, Any]]:
    for kind, magics in shell.magics_manager.magics.items():
        for name, magic in [*magics.items()]:
            if not isinstance(magic, Alias):
                yield kind, name, magic


def _module(magic: Any) -> str:
    """The module that a magic is from; empty for what ``%alias_magic`` has made."""
    if type(magic) is MagicAlias:
        return ""
    owner = magic.__self__ if type(magic) is MethodType else magic
    name = getattr(owner if callable(owner) else type(owner), "__module__", "")
    return name if isinstance(name, str) else ""


def _own(shell: Any, others: set[str]) -> list[Kinds]:
    """The magics that are from no package of these; methods of one object are together."""
    found: dict[int, Kinds] = {}
    for kind, name, magic in _all(shell):
        if _module(magic).partition(".")[0] not in others:
            owner = magic.__self__ if type(magic) is MethodType else magic
            found.setdefault(id(owner), {}).setdefault(kind, {})[name] = magic
    return [*found.values()]


def _pickle(magics: Kinds, namespace: dict[str, Any], carried: Carried) -> None:
    try:
        names = {kind: [*named] for kind, named in magics.items()}
        carried.pickled.append((names, to_bytes(magics, namespace)))
    except BaseException as error:  # whatever a class raises when it is pickled
        if is_from_outside(error):
            raise
        for kind, named in magics.items():
            carried.lost[kind].update(dict.fromkeys(named, NOT_HERE + describe(error)))


def _autoreload(shell: Any) -> dict[str, bool]:
    magics = shell.magics_manager.registry.get("AutoreloadMagics")
    reloader = getattr(magics, "_reloader", None)
    return {name: getattr(reloader, name) for name in MODE if hasattr(reloader, name)}


# In the process of a task.


def bring(shell: Any, carried: Carried, say: Callable[[str], None]) -> None:
    """Have the notebook's magics in the shell of a process. `say` gets what cannot be had."""
    _define(shell, carried.missing)
    _define(shell, dict.fromkeys(carried.missing, dict.fromkeys(OUR_MAGICS, ONLY_THERE)))
    for name in carried.extensions:
        try:
            _load(shell, name)
        except BaseException as error:  # an extension may do anything
            if is_from_outside(error):
                raise
            say(f"the notebook's extension {name} is not loaded here ({describe(error)})")
    reloader = getattr(shell.magics_manager.registry.get("AutoreloadMagics"), "_reloader", None)
    for name, value in carried.autoreload.items():
        setattr(reloader, name, value)
    for name, command in carried.aliases.items():
        try:
            shell.alias_manager.define_alias(name, command)
        except AliasError as error:
            say(f"the notebook's alias {name} is not there ({describe(error)})")
    _replace(shell, carried.lost)
    for names, data in carried.pickled:
        _register(shell, names, data)


def _load(shell: Any, name: str) -> None:
    if name not in (STORE, AUTORELOAD) or name in sys.modules:
        shell.extension_manager.load_extension(name)
    else:
        shell.extension_manager.load_extension(OWN_EXTENSIONS + name)


def _register(shell: Any, names: Names, data: bytes) -> None:
    try:
        magics = Unpickler(io.BytesIO(data), shell.user_ns).load()
    except BaseException as error:  # whatever a class raises when it is unpickled
        if is_from_outside(error):
            raise
        why = NOT_HERE + describe(error)
        _replace(shell, {kind: dict.fromkeys(named, why) for kind, named in names.items()})
        return
    for kind, named in magics.items():
        there = shell.magics_manager.magics[kind]
        for name, magic in named.items():
            if _module(magic) not in OWN and name in there:
                continue  # an extension has brought it
            there[name] = magic
            owner = getattr(magic, "__self__", None)
            if isinstance(owner, Magics):
                shell.magics_manager.registry[type(owner).__name__] = owner


def _define(shell: Any, missing: dict[str, dict[str, str]]) -> None:
    for kind, named in missing.items():
        for name, why in named.items():
            shell.magics_manager.magics[kind].setdefault(name, _missing(kind, name, why))


def _replace(shell: Any, lost: dict[str, dict[str, str]]) -> None:
    """Say of a magic why it is not there, rather than run another one of the same name."""
    for kind, named in lost.items():
        for name, why in named.items():
            shell.magics_manager.magics[kind][name] = _missing(kind, name, why)


def _missing(kind: str, name: str, why: str) -> Callable[..., None]:
    """What stands for a magic that is not there."""
    shown = f"{'%' if kind == 'line' else '%%'}{name}"

    def magic(_line: str, _cell: str = "") -> None:
        raise UsageError(f"{shown} {why}")

    return magic
