"""Find the variables that a cell uses and assigns, from its syntax tree.

The tree is that of the cell as IPython transforms it, in which a magic is a call with a text. A
superfluous name costs little, but an overlooked one would be missing. So in case of doubt, a name
counts as used.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

IDENTIFIER = re.compile(r"[^\W\d]\w*")
EXPANSION = re.compile(r"\{([^{}]*)\}|\$([^\W\d]\w*)")
SHELL_CALLS = {"system", "getoutput", "getoutput_s"}
SHELL_MAGICS = {
    "bash",
    "sh",
    "script",
    "sx",
    "system",
    "perl",
    "ruby",
    "javascript",
    "html",
    "latex",
}
PYTHON_MAGICS = {"time", "capture", "prun"}
"""Magics whose text is code of the cell itself."""

BINDS_NOTHING = {
    *("time", "timeit", "prun", "matplotlib", "config", "load_ext", "reload_ext", "autoreload"),
    *("cd", "env", "pip", "conda", "system", "sx"),
}
"""Magics that bind no variables, unlike ``%run``, and unlike others that are not known."""
OF_HISTORY = re.compile(r"(?:_{1,3}|_\d+|_i{1,3}|_i\d+|_oh|_ih|Out|In)")
"""IPython's names for the results and sources of earlier cells."""

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


def used(tree: ast.Module) -> list[str]:
    """Return the names that a cell may read before it has assigned them, in order."""
    reader = _Reader(set())
    reader.visit(tree)
    return list(reader.read)


def needed(tree: ast.Module) -> list[str]:
    """Return the names without which a cell certainly fails, in order, if nothing has bound them.

    Unlike `used`, it leaves out what may be the name of something else, as in a magic's text, and
    everything if the cell may bind names that it does not say.
    """
    if may_bind_anything(tree):
        return []
    reader = _NeedReader(set(), set(assigned(tree)))
    reader.visit(tree)
    return list(reader.read)


def of_history(source: str, shell: Any) -> list[str]:
    """Return IPython's names for results and sources of earlier cells that a cell reads.

    A user's variable of the same name does not count.
    """
    if not re.search(rf"\b{OF_HISTORY.pattern}\b", source):
        return []  # the usual case, without parsing the cell again
    namespace, hidden, missing = shell.user_ns, shell.user_ns_hidden, object()
    return [
        name
        for name in used(ast.parse(shell.transform_cell(source)))
        if OF_HISTORY.fullmatch(name)
        and hidden.get(name, missing) is namespace.get(name, missing)
        and name in namespace
    ]


def assigned(tree: ast.Module) -> list[str]:
    """Return the names that a cell may bind at its top level, in order, with imports last."""
    names, modules = list(dict.fromkeys(_assigned(tree.body))), imported(tree)
    return [*(n for n in names if n not in modules), *(n for n in names if n in modules)]


def values(tree: ast.Module) -> set[str]:
    """Return the names that a cell assigns, without modules, definitions and loop variables."""
    return set(_assigned(tree.body, as_values=True))


def imported(tree: ast.Module) -> set[str]:
    """Return the names that a cell binds by importing."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for node in imports for name in _imported(node)}


def augmented(tree: ast.Module) -> set[str]:
    """Return the names that a cell may change in place, as ``+=`` does with a list."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.AugAssign)]
    return {node.target.id for node in nodes if isinstance(node.target, ast.Name)}


def _assigned(nodes: Iterable[ast.AST], *, as_values: bool = False) -> Iterator[str]:
    """Yield the names that statements bind; with `as_values`, those of `values`."""
    inside = partial(_assigned, as_values=as_values)
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from [] if as_values else [node.name]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from [] if as_values else _imported(node)
        elif isinstance(node, ast.For | ast.AsyncFor) and as_values:
            yield from inside([node.iter, *node.body, *node.orelse])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Lambda | Comprehension):
            yield from inside(each for each in ast.walk(node) if isinstance(each, ast.NamedExpr))
        else:
            if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                yield node.name
            if isinstance(node, ast.Call):
                yield from inside(_code_of_magic(node))
            yield from inside(ast.iter_child_nodes(node))


def _code_of_magic(node: ast.Call) -> Iterator[ast.AST]:
    """Yield the statements in the text of a magic that runs it as code of the cell."""
    method, texts = _magic_call(node)
    if method.startswith("run_") and texts and texts[0] in PYTHON_MAGICS:
        for text in texts[1:]:
            tree = _parsed(text)
            if tree is not None:
                yield from tree.body


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for alias in node.names:
        if alias.name != "*":
            yield alias.asname or alias.name.partition(".")[0]


def _magic_call(node: ast.Call) -> tuple[str, list[str]]:
    """Return the method of ``get_ipython()`` in a call and its texts. Empty for other calls."""
    called = node.func
    if (
        isinstance(called, ast.Attribute)
        and isinstance(called.value, ast.Call)
        and isinstance(called.value.func, ast.Name)
        and called.value.func.id == "get_ipython"
    ):
        values = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        return called.attr, [value for value in values if isinstance(value, str)]
    return "", []


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


