"""Tab completion in IPython and in notebooks: the commands say what may come next."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.vocabulary import VERBS
from ipytaskpersist.commands.command_line import quoted, without_quotes, words_so_far
from ipytaskpersist.session.manager import BackgroundTasks

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem
    from IPython.core.completer import CompletionContext

    from ipytaskpersist.commands.surfaces import Surface

IDENTIFIER = "ipytaskpersist"
FIRST = 1000
"""Higher than IPython's own matchers, so that they are not even called."""
FILES_AT_MOST = 200
LINE = r"(?s)\s*(?:[^=%]+=\s*)?(?P<magic>%bg(?:_\w+)?)\s+(?P<typed>.*)"
BARE_LINE = r"(?s)\s*(?P<magic>bg(?:_\w+)?)\s+(?P<typed>.*)"
"""A bare line, as IPython understands it with automagic."""
HEADER = r"(?s)%%(?P<magic>background)\s+(?P<typed>.*)"


class _NothingElse(tuple[Any, ...]):
    """Completions that may be empty but suppress all others: IPython checks their length."""

    __slots__ = ()

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def install(
    shell: Any,
    manager: BackgroundTasks,
    command_of: Callable[[str], click.Command],
    patches: Patches,
) -> None:
    """Complete the arguments of our magics in this shell from now on.

    Completion uses IPython's v2 matcher API and suppresses all other matchers.
    """
    from IPython.core.completer import context_matcher

    @context_matcher(identifier=IDENTIFIER, priority=FIRST)  # type: ignore[untyped-decorator]
    def complete(context: CompletionContext) -> Any:
        found = _typed(shell, context)
        if found is None:
            return {"completions": []}
        try:
            return _completions(*found, manager, command_of)
        except Exception:  # A key press must not raise; the command will report it.
            return {"completions": _NothingElse(), "suppress": True}

    matchers = shell.Completer.custom_matchers
    matchers.append(complete)

    def undo() -> None:
        if complete in matchers:
            matchers.remove(complete)

    patches.on_undo(undo)


def _typed(shell: Any, context: CompletionContext) -> tuple[str, str] | None:
    """Return which of our magics is before the cursor, and the arguments typed so far."""
    line = context.text_until_cursor
    found = re.match(LINE, line)
    if found is None and context.cursor_line == 0:
        found = re.match(HEADER, line)
    if found is None and shell.automagic:
        bare = re.match(BARE_LINE, line)
        found = bare if bare and bare["magic"] not in shell.user_ns else None
    if found is None:
        return None
    magic = found["magic"].lstrip("%")
    known = magic in ("bg", "background") or magic.removeprefix("bg_") in VERBS
    return (magic, found["typed"]) if known else None


def _completions(
    magic: str,
    typed: str,
    manager: BackgroundTasks,
    command_of: Callable[[str], click.Command],
) -> Any:
    from IPython.core.completer import SimpleCompletion

    from ipytaskpersist.commands.surfaces import Surface

    before, fragment = words_so_far(typed)
    items = candidates(command_of(magic), before, fragment, Surface(manager))
    if fragment.startswith("--"):
        fragment = fragment.partition("=")[2] if "=" in fragment else fragment
    texts = dict.fromkeys(text for item in items for text in _texts(item))
    return {
        "completions": [SimpleCompletion(text, type="magic") for text in texts] or _NothingElse(),
        "matched_fragment": fragment,
        "suppress": True,
        "ordered": True,
    }


def candidates(
    command: click.Command, before: list[str], fragment: str, surface: Surface
) -> list[CompletionItem[str]]:
    """Return click's completions for the word before the cursor."""
    from click.shell_completion import ShellComplete

    complete = ShellComplete(command, {"obj": surface}, str(command.name), "")
    return complete.get_completions(before, without_quotes(fragment))


def _texts(item: CompletionItem[str]) -> Iterator[str]:
    """Return the texts to insert for it."""
    if item.type == "plain":
        yield quoted(item.value)
    else:
        yield from _paths(str(item.value), only_folders=item.type == "dir")


def _paths(typed: str, *, only_folders: bool) -> Iterator[str]:
    """Return the files and folders that begin so."""
    before, slash, name = typed.rpartition("/")
    folder = before + slash
    found = []
    with os.scandir(typed_path(folder or ".")) as entries:
        for entry in entries:
            is_folder = entry.is_dir()
            if (
                entry.name.startswith(name)
                and (is_folder or not only_folders)
                and (name or not entry.name.startswith("."))
            ):
                found.append(folder + entry.name + "/" * is_folder)
    for path in sorted(found)[:FILES_AT_MOST]:
        # A quoted ~ would no longer mean the home folder.
        home = "~/" if path.startswith("~/") else ""
        yield home + quoted(path.removeprefix(home))
