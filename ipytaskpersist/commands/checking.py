"""The verbs that look after the whole: config, doctor."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import click

from ipytaskpersist import completion
from ipytaskpersist.commands.definition import as_json, print_json, surface_and_manager, verbs
from ipytaskpersist.safetext import legible_lines
from ipytaskpersist.settings import Setting, find_setting
from ipytaskpersist.surfaces import Surface

WIDTH = 88


@verbs.command()
@click.argument(
    "name", required=False, metavar="[NAME]", shell_complete=completion.settings
)  # fmt: skip
@as_json
@surface_and_manager
def config(surface: Surface, name: str | None, as_json: bool) -> None:
    """Show the settings, and where each value comes from; of one also what it means."""
    settings = surface.manager.settings()
    chosen = settings if name is None else [find_setting(settings, name)]
    if as_json:
        print_json({"settings": [setting.as_json() for setting in chosen]})
    elif name is None:
        project = surface.manager.project_in_words()
        click.echo(legible_lines("\n".join(filter(None, [_table(chosen), project]))))
    else:
        click.echo(legible_lines(_explained(chosen[0])))


@verbs.command()
@as_json
@surface_and_manager
def doctor(surface: Surface, as_json: bool) -> None:
    """Say what is well and what is not, and what to do. Changes nothing."""
    from ipytaskpersist import doctor

    manager = surface.manager
    findings = doctor.examine(manager.directory, manager.identity.id, manager.setting_problems)
    if as_json:
        print_json(doctor.as_document(findings))
    else:
        click.echo(surface.in_words(doctor.as_text(findings)))
    surface.exit(doctor.LEVELS.index(doctor.worst(findings)))


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
