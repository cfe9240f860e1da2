"""The verbs that give an overview: sessions, places, stats."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import as_json, print_json, surface_and_manager, verbs
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.display.listing import SessionListing
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text import formatting

SESSION_LIMIT = 30
NO_PLACES = """the setting places has none; this adds one, of kind ssh, dask or slurm:
c.BackgroundTasks.places = {"gpu1": {"kind": "ssh", "host": "gpu1"}}   # in ipython_config.py"""


@verbs.command()
@click.option("--all", "every_notebook", is_flag=True, help="The sessions of every notebook.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N",
    help=f"Only the newest N. Default: {SESSION_LIMIT} in a table, all with --json.",
)  # fmt: skip
@as_json
@surface_and_manager
def sessions(
    surface: Surface,
    manager: BackgroundTasks,
    every_notebook: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List this notebook's sessions, newest first: when, how each ended, and what it did."""
    from ipytaskpersist.display.tables import render, session_table

    manager.runners.reconcile()
    key = None if every_notebook else manager.session.notebook_key() or -1
    store, limit = manager.store, limit or (None if as_json else SESSION_LIMIT)
    found = store.sessions.select(key, limit) if store.exists else []
    if as_json:
        print_json({"sessions": [*map(formatting.session_json, found)], "count": len(found)})
        return
    total = store.sessions.count(key) if len(found) == limit else len(found)
    short_ids = [store.sessions.short(session.id) for session in found]
    listing = SessionListing(found, total, every_notebook, formatting.utc_now(), short_ids)
    click.echo(render(*session_table(listing), plain=surface.is_ipython))


@verbs.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=completion.places)
@click.option(
    "--trust",
    is_flag=True,
    help="Allow that values from these places are loaded here, which can run their code.",
)
@click.option("--distrust", is_flag=True, help="Allow it no longer.")
@as_json
@surface_and_manager
def places(
    surface: Surface,
    manager: BackgroundTasks,
    names: Sequence[str],
    trust: bool,
    distrust: bool,
    as_json: bool,
) -> None:
    """Ask the places of the settings whether they answer, and list them. All of them, or some."""
    from ipytaskpersist.display.places import place_table
    from ipytaskpersist.display.tables import render
    from ipytaskpersist.session.places import ask, set_trust

    if trust or distrust:
        set_trust(manager.places, manager.directory, names, trust=trust, distrust=distrust)
    found = ask(manager.places, manager.directory, names)
    if as_json:
        print_json({"places": [place.as_json() for place in found]})
    elif found:
        click.echo(render(place_table(found), plain=surface.is_ipython))
    else:
        click.echo(NO_PLACES)


@verbs.command()
@as_json
@surface_and_manager
def stats(surface: Surface, manager: BackgroundTasks, as_json: bool) -> None:
    """Show how much is stored: tasks by state and day, sessions, disk usage."""
    from ipytaskpersist.display.store_statistics import as_document, as_tables, gather
    from ipytaskpersist.display.tables import render

    manager.runners.reconcile()
    found = gather(manager)
    if as_json:
        print_json(as_document(found))
    else:
        click.echo(render(*as_tables(found), plain=surface.is_ipython))
