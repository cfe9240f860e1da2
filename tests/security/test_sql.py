"""What a person or a file says is never a part of a statement of SQL, only its parameter."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from histories import add_task, begin_session

from ipytaskpersist.base.records import SessionRecord, TaskRecord, TaskState
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.history import search_query, text_search
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.session import finding
from ipytaskpersist.store import task_store
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

PACKAGE = Path(task_store.__file__).parent
FILES = {"os.write", "target.write"}
"""Calls that write to files besides the store."""
CALLS = {"execute", "executemany", "executescript", "rows", "row", "write"}

REVIEWED = {
    # The names of columns, from the table itself or from the keys of a dict in the code.
    "names", "columns", "name",
    # As many question marks as there are values.
    "marks", "lost", "cut_off",
    # Conditions that are chosen here, with a question mark for each value.
    "condition", "order",
    # The name of a table or schema, from a tuple in the code.
    "table", "key",
    # Queries that stand in the code.
    "needed", "ids", "query", "stream", "kinds", "task_key", "here", "there", "alive", "insert",
    "statement", "verb", "remove", "begin", "lock",
    "conditions", "theirs", "place", "changes", "known", "check",
    # Numbers that SQLite has given, where it takes no parameter.
    "times", "version", "declared", "wait_ms",
    # Settings of SQLite that only the code, or an enumeration, gives.
    "synchronous", "durability", "mode",
    # What the methods of `Database` are given, by those who are looked at here.
    "sql",
}  # fmt: skip
"""What may stand in a statement. Whoever adds to it has looked where it comes from."""
WRITERS = ("output_bytes_of", "iso_time", "readable")
"""Functions of the migrations that write SQL for a column, which the code names."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.name, ast.parse(path.read_text(encoding="utf-8"))


def statements(tree: ast.Module) -> Iterator[ast.expr]:
    """What is given to SQLite: first arguments of its calls, and texts that look like SQL."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in CALLS and node.args and ast.unparse(node.func) not in FILES:
                yield node.args[0]
        elif isinstance(node, ast.JoinedStr) and looks_like_sql(node):
            yield node


def looks_like_sql(node: ast.JoinedStr) -> bool:
    text = "".join(str(each.value) for each in node.values if isinstance(each, ast.Constant))
    return any(word in text for word in ("SELECT ", "INSERT ", "UPDATE ", "DELETE ", "PRAGMA "))


def parts(node: ast.expr) -> Iterator[str]:
    """The names of what stands in a statement besides its own text; a description for what has
    no place there."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Call):
        yield from parts_of_call(node)
    elif not isinstance(node, ast.Constant):
        inner = list(inside(node))
        if not inner:
            yield f"{type(node).__name__}: {ast.unparse(node)}"
        for each in inner:
            yield from parts(each)


def inside(node: ast.expr) -> Iterator[ast.expr]:
    """What a piece of a statement is made of, where that is one of the few known ways."""
    if isinstance(node, ast.JoinedStr):
        yield from (each.value for each in node.values if isinstance(each, ast.FormattedValue))
        yield ast.Constant("")
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Mod):
        yield node.left  # as many question marks as there are values, or a constant in another
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.GeneratorExp | ast.ListComp):
        yield node.elt


def parts_of_call(node: ast.Call) -> Iterator[str]:
    """Of a call that puts pieces together its pieces; of any other what it is."""
    called = node.func
    joins = (
        isinstance(called, ast.Attribute)
        and called.attr in ("join", "replace")
        and isinstance(called.value, ast.Constant | ast.Name)
    )
    if joins:
        for argument in node.args:
            yield from parts(argument)
    elif not isinstance(called, ast.Name) or called.id not in ("len", *WRITERS):
        yield f"call of {ast.unparse(called)}"


def is_constant(name: str) -> bool:
    """Whether it is one of a module, which nothing that is typed can change."""
    return name.isupper() and name.isidentifier()


