"""Which cells of a Python notebook must run again before it can go on in the middle.

A cell is needed if it may have made or changed something that the cells from there on use. In case
of doubt it is needed: to run one too many takes time, and to leave one out gives other results.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from IPython.core.inputtransformer2 import TransformerManager

from ipytaskpersist.cells import variables

UNKNOWN_NAMES = {"eval", "exec", "globals", "locals", "vars"}
"""With these a cell may use any name."""


@dataclass(frozen=True, slots=True)
class Needed:
    """The cells before a place that must run again."""

    cells: Sequence[int]
    """Their places, in order."""
    names: Sequence[str]
    """What they assign, import or define of what is used from there on."""


def needed(sources: Sequence[str], start: int) -> Needed:
    """Return which of the cells before `start` must run again so that the rest can go on there."""
    trees = [_tree(source) for source in sources]
    before, rest = trees[:start], trees[start:]
    definitions = {name for tree in before if tree for name in _definitions(tree)}
    if not all(tree is not None and _says_what_it_uses(tree) for tree in rest):
        return Needed(range(start), sorted(definitions))
    acting = definitions - {name for tree in before if tree for name in _that_show(tree)}
    same = [pair for tree in before if tree for pair in _same_values(tree)]
    wanted = {name for tree in rest if tree for name in variables.used(tree)}
    while True:
        cells = _before(before, _with_aliases(wanted, same), definitions, acting, same)
        found = [tree for place in cells if (tree := before[place])]
        late = {name for tree in found for name in _used_in_functions(tree)}
        if late <= wanted:
            break
        wanted |= late
    wanted = wanted.union(*(variables.used(tree) for tree in found))
    made = [name for tree in found for name in variables.assigned(tree) if name in wanted]
    return Needed(cells, list(dict.fromkeys(made)))


def _before(
    trees: Sequence[ast.Module | None],
    wanted: set[str],
    definitions: Collection[str],
    acting: Collection[str],
    same: Sequence[tuple[str, str]],
) -> list[int]:
    """Return which of these cells must run so that these names are right after them.

    `definitions` are what the cells import and define, `acting` those that may do more than show.
    """
    cells: list[int] = []
    for place, tree in reversed([*enumerate(trees)]):
        if tree is None:
            cells.insert(0, place)
        elif _acts(tree, acting) or wanted & _touched(tree, definitions):
            cells.insert(0, place)
            wanted = _with_aliases(wanted.union(variables.used(tree)), same)
    return cells


def _used_in_functions(tree: ast.Module) -> set[str]:
    """Return what a cell's functions use. A later cell may make it, before they are called."""
    functions = [node for node in ast.walk(tree) if isinstance(node, variables.Function)]
    nodes: list[ast.stmt] = [
        ast.Expr(node) if isinstance(node, ast.Lambda) else node for node in functions
    ]
    return set(variables.used(ast.Module(nodes, [])))


def _says_what_it_uses(tree: ast.Module) -> bool:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names.isdisjoint(UNKNOWN_NAMES)


def _same_values(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that may have the same value: ``a = b``, ``a = b.c``, ``a = b[0]``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield from ((target.id, root) for root in _root(node.value))


def _with_aliases(names: set[str], same: Sequence[tuple[str, str]]) -> set[str]:
    """Return names with all those that may have the same values."""
    found = set(names)
    while more := {each for pair in same if found & {*pair} for each in pair} - found:
        found |= more
    return found


def _tree(source: str) -> ast.Module | None:
    """Return a cell's syntax tree; None for one that is not Python."""
    try:
        return ast.parse(TransformerManager().transform_cell(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _definitions(tree: ast.Module) -> set[str]:
    """Return what a cell imports and defines. Using it does not usually change it."""
    defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return variables.imported(tree) | {n.name for n in ast.walk(tree) if isinstance(n, defined)}


def _that_show(tree: ast.Module) -> Iterator[str]:
    """Yield what a cell imports from IPython.display, which only shows things."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "IPython.display":
            yield from variables.imported(ast.Module([node], []))


def _touched(tree: ast.Module, definitions: Collection[str]) -> set[str]:
    """Return the names that a cell binds, or whose values it may change because it uses them."""
    unchanged = {*definitions, *dir(builtins)}
    used = {name for name in variables.used(tree) if name not in unchanged}
    return used | {*variables.assigned(tree)}


def _acts(tree: ast.Module, definitions: Collection[str]) -> bool:
    """Whether a cell may do more than its names say: a magic, or a call for its effect.

    ``np.random.seed(0)`` and ``os.environ["A"] = "1"`` are such, ``model = np.ones(3)`` and
    ``display(model)`` are not.
    """
    if variables.may_bind_anything(tree):
        return True
    nodes = [*ast.walk(tree)]
    is_magic = any(isinstance(node, ast.Name) and node.id == "get_ipython" for node in nodes)
    return is_magic or any(root in definitions for node in nodes for root in _changed_roots(node))


def _changed_roots(node: ast.AST) -> Iterator[str]:
    """Yield the names at the roots of what a statement calls for its effect, or assigns into."""
    if isinstance(node, ast.Expr):
        value = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(value, ast.Call):
            yield from _root(value.func)
    elif isinstance(node, ast.Assign | ast.Delete):
        for target in node.targets:
            yield from [] if isinstance(target, ast.Name) else _root(target)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        yield from [] if isinstance(node.target, ast.Name) else _root(node.target)


def _root(node: ast.AST) -> Iterator[str]:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        yield node.id
