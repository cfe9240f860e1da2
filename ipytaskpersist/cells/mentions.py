"""Find names that a cell mentions only in strings, and submodules that it reaches.

``df.query("a > @limit")`` reads a variable that does not appear in the syntax tree. Which strings
are code is unknown, so a name found only in a string is passed along if possible.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ipytaskpersist.base.foreign_errors import plain_text

IDENTIFIER = re.compile(r"[^\W\d]\w*")
MARKED = re.compile(r"@([^\W\d]\w*)")
"""Marks a Python variable in pandas' ``query`` and ``eval``."""
EVALUATING = {
    *("eval", "exec", "query", "evaluate", "compile", "timeit", "repeat"),
    *("sql", "execute", "read_sql", "read_sql_query", "sqldf"),
}
"""Functions that take code in a string: Python's, pandas', numexpr's, and those that run SQL on the
notebook's data frames, as in DuckDB and Polars."""
FORMULA = "~"
"""Separates the sides of a formula in statsmodels and patsy."""
TEXT_CHARACTERS = 100_000


def in_strings(tree: ast.Module) -> list[str]:
    """Return the names in those strings of a cell that may be code, in order."""
    found = dict[str, None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(dict.fromkeys(in_text(node.value)))
        elif isinstance(node, ast.Call) and _called(node) in EVALUATING:
            for text in _texts(node):
                found.update(dict.fromkeys(IDENTIFIER.findall(text)))
    return list(found)


def in_text(text: str) -> list[str]:
    """Return the names that a text marks as variables, or all names of a formula."""
    text = text[:TEXT_CHARACTERS]
    return (IDENTIFIER if FORMULA in text else MARKED).findall(text)


def _called(node: ast.Call) -> str:
    """Return the last part of the called function's name."""
    called = node.func
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _texts(node: ast.Call) -> Iterator[str]:
    for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
        for each in ast.walk(argument):
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield each.value[:TEXT_CHARACTERS]


def in_values(values: Iterable[Any]) -> list[str]:
    """Return the names that are marked in texts and in the string constants of functions."""
    found = dict[str, None]()
    for value in values:
        for text in _texts_of_value(value):
            found.update(dict.fromkeys(MARKED.findall(text[:TEXT_CHARACTERS])))
    return list(found)


def _texts_of_value(value: Any) -> Iterator[str]:
    # Use the type, because `__class__` may be anything.
    if issubclass(type(value), str):
        yield plain_text(value)
    elif type(value) is FunctionType:
        yield from _texts_of_code(value.__code__)


def _texts_of_code(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _texts_of_code(constant)


def in_code(values: Iterable[Any]) -> list[str]:
    """Return the names in the code of functions: globals, attributes and imports."""
    found = dict[str, None]()
    for value in values:
        if type(value) is FunctionType:
            found.update(dict.fromkeys(_names_of_code(value.__code__)))
    return list(found)


def _names_of_code(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of_code(constant)


def submodules(tree: ast.Module, namespace: Mapping[str, Any]) -> list[str]:
    """Return the submodules that a cell reaches by attribute: ``xml.dom`` in ``xml.dom.minidom``.

    Importing the parent module may not import them.
    """
    found = dict[str, None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, path = _chain(node)
            module: Any = namespace.get(root)
            if issubclass(type(module), ModuleType):
                found.update(dict.fromkeys(_imported(module.__name__, path)))
    return list(found)


def chains(tree: ast.Module) -> list[tuple[str, ...]]:
    """Return the names in a cell, each with the attributes after it, as in ``pd.DataFrame``."""
    found = dict[tuple[str, ...], None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found[node.id,] = None
        elif isinstance(node, ast.Attribute):
            root, path = _chain(node)
            found[root, *path] = None
    return list(found)


def assigned_chains(tree: ast.Module) -> list[tuple[str, ...]]:
    """Return the chains of attributes that a cell assigns or deletes, as in ``a.b = 1``."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    found = (_chain(node) for node in nodes if not isinstance(node.ctx, ast.Load))
    return list(dict.fromkeys((root, *path) for root, path in found))


def _chain(node: ast.Attribute) -> tuple[str, list[str]]:
    """Return the name at which a chain of attributes begins, and the attributes in order."""
    path, inner = [node.attr], node.value
    while isinstance(inner, ast.Attribute):
        path.insert(0, inner.attr)
        inner = inner.value
    return (inner.id, path) if isinstance(inner, ast.Name) else ("", path)


def _imported(name: str, path: Iterable[str]) -> Iterator[str]:
    """Yield the submodules along a path of attributes that this process has imported."""
    for part in path:
        name = f"{name}.{part}"
        if name not in sys.modules:
            return
        yield name


def imports(tree: ast.Module) -> list[str]:
    """Return the modules that a cell imports by name, including inside functions, in order."""
    found = dict[str, None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found[node.module] = None
            found.update(dict.fromkeys(f"{node.module}.{alias.name}" for alias in node.names))
    return list(found)
