"""The verbs that move tasks: export, import, and adopt for those of a renamed notebook."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.private_files import make_durable, new_private, remove
from ipytaskpersist.base.records import SessionRecord, TaskRecord
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import (
    as_json,
    print_json,
    refuse_together,
    several,
    surface_and_manager,
    verbs,
)
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.history.exporting import Export
from ipytaskpersist.history.import_reading import DOCUMENT_BYTES, Invalid
from ipytaskpersist.history.importing import Report, import_file
from ipytaskpersist.session import finding, renamed_notebooks
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text.formatting import counted, notebook_name


def _page(export: Export) -> Iterator[bytes]:
    from ipytaskpersist.history.export_page import page

    return page(export)


FORMATS: dict[str, Callable[[Export], Iterator[bytes]]] = {
    "jsonl": Export.lines,
    "json": Export.document,
    "ipynb": Export.notebook,
    "html": _page,
}


@verbs.command("export")
@several
@click.option("--all", "every_task", is_flag=True, help="The tasks of every notebook.")
@click.option(
    "--session", metavar="ID", shell_complete=completion.sessions,
    help="This session's tasks; 8 characters are enough.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice([*FORMATS]), default="jsonl",
    help="jsonl (the default) and json can be imported again; ipynb and html are for people.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write to this file instead of standard output.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@click.option("--archived", is_flag=True, help="Also archived tasks, with --all or --session.")
@surface_and_manager
def export(
    surface: Surface,
    manager: BackgroundTasks,
    refs: Sequence[str],
    every_task: bool,
    session: str | None,
    form: str,
    output: Path | None,
    force: bool,
    archived: bool,
) -> None:
    """Write tasks with everything known about them to a file or to standard output."""
    chosen = {"references": bool(refs), "--all": every_task, "--session": session is not None}
    refuse_together(chosen)
    if not any(chosen.values()):
        raise InvalidRequest(
            "which tasks? export takes their numbers, names or ids, --session ID, or --all: "
            "%bg_export 3"
        )
    export = Export(
        manager.archives,
        manager.payloads,
        _select(manager, refs, session, archived),
    )
    pieces = FORMATS[form](export)
    if output is None:
        surface.raw(pieces)
        return
    size_bytes = write(typed_path(output), pieces, force=force)
    place = legible(str(output))
    click.echo(
        f"exported {counted(export.count, 'task')} of {counted(export.notebooks, 'notebook')} to "
        f"{place} ({size_bytes:,} bytes)"
    )
    if form == "json" and size_bytes > DOCUMENT_BYTES:
        click.echo(
            f"{place} is too large to be imported again; --format jsonl has no such limit",
            err=True,
        )


def _select(
    manager: BackgroundTasks, refs: Sequence[str], session: str | None, archived: bool
) -> list[TaskRecord]:
    if refs:
        return manager.tasks.find_all(refs)
    prefix = finding.find_session(manager.store, session).id if session is not None else ""
    selection = Selection(session_prefix=prefix)
    own = manager.tasks.select(selection)
    return [*(manager.tasks.select_archived(selection) if archived else []), *own]


def write(target: Path, pieces: Iterator[bytes], *, force: bool) -> int:
    """Write a file that appears complete or not at all, and return its size.

    Raise `InvalidRequest` if the file exists and must not be replaced.
    """
    exists = f"{target} exists already; add --force to replace it"
    if target.exists() and not force:
        raise InvalidRequest(exists)
    partial = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        # Private: tasks may have printed confidential text.
        with new_private(partial) as file:
            size_bytes = sum(map(file.write, pieces))
        make_durable(partial)
        if force:
            partial.replace(target)
        else:
            # Unlike a rename, a link never replaces a file that has appeared in the meantime.
            os.link(partial, target)
    except FileExistsError:
        raise InvalidRequest(exists) from None
    except OSError as error:
        raise disk_errors.refused(str(target), error, target) from error
    finally:
        remove(partial)
    return size_bytes


@verbs.command()
@surface_and_manager
def adopt(surface: Surface, manager: BackgroundTasks) -> None:
    """Take over the tasks of a notebook that was renamed or moved while no kernel ran."""
    session = manager.session.record()
    manager.runners.reconcile()
    found = renamed_notebooks.gone(manager.store, session)
    if found is None:
        raise InvalidRequest(_why_not_adopted(manager, session))
    total = manager.store.tasks.count(Selection(found.key))
    renumbered = manager.store.sessions.adopt(session.notebook_key, found.key)
    shows = surface.in_words("%bg_list")
    click.echo(f"took over {counted(total, 'task')} of {found.name}; {shows} shows them")
    for before, now in renumbered:
        click.echo(f"what was task {before} here is now {now}")


def _why_not_adopted(manager: BackgroundTasks, session: SessionRecord) -> str:
    source = renamed_notebooks.copied(manager.store, session)
    if source is None:
        name = legible(notebook_name(session.path))
        return f"no notebook that is gone has tasks of the cells of {name}"
    return (
        f"nothing was taken over: the cells of {source.name}, which still exists, have the same "
        "ids; %bg_list --all shows its tasks, and their ids mean them here, too"
    )


@verbs.command("import")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Only say what would be imported.")
@as_json
@surface_and_manager
def import_(
    surface: Surface, manager: BackgroundTasks, file: Path, dry_run: bool, as_json: bool
) -> None:
    """Read the tasks of an exported file, or of one in an older format, into the store."""
    report = import_file(
        typed_path(file),
        manager.store,
        manager.archives.all,
        manager.payloads,
        dry_run=dry_run,
        complain=lambda invalid: _complain(file, invalid),
    )
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(_in_words(report, dry_run))
    if report.invalid:
        surface.exit(1)


def _complain(file: Path, invalid: Invalid) -> None:
    # The file may be a stranger's, and a reason quotes its content.
    click.echo(legible(f"{file}: {invalid.position}: {invalid.reason}"), err=True)


def _in_words(report: Report, dry_run: bool) -> str:
    what = f"{counted(len(report.ids), 'task')} of {counted(len(report.notebooks), 'notebook')}"
    parts = [f"{'would import' if dry_run else 'imported'} {what}"]
    if report.skipped:
        were = "was" if report.skipped == 1 else "were"
        parts.append(f"{report.skipped:,} {were} there already")
    if report.invalid:
        parts.append(f"{len(report.invalid):,} invalid")
    return "; ".join(parts)