def test_only_reviewed_constants_stand_in_statements() -> None:
    unknown = {
        f"{name}:{statement.lineno}: {part}"
        for name, tree in trees()
        for statement in statements(tree)
        for part in parts(statement)
        if part not in REVIEWED and not is_constant(part)
    }
    assert unknown == set()


def test_what_was_reviewed_is_still_there() -> None:
    used = {part for _name, tree in trees() for each in statements(tree) for part in parts(each)}
    assert REVIEWED - used == set()


def test_nothing_is_formatted_into_a_statement_otherwise() -> None:
    """Neither by % nor by format, nor put together by +."""
    found = {
        f"{name}:{statement.lineno}"
        for name, tree in trees()
        for statement in statements(tree)
        for node in ast.walk(statement)
        if (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add)
            and not isinstance(node.right, ast.Constant))
        or (isinstance(node, ast.Attribute) and node.attr in ("format", "format_map"))
    }  # fmt: skip
    assert found == set()


def test_no_other_module_speaks_sql() -> None:
    for path in PACKAGE.parent.rglob("*.py"):
        if not path.is_relative_to(PACKAGE):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            calls = {
                node.func.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            }
            assert not calls & {"execute", "executemany", "executescript"}, path


ATTACKS = (
    "'; DROP TABLE tasks; --", '" OR 1=1 --', "') OR ('1'='1", "x' UNION SELECT data FROM tags --",
    "%", "_", "*", "[a-z]", "\\", "?", "?1", ":a", "@a", "$a", "1; ATTACH 'x' AS y", "NULL",
    'a" NEAR "b', "name:x", "source : drop", "{name source} : x", "^x", "NOT x", "x AND", "(", '"',
    "-x", "+", "x*",
)  # fmt: skip


def test_a_text_in_every_place_is_only_that_text(store: TaskStore, archives: Archives) -> None:
    """As name, tag and path it comes back as it was, and finds only itself."""
    plain = begin_session(store, "/home/ada/plain.ipynb")
    add_task(store, plain, name="other", tags=["other"], printed=b"other\n")
    tasks = {attack: attacked(store, plain, attack) for attack in ATTACKS}
    for attack, task in tasks.items():
        assert found_by(store, archives, attack) <= {task.id}, attack
    archives.archive([*tasks.values()])
    for attack, task in tasks.items():
        assert [each.id for each in archives.select(Selection(tags=[attack]))] == [task.id]
    archives.delete(archives.select(Selection(tags=[ATTACKS[0]])))
    assert store.tasks.count(Selection(states=[TaskState.COMPLETED])) == 1
    assert archives.count(Selection()) == len(ATTACKS) - 1


def attacked(store: TaskStore, plain: SessionRecord, attack: str) -> TaskRecord:
    """A task of which everything is the attack."""
    session = begin_session(store, f"/home/ada/{attack}.ipynb")
    task = add_task(store, session, name=attack, tags=[attack], printed=attack.encode() + b"\n")
    key = session.notebook_key
    assert store.tasks.by_name(key, attack) == store.tasks.get(task.key)
    assert [each.id for each in store.tasks.select(Selection(tags=[attack]))] == [task.id]
    assert store.tasks.select(Selection(session_prefix=f"{attack}zz")) == []
    assert store.tasks.by_id(attack) is None
    assert store.sessions.find(f"{attack}zz") == []
    assert [each.name for each in store.tasks.named(key, attack, 9)] == [attack]
    assert attack in store.tasks.tags(attack, 9)
    assert store.tasks.named(plain.notebook_key, attack, 9) == []
    for reference in (attack, f"{attack}-1"):
        with suppress(BackgroundError):
            found = finding.find(store, plain.notebook_key, reference)
            assert found.notebook_key == plain.notebook_key
    return task


def found_by(store: TaskStore, archives: Archives, attack: str) -> set[str]:
    """The ids of the tasks that a search finds; none where there is nothing to be searched."""
    try:
        query = search_query.parse([attack])
    except BackgroundError:
        return set()
    scope = search_query.Scope(notebook=attack)
    found = text_search.search(store, archives, query, scope, lambda _done, _total: None)
    return {hit.task.id for hit in found.hits}
