"""The notebook's magics in the processes of its tasks: extensions, aliases, and its own magics.

Extensions are loaded again by name, so their state starts fresh. The notebook's own magics are
pickled. A magic that cannot be carried over says so when it is used, not before.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from types import MethodType
from typing import Any

from IPython.core.alias import Alias, AliasError
from IPython.core.error import UsageError
from IPython.core.magic import MagicAlias, Magics

from ipytaskpersist.base.foreign_errors import describe
from ipytaskpersist.base.vocabulary import VERBS
from ipytaskpersist.running.interruption import is_from_outside
from ipytaskpersist.values.importable import MAIN
from ipytaskpersist.values.pickling import Unpickler, to_bytes

OURS = "ipytaskpersist"
OF_EVERY_SHELL = {"IPython", "ipykernel"}
STORE, AUTORELOAD = "storemagic", "autoreload"
OWN_EXTENSIONS = "IPython.extensions."
"""Package of these two extensions. A file in the notebook's folder may shadow their short names."""
OWN = ("", MAIN)
"""Modules of objects that the notebook itself has defined."""
MODE = ("enabled", "check_all", "autoload_obj")
"""Settings of ``%autoreload``."""
ONLY_THERE = "is for cells of the notebook: this one runs in the process of a task"
NOT_HERE = "of the notebook is not in this process: "
OUR_MAGICS = ("background", "bg", *(f"bg_{verb}" for verb in VERBS))
Names = dict[str, list[str]]
"""Names of magics by ``line`` and ``cell``."""
Kinds = dict[str, dict[str, Any]]
"""Magics by ``line`` and ``cell``, then by name."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A notebook's extensions, aliases and magics beyond those of every shell."""

    extensions: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    """Commands of ``%alias``."""
    pickled: list[tuple[Names, bytes]] = field(default_factory=list)
    """Other magics, pickled. Methods of one object are pickled together."""
    missing: dict[str, dict[str, str]] = field(default_factory=lambda: {"line": {}, "cell": {}})
    """Reasons why other magics are missing, unless an extension provides them."""
    lost: dict[str, dict[str, str]] = field(default_factory=lambda: {"line": {}, "cell": {}})
    """Reasons why magics cannot be pickled. They may shadow magics of every shell."""
    autoreload: dict[str, bool] = field(default_factory=dict)
    magic_aliases: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    """Made by ``%alias_magic``: ``line`` or ``cell``, its name, the magic's, and parameters."""


def of_notebook(shell: Any, namespace: dict[str, Any]) -> Carried:
    """Collect the magics of a notebook that can be carried. Without a shell, there are none."""
    if shell is None:
        return Carried()
    extensions = sorted(shell.extension_manager.loaded - {OURS})
    carried = Carried(
        extensions=extensions,
        aliases=dict(shell.alias_manager.aliases),
        autoreload=_autoreload(shell),
    )
    brought = {name.partition(".")[0] for name in extensions}
    others = {*brought, *OF_EVERY_SHELL, OURS}
    own: dict[int, Kinds] = {}
    for kind, name, magic in _all(shell):
        package = _module(magic).partition(".")[0]
        if package in brought:
            carried.missing[kind][name] = NOT_HERE + "no extension that is loaded here has it"
        if type(magic) is MagicAlias:
            alias = (kind, name, magic.magic_name, magic.magic_params)
            carried.magic_aliases.append(alias)
        elif package not in others:
            owner = magic.__self__ if type(magic) is MethodType else magic
            own.setdefault(id(owner), {}).setdefault(kind, {})[name] = magic
    for magics in own.values():  # those of one object are pickled together
        _pickle(magics, namespace, carried)
    return carried


def _all(shell: Any) -> Iterator[tuple[str, str, Any]]:
    for kind, magics in shell.magics_manager.magics.items():
        for name, magic in [*magics.items()]:
            if not isinstance(magic, Alias):
                yield kind, name, magic


