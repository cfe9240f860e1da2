"""The package is built as its documentation says."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from programs import run_python

import ipytaskpersist
from ipytaskpersist.base.vocabulary import VERBS
from ipytaskpersist.commands import definition

ROOT = Path(ipytaskpersist.__file__).parent
DOCUMENTATION = ROOT.parent / "docs" / "commands.md"

WINGS = (
    "commands", "agents", "server", "panel", "filling", "display", "session", "doctor", "history",
    "runners", "cells", "notify", "output", "values", "capture", "isolation", "places", "store",
    "inspection", "running", "text", "base",
)  # fmt: skip
"""A wing imports only from the wings that stand after it."""
DOOR = {"__init__", "__main__", "extension", "api", "errors"}
"""The modules outside the wings: what a user imports, starts or catches."""
HEAVY = {"rich", "sqlite_utils", "numpy", "pandas", "matplotlib", "cloudpickle"}


def modules() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its dotted name inside the package."""
    trees = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


MODULES = modules()


class Imports(ast.NodeVisitor):
    """Collects what a module imports: inside functions and for annotations as well."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        self.names.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute here"
        self.names.update(f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(name: str) -> set[str]:
    collector = Imports()
    collector.visit(MODULES[name])
    return collector.names


def inside(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for imported in imports_of(name):
        package, _dot, rest = imported.partition(".")
        if package == "ipytaskpersist":
            path = rest.split(".")
            candidates = [".".join(path[:length]) for length in range(len(path), 0, -1)]
            found.add(next((each for each in candidates if each in MODULES), "__init__"))
    return found - {name}


def floor_of(name: str) -> int:
    """How far down a module stands: the door is above all wings, `errors` below them."""
    if name == "errors":
        return len(WINGS)
    if name in DOOR:
        return -1
    wing = name.split(".", maxsplit=1)[0]
    assert wing in WINGS, f"{name} is in no wing: it needs one, or a reason to stand at the door"
    return WINGS.index(wing)


def test_a_module_imports_only_from_its_own_wing_and_below() -> None:
    above = {
        (name, other)
        for name in MODULES
        for other in inside(name)
        if floor_of(other) < floor_of(name)
    }
    assert above == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: inside(name) for name in MODULES if name != "__init__"}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors") < order.index("session.manager") < order.index("commands.magics")


def test_every_wing_has_modules() -> None:
    assert {name.split(".")[0] for name in MODULES} - DOOR == set(WINGS)


SQL = re.compile(
    r"\b(SELECT\s.+\sFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM"
    r"|CREATE\s+(TABLE|INDEX|TRIGGER)|DROP\s+\w+|BEGIN\s+IMMEDIATE|PRAGMA\s+\w+|VACUUM)\b",
    re.DOTALL,
)


def texts_of(name: str) -> Iterator[str]:
    """The string constants of a module, f-strings joined, without its docstrings."""
    tree = MODULES[name]
    documentation = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            documentation.update(
                id(each.value)
                for each in body
                if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "x" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
        ):
            yield node.value


def is_of_the_store(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] == "store"


def test_only_the_store_speaks_sql() -> None:
    speaking = {name for name in MODULES if any(SQL.search(text) for text in texts_of(name))}
    assert {"store.tasks", "store.sessions", "store.outputs", "store.file.database"} <= speaking
    assert {name for name in speaking if not is_of_the_store(name)} == set()


def test_only_the_store_imports_sqlite() -> None:
    importing = {
        name
        for name in MODULES
        if {each.split(".")[0] for each in imports_of(name)}
        & {"sqlite3", "pysqlite3", "sqlite_utils"}
    }
    assert {"store.file.database", "store.file.migrations"} <= importing
    assert {name for name in importing if not is_of_the_store(name)} == set()


def test_one_module_imports_the_sqlite_module() -> None:
    """pysqlite3's classes are its own: an error of one is not an error of the other."""
    importing = {
        name
        for name in MODULES
        if {each.split(".")[0] for each in imports_of(name)} & {"sqlite3", "pysqlite3"}
    }
    assert importing == {"store.file.database"}


# Loading.


def imported_after(code: str, state_dir: Path) -> set[str]:
    ended = run_python(f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))", state_dir)
    assert ended.returncode == 0, ended.stderr
    return {name.split(".")[0] for name in json.loads(ended.stdout)}


def test_importing_the_package_imports_nothing_heavy(state_dir: Path) -> None:
    found = imported_after("import ipytaskpersist", state_dir)
    assert found & HEAVY == set()
    assert found & {"IPython", "asyncio", "click", "sqlite3", "pysqlite3"} == set()


def test_importing_the_extension_imports_nothing_heavy(state_dir: Path) -> None:
    found = imported_after("import ipytaskpersist, ipytaskpersist.extension", state_dir)
    assert found & {*HEAVY, "click"} == set()


