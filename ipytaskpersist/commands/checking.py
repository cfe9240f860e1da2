"""The verbs about the installation as a whole: config, doctor."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import click

from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import as_json, print_json, surface_and_manager, verbs
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.settings import Setting, find_setting

WIDTH = 88


@verbs.command()
@click.argument(
    "name", required=False, metavar="[NAME]", shell_complete=completion.settings
)  # fmt: skip
@as_json
@surface_and_manager
def config(surface: Surface, manager: BackgroundTasks, name: str | None, as_json: bool) -> None:
    """Show the settings and where each value comes from; with a name, also what it means."""
    settings = manager.settings()
    chosen = settings if name is None else [find_setting(settings, name)]
    if as_json:
        print_json({"settings": [setting.as_json() for setting in chosen]})
    elif name is None:
        project = manager.project_in_words()
        click.echo(legible_lines("\n".join(filter(None, [_table(chosen), project]))))
    else:
        click.echo(legible_lines(_explained(chosen[0])))


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