class _Reader(ast.NodeVisitor):
    """Visits nodes in the order of evaluation and collects names read before they are bound."""

    def __init__(self, bound: set[str]) -> None:
        self.read: dict[str, None] = {}
        self.bound = bound

    def _nested(self, bound: set[str]) -> _Reader:
        """Return a reader for the inside of a function, class or comprehension."""
        return _Reader(bound)

    def _note(self, names: Iterable[str]) -> None:
        self.read.update(dict.fromkeys(name for name in names if name not in self.bound))

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.bound.add(node.id)
        else:
            self._note([node.id])

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        self._visit_all(node.targets)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_all([node.annotation, node.value])
        if node.value is not None:
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._note([node.target.id])
        self._visit_all([node.value, node.target])

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._visit_all([node.value, node.target])

    def visit_Import(self, node: ast.Import) -> None:
        self.bound.update(_imported(node))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.bound.update(_imported(node))

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self._visit_all([node.iter, node.target])
        self._branches(node.body, node.orelse)

    visit_AsyncFor = visit_For  # noqa: N815 - the name that ast looks for

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._branches(node.body, node.orelse)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._branches(node.body, node.orelse)

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        handlers = [statement for handler in node.handlers for statement in handler.body]
        self._visit_all([handler.type for handler in node.handlers])
        self.bound.update(handler.name for handler in node.handlers if handler.name)
        self._branches([*node.body, *node.orelse], handlers)
        self._visit_all(node.finalbody)

    visit_TryStar = visit_Try  # noqa: N815

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        for case in node.cases:
            self.bound.update(_assigned([case.pattern]))
            self._visit_all([case.pattern, case.guard])
        self._branches(*[case.body for case in node.cases], [])

    def _branches(self, *bodies: Iterable[ast.AST]) -> None:
        """Visit alternatives. Afterwards, only names bound in each of them count as bound."""
        before, after = self.bound, None
        for body in bodies:
            self.bound = set(before)
            self._visit_all(body)
            after = self.bound if after is None else after & self.bound
        self.bound = before | (after or set())

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_all([*node.decorator_list, *_defaults(node), *_annotations(node)])
        self.bound.add(node.name)
        self._inside(node.body, _parameters(node))

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_all(_defaults(node))
        self._inside([node.body], _parameters(node))

    def _inside(self, body: Iterable[ast.AST], parameters: Iterable[str]) -> None:
        """Visit the body of a function, whose local variables are not the cell's."""
        nodes = list(body)
        elsewhere = {
            name
            for node in nodes
            for each in ast.walk(node)
            if isinstance(each, ast.Global | ast.Nonlocal)
            for name in each.names
        }
        own = (set(parameters) | set(_assigned(nodes))) - elsewhere
        reader = self._nested(self.bound | own)
        reader._visit_all(nodes)
        self._note(reader.read)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all([*node.decorator_list, *node.bases, *node.keywords])
        reader = self._nested(set(self.bound))
        reader._visit_all(node.body)
        self._note(reader.read)
        self.bound.add(node.name)

    def _visit_comprehension(self, node: Comprehension) -> None:
        reader = self._nested(set(self.bound))
        for generator in node.generators:
            reader._visit_all([generator.iter, generator.target, *generator.ifs])
        elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        reader._visit_all(elements)
        self._note(reader.read)

    visit_ListComp = _visit_comprehension  # noqa: N815
    visit_SetComp = _visit_comprehension  # noqa: N815
    visit_DictComp = _visit_comprehension  # noqa: N815
    visit_GeneratorExp = _visit_comprehension  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        method, texts = _magic_call(node)
        if not method:
            self.generic_visit(node)
        elif method in SHELL_CALLS or (texts and texts[0] in SHELL_MAGICS):
            self._note(_expanded(texts))
        else:
            self._read_magic(texts)

    def _read_magic(self, texts: list[str]) -> None:
        for text in texts[1:]:
            tree = _parsed(text)
            if tree is None or texts[0] not in PYTHON_MAGICS:
                self._note(IDENTIFIER.findall(text))
            else:
                self.visit(tree)

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)


class _NeedReader(_Reader):
    """Collects only names that are certainly read."""

    def __init__(self, bound: set[str], later: set[str]) -> None:
        """`later` are the names that the cell binds somewhere, perhaps before a call."""
        super().__init__(bound)
        self._later = later

    def _nested(self, bound: set[str]) -> _Reader:
        return _NeedReader(bound | self._later, self._later)

    def visit_Call(self, node: ast.Call) -> None:
        method, texts = _magic_call(node)
        if not method or (texts and texts[0] in PYTHON_MAGICS):
            super().visit_Call(node)

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        """Leave out a body that is prepared for a missing name."""
        if any(_catches_name_errors(handler) for handler in node.handlers):
            self.bound.update(_assigned([node]))
        else:
            super().visit_Try(node)

    visit_TryStar = visit_Try  # noqa: N815


def may_bind_anything(tree: ast.Module) -> bool:
    """Return whether a cell may bind names that are not in its tree, as ``import *`` does."""
    return any(map(_binds_anything, ast.walk(tree)))


def _binds_anything(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" for alias in node.names)
    if not isinstance(node, ast.Call):
        return False
    method, texts = _magic_call(node)
    if method.startswith("run_") and texts:
        is_bare = texts[0] in {"capture", *SHELL_MAGICS} and not (texts[1:] and texts[1].strip())
        return not is_bare and texts[0] not in BINDS_NOTHING
    return isinstance(node.func, ast.Name) and node.func.id in {"exec", "globals", "locals"}


def _catches_name_errors(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(kinds & {"NameError", "Exception", "BaseException"})


def _parameters(node: Function) -> list[str]:
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [each.arg for each in named if each is not None]


def _defaults(node: Function) -> list[ast.expr | None]:
    return [*node.args.defaults, *node.args.kw_defaults]


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr | None]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [*(each.annotation for each in given), node.returns]


def _expanded(texts: Iterable[str]) -> Iterator[str]:
    """Yield the names whose values IPython expands in a command: ``{name}`` and ``$name``."""
    for text in texts:
        for expression, name in EXPANSION.findall(text):
            yield from [name] if name else IDENTIFIER.findall(expression)
