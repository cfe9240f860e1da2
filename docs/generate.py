"""Write what is made from definitions: `make docs`.

What a person can type, set and call is defined once, in the code. `docs/reference.md` is made from
there, so that it cannot say anything else. So are the tables of modules in `docs/internals`. The
schema of a new store is made from the migrations.
"""

from __future__ import annotations

import ast
import inspect
import re
import sqlite3
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from traitlets import Enum, TraitType

import ipytaskpersist
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.commands.definition import every_verb
from ipytaskpersist.commands.launching import background
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.file.migrations import migrate
from ipytaskpersist.store.file.schema import BETWEEN, FILE

TARGET = Path(__file__).with_name("reference.md")
INTERNALS = Path(__file__).with_name("internals")
PACKAGE = Path(ipytaskpersist.__file__).parent
MODULES = re.compile(r"(<!-- modules -->\n).*?(<!-- /modules -->)", re.DOTALL)
WIDTH = 100
LONGEST_SIGNATURE = 88

VARIABLES = {
    "IPYTASKPERSIST_DIR": "The state directory. Without it: the user's state directory for this "
    "project, `~/.local/state/ipytaskpersist` on Linux.",
    "IPYTASKPERSIST_WAIT_AT_EXIT": "Seconds for which a kernel that ends waits for its tasks in "
    "threads. The trait `wait_at_exit_s` takes precedence.",
    "IPYTASKPERSIST_NOTEBOOK": "The path of the notebook to which this process belongs. The trait "
    "`notebook` comes before it; `JPY_SESSION_NAME`, which a Jupyter server sets, after it.",
    "IPYTASKPERSIST_MCP_TOKEN": "The token of `jupyter bg mcp --http`; a new one for each start "
    "without it. Tasks do not inherit it.",
    "IPYTASKPERSIST_TASK": "Set in each process of a process or shell task: the task's id. A "
    "process that has it belongs to the task, and ends when the task is cancelled. In what a task "
    "in a thread has started the id is followed by the kernel's identity: it ends with the kernel.",
    "IPYTASKPERSIST_CHECKPOINT": "Set for a shell task: the directory in which it finds again what "
    "it has left there, when the task is run again.",
    "IPYTASKPERSIST_CHANNEL": "Set by a supervisor for the interpreter of a Python task, which "
    "removes it before the cell runs. Not meant for anybody else.",
    "IPYTASKPERSIST_ROOM": "Set by a supervisor for its fork server, which removes it: it makes "
    "room for the environments that `/proc` shows of its tasks.",
    "IPYTASKPERSIST_INSPECT": "The value of `PYTHONINSPECT`, set by a supervisor for the "
    "interpreter of a Python task, which gives it its own name back before the cell runs.",
    "IPYTASKPERSIST_SERVED": "Set by the extension of a Jupyter server for its kernels: the "
    "state directory of the tasks that it brings into pages. The kernels leave these pages to it.",
}
"""Every environment variable of this project, and what it means."""

INTRODUCTION = """
<!-- Made by `make docs` from the definitions in the code. A change here is lost. -->

# Reference

Every command, option, setting, state, environment variable and public name, as the code defines it.
How they work together is told by hand in [commands.md](commands.md); the words are in the
[glossary](glossary.md).

"""


def reference() -> str:
    """The whole page."""
    sections = {
        "Launching": launching(),
        "Verbs": verb_sections(),
        "Settings": settings(),
        "States": states(),
        "Environment variables": variables(),
        "Python": python(),
    }
    contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in sections)
    parts = [INTRODUCTION.lstrip() + contents]
    for title, paragraphs in sections.items():
        parts += [f"## {title}", *paragraphs]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


# Commands.


def launching() -> Iterator[str]:
    """`%%background`."""
    yield fenced(f"%%background {usage(background)}\n%background EXPRESSION")
    yield from description(background)
    yield options_table(background)


