"""The verbs that keep a long history in order: tag, keep, archive, unarchive, backup, restore."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import several, surface_and_manager, verbs, yes
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.finding import check_tags
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text import formatting


@verbs.command()
@click.argument(
    "words", nargs=-1, required=True, metavar="REF [TAG]...",
    shell_complete=completion.task_and_tags,
)  # fmt: skip
@click.option(
    "--remove", "removed", multiple=True, metavar="TAG", shell_complete=completion.tags,
    help="Take this tag away. May be given several times.",
)  # fmt: skip
@surface_and_manager
def tag(
    surface: Surface,
    manager: BackgroundTasks,
    words: Sequence[str],
    removed: Sequence[str],
) -> None:
    """Give a task tags, by which list finds it, or remove some. Without tags: show them."""
    task, tags = manager.tasks.find_first(words)
    check_tags([*tags, *removed])
    _tag(surface, manager, task, tags, removed)
    now = manager.tasks.refresh(task)
    click.echo(f"task {now.label}: {', '.join(now.tags) or 'no tags'}")


def _tag(
    surface: Surface,
    manager: BackgroundTasks,
    task: TaskRecord,
    added: Sequence[str],
    removed: Sequence[str] = (),
) -> None:
    if added or removed:
        store = manager.tasks.store_of(task)
        store.require_writable()
        store.tasks.tag(task.key, added, removed)


@verbs.command()
@several
@click.option("--remove", is_flag=True, help="No longer keep them.")
@surface_and_manager
def keep(surface: Surface, manager: BackgroundTasks, refs: Sequence[str], remove: bool) -> None:
    """Protect tasks from every limit: they are neither archived nor deleted because of one."""
    tasks, mark = manager.tasks.find_all(refs), [manager.keep]
    for task in tasks:
        _tag(surface, manager, task, *(([], mark) if remove else (mark, [])))
    labels = ", ".join(task.label for task in tasks)
    click.echo(f"{'no longer keeping' if remove else 'keeping'} {labels}")


@verbs.command()
@several
@click.option("--older-than", metavar="AGE", help="All that ended longer ago: 30d, 12h, 2w.")
@surface_and_manager
def archive(
    surface: Surface, manager: BackgroundTasks, refs: Sequence[str], older_than: str | None
) -> None:
    """Move ended tasks to the archive of their month, where every command still finds them."""
    tasks = _chosen(surface, manager, refs, older_than)
    moved = manager.changes.archive(tasks)
    if not moved:
        click.echo("nothing to archive")
    for month, count in moved.items():
        click.echo(
            legible(
                f"moved {formatting.counted(count, 'task')} "
                f"to {manager.directory.archive(month).store}"
            )
        )


def _chosen(
    surface: Surface, manager: BackgroundTasks, refs: Sequence[str], older_than: str | None
) -> list[TaskRecord]:
    from ipytaskpersist.text.durations import parse_age

    if bool(refs) == bool(older_than):
        raise InvalidRequest(
            "which tasks? archive takes either their references or an age: "
            "%bg_archive --older-than 30d"
        )
    if refs:
        return manager.tasks.find_all(refs)
    manager.runners.reconcile()
    manager.store.open().require_own_version()
    return manager.archives.older_than(parse_age(older_than or ""), manager.keep)


@verbs.command()
@several
@surface_and_manager
def unarchive(surface: Surface, manager: BackgroundTasks, refs: Sequence[str]) -> None:
    """Move archived tasks back to the store, and protect them from being archived again."""
    if not refs:
        raise InvalidRequest("which task? %bg_list --archived shows those that can come back")
    tasks = manager.tasks.find_all(refs)
    for task in tasks:
        if not task.archive:
            raise InvalidRequest(f"task {task.label} is not archived")
    manager.archives.unarchive(tasks)
    for task in tasks:
        # They are as old as before: a limit would archive them again at once.
        _tag(surface, manager, manager.tasks.refresh(task), [manager.keep])
    click.echo(
        f"moved {formatting.counted(len(tasks), 'task')} back: "
        + ", ".join(task.label for task in tasks)
    )


FILE = click.Path(dir_okay=False, path_type=Path)


@verbs.command()
@click.argument("file", type=FILE, required=False, metavar="[FILE]")
@surface_and_manager
def backup(surface: Surface, manager: BackgroundTasks, file: Path | None) -> None:
    """Copy the store to a file while kernels keep writing. Default: into its folder of backups."""
    store = manager.store
    if not store.exists:
        raise InvalidRequest("there is nothing to back up yet: no task has been stored")
    if str(file) == "-":
        raise InvalidRequest("a backup cannot go through a pipe; give the name of a file")
    target = None if file is None else typed_path(file)
    if target is not None and target.exists():
        raise InvalidRequest(f"{target} exists already; nothing was written. Give another name")
    if target is not None and not target.parent.is_dir():
        raise InvalidRequest(f"there is no folder {target.parent}; nothing was written")
    written = store.open().back_up(target)
    tasks = store.statistics.count()
    click.echo(legible(f"backed up {formatting.counted(tasks, 'task')} to {written}"))
    if manager.directory.months():
        archives = legible(str(manager.directory.archives))
        click.echo(f"the archives in {archives} are not part of it")


@verbs.command()
@click.argument("file", type=FILE, metavar="FILE")
@yes
@surface_and_manager
def restore(surface: Surface, manager: BackgroundTasks, file: Path, yes: bool) -> None:
    """Replace the tasks in the store by those of a backup; the current store is set aside."""
    from ipytaskpersist.store import restoring

    source = typed_path(file)
    restoring.check(source)
    manager.runners.reconcile()
    store = manager.store.open()
    store.require_own_version()
    count = store.statistics.count()
    if count and not yes:
        surface.confirm(
            f"Replace the {formatting.counted(count, 'task')} in the store "
            f"by those of {source.name}? The store as it is will be set aside.",
            f"add --yes to replace the {formatting.counted(count, 'task')} in the store",
        )
    done = restoring.restore(store, source)
    click.echo(legible(f"restored {formatting.counted(done.tasks, 'task')} from {source}"))
    click.echo(legible(f"the store as it was is {done.set_aside}"))
