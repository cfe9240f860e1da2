"""The verb that puts outputs of tasks into a notebook's file: fill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import surface_and_manager, verbs
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text.formatting import counted


@verbs.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="NOTEBOOK...",
    shell_complete=completion.files,
)  # fmt: skip
@click.option("--anyway", is_flag=True, help="Also if a page has the notebook open.")
@surface_and_manager
def fill(_surface: Surface, manager: BackgroundTasks, files: Sequence[Path], anyway: bool) -> None:
    """Put the present outputs of its tasks into a notebook's file, as if it had been open."""
    from ipytaskpersist.filling import notebook_file
    from ipytaskpersist.server.open_documents import server_with_page

    for file in files:
        path = typed_path(file)
        server = None if anyway or not path.exists() else server_with_page(path)
        if server is not None:
            raise InvalidRequest(
                f"a page of {server} has {legible(str(file))} open, and shows its tasks by itself; "
                "close it, or add --anyway to write the file under it"
            )
        filled = notebook_file.fill(path, manager)
        tasks = counted(filled.tasks, "task")
        said = f"filled with {tasks}" if filled.is_changed else f"shows its {tasks} already"
        click.echo(legible(f"{file}: {said}"))