def _module(magic: Any) -> str:
    """Return the module that a magic is from."""
    owner = magic.__self__ if type(magic) is MethodType else magic
    name = getattr(owner if callable(owner) else type(owner), "__module__", "")
    return name if isinstance(name, str) else ""


def _pickle(magics: Kinds, namespace: dict[str, Any], carried: Carried) -> None:
    try:
        names = {kind: [*named] for kind, named in magics.items()}
        carried.pickled.append((names, to_bytes(magics, namespace)))
    except BaseException as error:  # pickling may run any code of a class
        if is_from_outside(error):
            raise
        for kind, named in magics.items():
            carried.lost[kind].update(dict.fromkeys(named, NOT_HERE + describe(error)))


def _autoreload(shell: Any) -> dict[str, bool]:
    magics = shell.magics_manager.registry.get("AutoreloadMagics")
    reloader = getattr(magics, "_reloader", None)
    return {name: getattr(reloader, name) for name in MODE if hasattr(reloader, name)}


# In the process of a task.


def find(carried: Carried) -> None:
    """Import the extensions that are IPython's own, so that `bring` finds them imported."""
    for name in carried.extensions:
        whole = OWN_EXTENSIONS + name if name in (STORE, AUTORELOAD) else name
        if whole.startswith(OWN_EXTENSIONS):
            with suppress(Exception):  # then `bring` says so
                import_module(whole)


def bring(shell: Any, carried: Carried, say: Callable[[str], None]) -> None:
    """Install the notebook's magics in a process's shell. Failures are passed to `say`."""
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
    lines = shell.magics_manager.magics["line"]
    for name, command in carried.aliases.items():
        if name in lines and not isinstance(lines[name], Alias):
            continue  # a kernel has magics of its own for what is an alias in a terminal: %less
        try:
            shell.alias_manager.define_alias(name, command)
        except AliasError as error:
            say(f"the notebook's alias {name} is not there ({describe(error)})")
    _replace(shell, carried.lost)
    for names, data in carried.pickled:
        _register(shell, names, data)
    # Inputs pickled by an earlier version lack these: their aliases are among the pickled magics.
    for kind, name, magic_name, parameters in getattr(carried, "magic_aliases", ()):
        shell.magics_manager.register_alias(name, magic_name, kind, parameters)


def _load(shell: Any, name: str) -> None:
    if name not in (STORE, AUTORELOAD) or name in sys.modules:
        shell.extension_manager.load_extension(name)
    else:
        shell.extension_manager.load_extension(OWN_EXTENSIONS + name)


def _register(shell: Any, names: Names, data: bytes) -> None:
    try:
        magics = Unpickler(io.BytesIO(data), shell.user_ns).load()
    except BaseException as error:  # unpickling may run any code of a class
        if is_from_outside(error):
            raise
        why = NOT_HERE + describe(error)
        _replace(shell, {kind: dict.fromkeys(named, why) for kind, named in names.items()})
        return
    for kind, named in magics.items():
        there = shell.magics_manager.magics[kind]
        for name, magic in named.items():
            if _module(magic) not in OWN and name in there:
                continue  # an extension has defined it
            there[name] = magic
            owner = getattr(magic, "__self__", None)
            if isinstance(owner, Magics):
                shell.magics_manager.registry[type(owner).__name__] = owner


def _define(shell: Any, missing: dict[str, dict[str, str]]) -> None:
    for kind, named in missing.items():
        there = shell.magics_manager.magics[kind]
        for name, why in named.items():
            if name not in there:
                there[name] = _missing(kind, name, why)


def _replace(shell: Any, lost: dict[str, dict[str, str]]) -> None:
    """Make these magics report why they are missing, rather than run others of the same name."""
    for kind, named in lost.items():
        for name, why in named.items():
            shell.magics_manager.magics[kind][name] = _missing(kind, name, why)


def _missing(kind: str, name: str, why: str) -> Callable[..., None]:
    """Return a stand-in that reports why a magic is missing."""
    shown = f"{'%' if kind == 'line' else '%%'}{name}"

    def magic(_line: str, _cell: str = "") -> None:
        raise UsageError(f"{shown} {why}")

    return magic
