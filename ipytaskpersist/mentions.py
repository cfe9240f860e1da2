"""What a cell uses without naming it as a variable: names in strings, and submodules.

``df.query("a > @limit")`` reads a variable that no syntax tree shows. Which strings are code cannot
be known, so a name that only a string has is handed over if it can be.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ipytaskpersist.mishaps import plain_text

IDENTIFIER = re.compile(r"[^\W\d]\w*")
MARKED = re.compile(r"@([^\W\d]\w*)")
"""How pandas' ``query`` and ``eval`` mark a variable of Python."""
EVALUATING = {
    *("eval", "exec", "query", "evaluate", "compile", "timeit", "repeat"),
    *("sql", "execute", "read_sql", "read_sql_query", "sqldf"),
}
"""What is called with code in a string: Python's, pandas', numexpr's, and what runs SQL over the
data frames of the notebook, as DuckDB and Polars do."""
FORMULA = "~"
"""What the formulas of statsmodels and patsy have between their sides."""
TEXT_CHARACTERS = 100_000


def in_strings(tree: ast.Module) -> list[str]:
    """The names in those strings of a cell that may be code, in order."""
    found = dict[str, None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(dict.fromkeys(in_text(node.value)))
        elif isinstance(node, ast.Call) and _called(node) in EVALUATING:
            for text in _texts(node):
                found.update(dict.fromkeys(IDENTIFIER.findall(text)))
    return list(found)


def in_text(text: str) -> list[str]:
    """The names that a text marks as variables; all names of a formula."""
    text = text[:TEXT_CHARACTERS]
    return (IDENTIFIER if FORMULA in text else MARKED).findall(text)


def _called(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    called = node.func
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _texts(node: ast.Call) -> Iterator[str]:
    for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
        for each in ast.walk(argument):
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield each.value[:TEXT_CHARACTERS]


def in_values(values: Iterable[Any]) -> list[str]:
    """The names that are marked in texts, and in the texts of functions' code."""
    found = dict[str, None]()
    for value in values:
        for text in _texts_of_value(value):
            found.update(dict.fromkeys(MARKED.findall(text[:TEXT_CHARACTERS])))
    return list(found)


def _texts_of_value(value: Any) -> Iterator[str]:
    # The type, because what a value says of its class may be anything.
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
    """The names in the code of functions: of what they read globally, as attribute, or import."""
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
    """The submodules that a cell reaches through its modules: ``xml.dom`` in ``xml.dom.minidom``.

    An import of the module alone need not bring them.
    """
    found = dict[str, None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, path = _chain(node)
            module: Any = namespace.get(root)
            if issubclass(type(module), ModuleType):
                found.update(dict.fromkeys(_imported(module.__name__, path)))
    return list(found)


def _chain(node: ast.Attribute) -> tuple[str, list[str]]:
    """The name at which a chain of attributes begins, and the attributes in order."""
    path, inner = [node.attr], node.value
    while isinstance(inner, ast.Attribute):
        path.insert(0, inner.attr)
        inner = inner.value
    return (inner.id, path) if isinstance(inner, ast.Name) else ("", path)


def _imported(name: str, path: Iterable[str]) -> Iterator[str]:
    """The submodules along a path of attributes that have been imported in this process."""
    for part in path:
        name = f"{name}.{part}"
        if name not in sys.modules:
            return
        yield name


def imports(tree: ast.Module) -> list[str]:
    """The modules that a cell imports by name, also within functions, in order."""
    found = dict[str, None]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found[node.module] = None
            found.update(dict.fromkeys(f"{node.module}.{alias.name}" for alias in node.names))
    return list(found)