def test_the_public_names_are_there_and_imported_when_they_are_used() -> None:
    for name in ipytaskpersist.__all__:
        assert getattr(ipytaskpersist, name).__module__.startswith("ipytaskpersist.")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = ipytaskpersist.nonsense  # type: ignore[attr-defined]


# Commands.


def test_every_verb_is_a_magic() -> None:
    assert definition.every_verb().keys() == definition.verbs.commands.keys()
    assert list(VERBS) == sorted(definition.verbs.commands)


def section_about(verb: str) -> str:
    """What the documentation says of a verb: from its name in bold to the next one or heading."""
    text = DOCUMENTATION.read_text(encoding="utf-8")
    section = rf"^\*\*`{verb}\b[^\n]*`\*\*.*?(?=^\*\*`|^#|\Z)"
    found = re.search(section, text, re.DOTALL | re.MULTILINE)
    assert found, f"**`{verb}`** begins no paragraph of {DOCUMENTATION.name}"
    return found.group()


def metavar(argument: click.Parameter) -> str:
    return str(argument.metavar).strip("[].")


@pytest.mark.parametrize("verb", definition.every_verb())
def test_every_verb_is_documented_with_each_of_its_options(verb: str) -> None:
    section = section_about(verb)
    for parameter in definition.every_verb()[verb].params:
        if isinstance(parameter, click.Option):
            assert [option for option in parameter.opts if f"`{option}" not in section] == []
        else:
            assert metavar(parameter) in section.splitlines()[0]


def test_every_documented_option_exists() -> None:
    for verb, command in definition.every_verb().items():
        known = {option for parameter in command.params for option in parameter.opts}
        mentioned = set(re.findall(r"`(--[a-z-]+)", section_about(verb)))
        assert mentioned - known == set(), verb


NAMED_COMMAND = re.compile(r"(?:%bg_|jupyter bg )([a-z_]+)((?: --[a-z-]+)*)([^`'\";,.]*)")


def test_every_command_that_a_message_names_can_be_typed() -> None:
    """IPython takes a word with a question mark at the end for one of Python's objects."""
    found = 0
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            for verb, options, rest in NAMED_COMMAND.findall(text if type(text) is str else ""):
                where, found = f"{path.name}:{getattr(node, 'lineno', 0)}", found + 1
                command = definition.every_verb().get(verb)
                assert command is not None, f"{where}: there is no verb {verb}"
                known = {each for one in command.params for each in (*one.opts, "--help")}
                assert set(options.split()) <= known, f"{where}: {verb}{options}"
                assert not re.match(r" \S+\?", rest), f"{where}: {verb}{rest}"
    assert found > 100


@pytest.mark.parametrize("verb", definition.every_verb())
def test_every_verb_and_option_explains_itself(verb: str) -> None:
    command = definition.every_verb()[verb]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{verb} {parameter.opts[0]}"


# Documentation in the code.


def is_public(name: str) -> bool:
    return not name.startswith("_")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_and_every_public_class_and_function_is_documented(name: str) -> None:
    tree = MODULES[name]
    assert ast.get_docstring(tree) or not tree.body
    definitions = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and is_public(node.name)
    ]
    documented = [node for node in definitions if ast.get_docstring(node) or has_doc(node)]
    assert definitions == documented, [node.name for node in definitions if node not in documented]


def has_doc(node: ast.AST) -> bool:
    """Whether a class defines what stands in for its docstring."""
    return any(getattr(each, "name", "") == "__doc__" for each in getattr(node, "body", ()))


def methods(module: ModuleType) -> Iterator[tuple[str, Any]]:
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind)]
    for kind in kinds:
        if kind.__module__ == module.__name__ and is_public(kind.__name__):
            for name, member in vars(kind).items():
                if is_public(name) and (inspect.isfunction(member) or isinstance(member, property)):
                    yield f"{kind.__name__}.{name}", getattr(kind, name)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__main__"}))
def test_every_public_method_is_documented(name: str) -> None:
    """One that overrides another has the documentation of that one."""
    module = import_module("ipytaskpersist" if name == "__init__" else f"ipytaskpersist.{name}")
    assert [place for place, method in methods(module) if not inspect.getdoc(method)] == []


def test_the_extension_of_the_page_stays_small() -> None:
    """Every page loads it as it is, whether there is a background task or not.

    Only a page that shares its document with others loads the rest.
    """
    static = ROOT / "labextension" / "static"
    loaded, found = set(), {"container.js", "extension.js", "style.css"}
    while found:
        name = found.pop()
        loaded.add(name)
        found |= {*re.findall(r'from "\./([\w.]+)"', (static / name).read_text())} - loaded
    left = {file.name for file in static.iterdir()} - loaded
    assert left == {"shared.js", "writer.js"}
    assert sum((static / name).stat().st_size for name in loaded) <= 30_000
