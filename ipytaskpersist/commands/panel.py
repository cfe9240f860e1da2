"""The verb that opens the live panel: panel."""

from __future__ import annotations

import click

from ipytaskpersist.commands.definition import surface_and_manager, verbs
from ipytaskpersist.commands.surfaces import NotebookSurface, Surface
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.manager import BackgroundTasks


@verbs.command()
@click.option("--all", "everywhere", is_flag=True, help="The tasks of every notebook.")
@surface_and_manager
def panel(surface: Surface, manager: BackgroundTasks, everywhere: bool) -> None:
    """Show the tasks live, with their output and buttons. Only in a notebook."""
    if not isinstance(surface, NotebookSurface):
        shows = surface.in_words("%bg_list")
        raise InvalidRequest(f"the panel needs a notebook; here {shows} shows the tasks")
    try:
        from ipytaskpersist.panel.widget import open_panel
    except ImportError as error:
        if error.name not in ("anywidget", "ipywidgets"):
            raise
        raise InvalidRequest(
            "the panel needs anywidget; install it where the kernel and where Jupyter runs with "
            "pip install 'ipytaskpersist[panel]', then load the page anew and restart the kernel"
        ) from None
    opened = open_panel(manager, surface.shell, everywhere=everywhere)
    data, metadata = opened._repr_mimebundle_()
    surface.shell.display_pub.publish(data, metadata)
    surface.shell.display_pub.publish(opened.snapshot())
