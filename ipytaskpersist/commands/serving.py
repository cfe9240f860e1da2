"""The verb that has the system start waiting tasks after a reboot: service."""

from __future__ import annotations

import click

from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.commands.definition import surface_and_manager, verbs
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.session.manager import BackgroundTasks

LINGER = "systemd starts it when you log in; loginctl enable-linger has it start with the machine"


@verbs.command()
@click.argument(
    "action", metavar="ACTION", type=click.Choice(["install", "status", "remove", "run"])
)
@surface_and_manager
def service(surface: Surface, manager: BackgroundTasks, action: str) -> None:
    """Have the system start tasks that wait, after a reboot too: install, status, remove.

    It runs what `run` runs, once a minute: a look at the store, as every command takes it.
    """
    from ipytaskpersist.session.service import Service

    if action == "run":
        manager.runners.reconcile()
        return
    kept = Service(manager.directory)
    if action == "remove":
        was_there = kept.remove()
        click.echo("removed" if was_there else "there was nothing to remove")
        return
    found = kept.install() if action == "install" else kept.status()
    click.echo(legible_lines(found.in_words()))
    if action == "install" and found.by == "systemd":
        click.echo(LINGER)
