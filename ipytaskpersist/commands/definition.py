"""Parsing that all verbs share, and the options that many of them take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from ipytaskpersist.base.vocabulary import MODULE_OF, VERBS
from ipytaskpersist.commands import completion, hints
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.errors import InvalidRequest, TaskNotFound

HELP = {"help_option_names": ["-h", "--help"]}
STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FOR_ANOTHER = "ipytaskpersist.for_another"
"""Where a context keeps the words of a command line for another machine."""
COUNTED_BACK = re.compile(r"-\d+")


class Verb(click.Command):
    """A command whose arguments may be ``-1``, ``-2`` …, which click would take for options."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # Not inherited from the group, because ``%bg_VERB`` calls a verb without it.
        super().__init__(*args, **{**options, "context_settings": HELP})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put a blank before negative references, so that click does not take them for options."""
        end = args.index("--") if "--" in args else len(args)
        with_value = {name for param in self.params for name in param.opts if _takes_value(param)}
        given = [
            f" {arg}" if COUNTED_BACK.fullmatch(arg) and before not in with_value else arg
            for before, arg in zip(["", *args], args[:end], strict=False)
        ]
        try:
            return super().parse_args(ctx, [*given, *args[end:]])
        except click.UsageError as error:
            pairs = zip(["", *args], args, strict=False)
            hint = hints.of_words(
                (word for before, word in pairs if before not in with_value), self
            )
            if not hint:
                raise
            raise click.UsageError(_with_hint(error.format_message(), hint), ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. If it finds no task, say what else may have been meant."""
        try:
            return super().invoke(ctx)
        except TaskNotFound as error:
            words = ctx.params.get("refs") or str(ctx.params.get("ref") or "").split()
            raise TaskNotFound(_with_hint(str(error), hints.of_words(words, self))) from None


def _with_hint(message: str, hint: str) -> str:
    return f"{message.rstrip('.')}; {hint}" if hint else message


def _takes_value(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and not param.is_flag


class Verbs(click.Group):
    """The group of all verbs. Suggests the verb that was probably meant."""

    command_class = Verb

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, without importing any command."""
        return [*VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb by name."""
        if cmd_name in MODULE_OF:
            import_module(f"ipytaskpersist.commands.{MODULE_OF[cmd_name]}")
        return self.commands.get(cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the verb. Another machine parses what follows `--at`."""
        given = [*args]
        rest = super().parse_args(ctx, args)
        if ctx.params.get("at") is not None:
            ctx.meta[FOR_ANOTHER] = given[1 if given[0].startswith("--at=") else 2 :]
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb, here or on another machine."""
        if ctx.params.get("at") is not None:
            ctx.exit(ctx.obj.run_there(ctx.params["at"], ctx.meta[FOR_ANOTHER]))
        return super().invoke(ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete verbs, without importing any, and options."""
        names = [CompletionItem(name) for name in VERBS if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the verb, or suggest the nearest one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"No verb '{args[0]}'; {hints.of_verb(args[0])}", ctx)
        return super().resolve_command(ctx, args)


def every_verb() -> dict[str, click.Command]:
    """Import all verbs, and return them by name."""
    found = {name: verbs.get_command(click.Context(verbs), name) for name in VERBS}
    return {name: command for name, command in found.items() if command is not None}


@click.group(cls=Verbs, context_settings=HELP)
@click.option(
    "--at", metavar="PLACE", help="Tasks of another machine: ssh://host, or a place's name."
)
def verbs(at: str | None) -> None:
    """Background cells that outlive their kernel."""


def surface_and_manager(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass a command the surface on which it was typed and the tasks that it works on."""

    @wraps(command)
    def with_both(surface: Surface, **options: Any) -> Any:
        return command(surface, surface.manager, **options)

    return click.pass_obj(with_both)


class Seconds(click.FloatRange):
    """A number of seconds."""

    name = "number of seconds"


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")


def _as_one(_context: click.Context, _parameter: click.Parameter, words: Sequence[str]) -> Any:
    """Join the words of a name; None if there are none."""
    return " ".join(word.strip() for word in words) or None


def one_reference(complete: completion.Complete) -> Callable[..., Any]:
    """Return the argument of a verb about one task: a reference, or None for the latest."""
    return click.argument(
        "ref", nargs=-1, metavar="[REF]", callback=_as_one, shell_complete=complete
    )


one = one_reference(completion.tasks)
several = click.argument("refs", nargs=-1, metavar="[REF]...", shell_complete=completion.tasks)


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json_text(document))


def json_text(document: Any, indent: int | None = 2) -> str:
    """Return a JSON document; without an indent, in one line."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(document, ensure_ascii=False, indent=indent, separators=separators)
    # JSON escapes less than needed: escape characters that control a terminal or reverse text.
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def refuse_together(given: dict[str, bool]) -> None:
    """Raise an error if several mutually exclusive flags are given."""
    if sum(given.values()) > 1:
        *names, last = given
        raise InvalidRequest(f"{', '.join(names)} and {last} exclude each other; give one of them")


def run(arguments: Sequence[str], surface: Surface, command: click.Command = verbs) -> Any:
    """Run one command line, and return its return value.

    Raise `BackgroundError` if it fails, and `click.ClickException` for wrong usage.
    """
    name = "" if command is verbs else f"_{command.name}"
    program = f"%bg{name}" if surface.is_ipython else "jupyter bg"
    words = list(arguments) or (["--help"] if command is verbs else [])
    with command.make_context(program, words, obj=surface) as context:
        return command.invoke(context)
