"""The verbs about the installation as a whole: config, doctor."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import as_json, print_json, surface_and_manager, verbs
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.settings import Setting, find_setting, profile_file

WIDTH = 88


@verbs.command()
@click.argument("name", required=False, metavar="[NAME]", shell_complete=completion.settings)
@click.argument("value", nargs=-1, metavar="[VALUE]...")
@as_json
@surface_and_manager
def config(
    surface: Surface,
    manager: BackgroundTasks,
    name: str | None,
    value: Sequence[str],
    as_json: bool,
) -> None:
    """Show the settings and where each value comes from; with a name, also what it means.

    With a value, set it in this session. A setting that is a list takes several values.
    """
    name, value = _name_and_value(name, value)
    said = _set(manager, find_setting(manager.settings(), name), value) if name and value else ""
    settings = manager.settings()
    chosen = settings if name is None else [find_setting(settings, name)]
    if as_json:
        print_json({"settings": [setting.as_json() for setting in chosen]})
    elif name is None:
        project = manager.project_in_words()
        click.echo(legible_lines("\n".join(filter(None, [_table(chosen), project]))))
    else:
        click.echo(legible_lines(said or _explained(chosen[0])))


@verbs.command()
@as_json
@surface_and_manager
def doctor(surface: Surface, manager: BackgroundTasks, as_json: bool) -> None:
    """Check what works and what does not, and say what to do. Changes nothing."""
    from ipytaskpersist.doctor import findings, report

    found = report.examine(manager.directory, manager.session.identity.id, manager.setting_problems)
    if as_json:
        print_json(report.as_document(found))
    else:
        click.echo(surface.in_words(report.as_text(found)))
    surface.exit(findings.LEVELS.index(report.worst(found)))


def _name_and_value(name: str | None, value: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Return what was typed as ``NAME VALUE`` or ``NAME=VALUE``, or as after ``%config``."""
    name = name and name.removeprefix("BackgroundTasks.")
    if name is not None and "=" in name:
        name, _, first = name.partition("=")
        value = [*filter(None, [first]), *value]
    elif value and value[0] == "=":
        value = value[1:]
    return name, value


def _set(manager: BackgroundTasks, setting: Setting, value: Sequence[str]) -> str:
    """Set a setting in this session, and say where it is set for later ones."""
    if not setting.is_trait:
        export = f"export {setting.name}={shlex.quote(' '.join(value))}"
        raise InvalidRequest(
            f"{setting.name} is an environment variable, read when a kernel starts: {export}"
        )
    manager.set_typed(setting.name, value)
    now = find_setting(manager.settings(), setting.name)
    line = f"c.BackgroundTasks.{now.name} = {now.value!r}"
    if manager.shell is None:
        raise InvalidRequest(
            f"a terminal has no session to set {now.name} in; for all of them, write {line} into "
            f"{profile_file()}"
        )
    folder = getattr(getattr(manager.shell, "profile_dir", None), "location", None)
    file = Path(folder) / profile_file().name if folder else profile_file()
    return f"{now.name} = {now.value!r} in this session; for later ones, write {line} into {file}"


def _table(settings: Sequence[Setting]) -> str:
    names = max(len(setting.name) for setting in settings)
    values = max(len(repr(setting.value)) for setting in settings if setting.is_trait)
    return "\n".join(
        f"{setting.name:{names}}  {setting.value!r:{values}}  {setting.source}"
        for setting in settings
    )


def _explained(setting: Setting) -> str:
    meaning = textwrap.fill(setting.help, WIDTH)
    return f"{setting.name} = {setting.value!r}  ({setting.source})\n{meaning}"