def verb_sections() -> Iterator[str]:
    """Each verb, in alphabetical order."""
    yield wrapped(
        "Each is `%bg_VERB` and `%bg VERB` in a notebook or in IPython, and `jupyter bg VERB` and "
        "`python -m ipytaskpersist VERB` in a terminal, with the same options. `[REF]` is a "
        "number, a name, an id, `-1` for the latest, or nothing for the same. Every one has "
        "`--help`."
    )
    for name, command in sorted(every_verb().items()):
        yield f"### {name}"
        yield fenced(f"%bg_{name} {usage(command)}".rstrip())
        yield from description(command)
        yield options_table(command)


def usage(command: click.Command) -> str:
    """The options and arguments of a command in one line."""
    options = [
        f"[{option.opts[0]}{f' {metavar(option)}' if takes_value(option) else ''}]"
        for option in options_of(command)
    ]
    arguments = [
        parameter.make_metavar(click.Context(command))
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    line = " ".join([*options, *arguments]).replace("...", "…")
    return textwrap.fill(
        line, LONGEST_SIGNATURE, subsequent_indent=" " * 4, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def options_of(command: click.Command) -> list[click.Option]:
    """The options of a command, in the order in which they are defined."""
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def takes_value(option: click.Option) -> bool:
    """Whether the option is followed by a value."""
    return not option.is_flag and not option.count


def metavar(option: click.Option) -> str:
    """What stands for an option's value."""
    if isinstance(option.type, click.Choice) and not option.metavar:
        return option.opts[0].lstrip("-").upper()
    return option.make_metavar(click.Context(click.Command("")))


def description(command: click.Command) -> Iterator[str]:
    """A command's help, paragraph by paragraph."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield wrapped(in_code(paragraph))


def options_table(command: click.Command) -> str:
    """A row for each option."""
    rows = [
        (
            f"`{option.opts[0]}{f' {metavar(option)}' if takes_value(option) else ''}`",
            option_meaning(option),
            option_default(option),
        )
        for option in options_of(command)
    ]
    return table(("option", "meaning", "default"), rows) if rows else ""


def option_meaning(option: click.Option) -> str:
    """An option's help, and the values that it allows."""
    text = in_code(option.help or "")
    if isinstance(option.type, click.Choice):
        text += f" One of {', '.join(f'`{choice}`' for choice in option.type.choices)}."
    return text


def option_default(option: click.Option) -> str:
    """What holds when an option is not given."""
    default = option.get_default(click.Context(click.Command("")))
    if option.is_flag:
        return "on" if default is True else "off"
    return f"`{default}`" if isinstance(default, str | int | float) else "–"


# Settings.


def settings() -> Iterator[str]:
    """Each trait of `BackgroundTasks`."""
    yield wrapped(
        "`%config BackgroundTasks` lists them in a notebook and `%config "
        'BackgroundTasks.runner = "process"` sets one for this kernel; `c.BackgroundTasks.runner = '
        '"process"` in `ipython_config.py` (for IPython and every kernel) sets one for good. '
        "[How to change a default](how-to/settings.md) has examples."
    )
    for name, trait in sorted(BackgroundTasks.class_traits(config=True).items()):
        yield f"### {name}"
        yield f"{trait_type(trait)}. Default: `{trait.default()!r}`."
        yield wrapped(in_code(without_default(trait.help)))


def trait_type(trait: TraitType[Any, Any]) -> str:
    """A trait's type and the values that it allows."""
    if isinstance(trait, Enum):
        return "One of " + ", ".join(f"`{value!r}`" for value in trait.values or ())
    words = {
        "Unicode": "Text",
        "Bool": "`True` or `False`",
        "Int": "Whole number",
        "NotifyTargets": "List of places",
        "Patterns": "List of patterns",
    }
    kind = words.get(type(trait).__name__, "Number")
    lowest = getattr(trait, "min", None)
    bound = "" if lowest in (None, float("-inf")) else f", at least {lowest:g}"
    return f"{kind}{bound}{', or `None`' if trait.allow_none else ''}"


def without_default(text: str) -> str:
    """A trait's help without its last sentence where that only gives the default."""
    return re.sub(r" Default: [^.,]+\.$", "", text)


# States and environment variables.


def states() -> Iterator[str]:
    """Each state with its meaning."""
    yield table(
        ("state", "meaning"), [(f"`{state.value}`", meaning_of(state)) for state in TaskState]
    )
    yield wrapped(
        "The store refuses every transition but those of the diagram in "
        "[architecture.md](architecture.md#the-words)."
    )


def field_meanings(kind: type) -> dict[str, str]:
    """The words that stand below each field of a record, and the summaries of its properties."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {
        str(field.target.id): str(ast.literal_eval(words.value))
        for field, words in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(words, ast.Expr)
    }
    properties = {name: value for name, value in vars(kind).items() if isinstance(value, property)}
    return {**found, **{name: summary(value) for name, value in properties.items()}}


def meaning_of(state: TaskState) -> str:
    """The words that stand below a state where it is defined."""
    (body,) = ast.parse(inspect.getsource(TaskState)).body
    assert isinstance(body, ast.ClassDef)
    for definition, words in zip(body.body, body.body[1:], strict=False):
        if isinstance(definition, ast.Assign) and ast.unparse(definition.targets[0]) == state.name:
            assert isinstance(words, ast.Expr), f"{state} says nothing of itself"
            return str(ast.literal_eval(words.value))
    raise AssertionError(f"{state} is not defined in {TaskState.__name__}")


def variables() -> Iterator[str]:
    """Each environment variable."""
    yield table(("variable", "meaning"), [(f"`{key}`", text) for key, text in VARIABLES.items()])


# Python.


def python() -> Iterator[str]:
    """Each public name."""
    yield fenced("import ipytaskpersist as bg", "python")
    public = {name: getattr(ipytaskpersist, name) for name in ipytaskpersist.__all__}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    errors = {name: value for name, value in public.items() if is_error(value)}
    yield "### Functions"
    for name, function in functions.items():
        yield f"#### {name}"
        yield fenced(signature(f"bg.{name}", function), "python")
        yield first_paragraph(function)
    yield from task_handle(public["Task"])
    yield "### Errors"
    yield table(
        ("error", "a", "meaning"),
        [(f"`bg.{name}`", bases(kind), summary(kind)) for name, kind in errors.items()],
    )
    rest = set(public) - set(functions) - set(errors) - {"Task", "TaskState", "Progress"}
    assert not rest, f"where do these belong in the reference: {rest}?"
    yield "### Progress"
    yield first_paragraph(public["Progress"])
    yield table(
        ("attribute", "meaning"),
        [(f"`{name}`", meaning) for name, meaning in field_meanings(public["Progress"]).items()],
    )
    yield "### TaskState"
    yield wrapped(
        "`bg.TaskState` is an `enum.StrEnum` of the [states](#states), so that `task.state == "
        '"completed"` is true of a task that has completed. `task.state.is_final` says whether it '
        "has ended."
    )


def task_handle(kind: type) -> Iterator[str]:
    """The handle of a task: what it knows and what it does."""
    members = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    yield "### Task"
    yield first_paragraph(kind)
    yield table(
        ("attribute", "type", "meaning"),
        [
            (f"`{name}`", f"`{value.fget.__annotations__['return']}`", summary(value))
            for name, value in members.items()
            if isinstance(value, property)
        ],
    )
    yield table(
        ("method", "meaning"),
        [
            (f"`{signature(name, value)}`", summary(value))
            for name, value in members.items()
            if inspect.isfunction(value)
        ],
    )


def is_error(value: Any) -> bool:
    """Whether this is a class of exceptions."""
    return inspect.isclass(value) and issubclass(value, BaseException)


def bases(kind: type) -> str:
    """The classes from which a class is made."""
    return ", ".join(f"`{base.__name__}`" for base in kind.__bases__)


class Annotation(str):
    """A type as it is written, without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature(name: str, function: Callable[..., Any]) -> str:
    """A function's name, parameters and result, on several lines where one is not enough."""
    found = inspect.signature(function)
    parameters = [
        each.replace(annotation=Annotation(each.annotation))
        if each.annotation is not each.empty
        else each
        for each in found.parameters.values()
        if each.name != "self"
    ]
    result = Annotation(found.return_annotation)
    written = name + str(found.replace(parameters=parameters, return_annotation=result))
    if len(written) <= LONGEST_SIGNATURE:
        return written
    before, _, after = written.rpartition(") -> ")
    lines = before.removeprefix(f"{name}(")
    return f"{name}(\n    " + re.sub(r", (?=\w+:|[*/])", ",\n    ", lines) + f",\n) -> {after}"


def first_paragraph(thing: Any) -> str:
    """The first paragraph of a docstring, and the others where they are about parameters."""
    paragraphs = inspect.cleandoc(thing.__doc__).split("\n\n")
    kept = paragraphs if inspect.isfunction(thing) else paragraphs[:1]
    return "\n\n".join(wrapped(in_code(paragraph)) for paragraph in kept)


def summary(thing: Any) -> str:
    """A docstring's first paragraph in one line."""
    return in_code(" ".join(inspect.cleandoc(thing.__doc__).split("\n\n")[0].split()))


# Markdown.


def anchor(title: str) -> str:
    """Where a link to a heading leads."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def fenced(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


def in_code(text: str) -> str:
    """A text of the code as Markdown: what is typed, in backticks."""
    text = text.replace("``", "`")
    typed = r"(?<![\w`/-])(--[a-z][a-z-]*\w|%%?\w+(?: \[NAME\])?|\$[A-Z_]+)(?![\w`])"
    outside = re.split(r"(`[^`]*`)", text)
    marked = "".join(
        part if part.startswith("`") else re.sub(typed, r"`\1`", part) for part in outside
    )
    return marked.replace("` `--", " --")


def wrapped(text: str) -> str:
    """A paragraph in lines of a readable length, without a break inside code."""
    joined = " ".join(text.split())
    held = re.sub(r"`[^`]*`", lambda found: found.group().replace(" ", "\0"), joined)
    filled = textwrap.fill(held, WIDTH, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\0", " ")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in line)} |"
        for line in lines
    )


APPLIED = (
    "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)\n"
    "VALUES ('ipytaskpersist', '{name}', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'))"
)
"""A row of sqlite-utils' own table of migrations, as that writes it."""


def schema() -> str:
    """The schema of a new store, as the migrations make it."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    made = connection.execute(
        "SELECT sql FROM sqlite_master"
        " WHERE sql IS NOT NULL AND name <> 'sqlite_sequence' ORDER BY rowid"
    )
    statements = [sql.strip() for (sql,) in made]
    applied = connection.execute("SELECT name FROM _sqlite_migrations ORDER BY id")
    statements += [APPLIED.format(name=name) for (name,) in applied]
    for name, last in connection.execute("SELECT name, seq FROM sqlite_sequence ORDER BY rowid"):
        statements.append(f"INSERT INTO sqlite_sequence VALUES ('{name}', {last})")
    for pragma in ("user_version", "application_id"):
        (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
        statements.append(f"PRAGMA {pragma} = {value}")
    return BETWEEN.join(statements) + ";\n"


# The wings.


def wing_page(page: Path) -> str:
    """A page of `docs/internals`, with the table of its wing's modules as they are now."""
    text = page.read_text(encoding="utf-8")
    return MODULES.sub(lambda found: found[1] + module_table(page.stem) + found[2], text)


def module_table(wing: str) -> str:
    """Each module of a wing, and the first line of its docstring."""
    folder = PACKAGE / wing
    rows = [
        f"| `{file.relative_to(folder).with_suffix('').as_posix()}` | {idea_of(file)} |"
        for file in sorted(folder.rglob("*.py"))
        if file.name != "__init__.py"
    ]
    return "\n".join(["| module | idea |", "|---|---|", *rows, ""])


def idea_of(file: Path) -> str:
    """What a module's docstring says first."""
    documented = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = documented.partition("\n\n")[0].replace("\n", " ")
    return first.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    FILE.write_text(schema(), encoding="utf-8")
    for wing in INTERNALS.glob("*.md"):
        wing.write_text(wing_page(wing), encoding="utf-8")
