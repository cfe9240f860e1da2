"""The verb that shows what tasks have printed, displayed and raised: output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import click

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, TaskRecord
from ipytaskpersist.base.widget_marks import is_about_widget, is_kept_widget
from ipytaskpersist.commands.definition import (
    as_json,
    json_text,
    refuse_together,
    several,
    surface_and_manager,
    verbs,
)
from ipytaskpersist.commands.surfaces import NotebookSurface, Surface
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.output import replay
from ipytaskpersist.output.folding import COMMAND, Fold, FoldedOutputs, text_bytes
from ipytaskpersist.output.replay import Output
from ipytaskpersist.output.window import AT_MOST, Window, newest_shown, window
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.file.database import CommitWatch
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import formatting
from ipytaskpersist.text.sanitized_html import harmless_output

FOLLOW_S = 0.02
RECONCILE_S = 1.0
INTERRUPTED = 130
"""Exit status of a program ended by Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of each task's output that was asked for."""

    kinds: Sequence[OutputKind]
    """Only these; all when empty."""
    head: int | None
    tail: int | None

    @property
    def is_cut(self) -> bool:
        """Whether a number of lines was asked for."""
        return self.head is not None or self.tail is not None

    @property
    def cut(self) -> replay.Cut:
        """The same, of all outputs."""
        return replay.Cut(self.kinds, self.head, self.tail)

    @property
    def cut_of_streams(self) -> replay.Cut:
        """The same, of the streams only."""
        return replay.Cut(self.kinds or STREAM_KINDS, self.head, self.tail)


@verbs.command()
@several
@click.option("--all", "every_task", is_flag=True, help="All tasks of this notebook.")
@click.option("--stdout", is_flag=True, help="Only its standard output.")
@click.option("--stderr", is_flag=True, help="Only its standard error.")
@click.option("--raw", is_flag=True, help="The bytes of its streams as they were written.")
@click.option("--head", type=click.IntRange(min=0), metavar="N", help="Only the first N lines.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.option(
    "--at-most", type=click.IntRange(min=1), metavar="N",
    help="At most N bytes of its text: the last ones, or those from --from-byte on.",
)  # fmt: skip
@click.option(
    "--from-byte", type=click.IntRange(min=0), metavar="N",
    help=f"Its text from byte N on, {AT_MOST:,} bytes or --at-most; says where the next begins.",
)  # fmt: skip
@click.option("--follow", is_flag=True, help="Go on until the task ends; interrupt to leave.")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write its streams to a file instead, as they were written.",
)  # fmt: skip
@as_json
@surface_and_manager
def output(
    surface: Surface,
    manager: BackgroundTasks,
    refs: Sequence[str],
    every_task: bool,
    stdout: bool,
    stderr: bool,
    raw: bool,
    head: int | None,
    tail: int | None,
    at_most: int | None,
    from_byte: int | None,
    follow: bool,
    save: Path | None,
    as_json: bool,
) -> None:
    """Show what tasks printed, displayed and raised, in order.

    Of more than 3 MB of text, a notebook's cell shows the beginning and the end.
    """
    refuse_together({"--head": head is not None, "--tail": tail is not None, "--follow": follow})
    ways = {"--follow": follow, "--save": save is not None, "--raw": raw, "--json": as_json}
    refuse_together(ways)
    by_bytes = {"--at-most": at_most is not None, "--from-byte": from_byte is not None}
    bounded = next((flag for flag, is_given in by_bytes.items() if is_given), "")
    for flag, is_given in {"--head": head is not None, **ways, "--json": False}.items():
        refuse_together({bounded: bool(bounded), flag: is_given})
    refuse_together({"--from-byte": from_byte is not None, "--tail": tail is not None})
    refuse_together({"--all": every_task, "references": bool(refs)})
    find = manager.tasks.find_live if follow else manager.tasks.find_all
    tasks = _all(manager) if every_task else find(refs)
    chosen = {OutputKind.STDOUT: stdout, OutputKind.STDERR: stderr}
    part = Part(tuple(kind for kind, wanted in chosen.items() if wanted), head, tail)
    if bounded:
        task = _only(tasks, bounded)
        read = partial(window, from_byte=from_byte, at_most=at_most or AT_MOST, tail=tail)
        found = read(manager.tasks.store_of(task), task.key, part.kinds)
        _show_window(surface, manager, task, found, as_json=as_json)
    elif follow:
        _follow(surface, manager, _only(tasks, "--follow"), part.kinds)
    elif as_json:
        in_list = every_task or len(refs) > 1 or len(tasks) > 1
        _show_json(surface, manager, tasks, part, in_list=in_list)
    elif save is not None:
        task = _only(tasks, "--save")
        _save(task, _bytes(manager, task, part), save)
        _say_state(surface, manager, task)
    else:
        _show_all(surface, manager, tasks, part, raw=raw)


def _show_window(
    surface: Surface, manager: BackgroundTasks, task: TaskRecord, found: Window, *, as_json: bool
) -> None:
    """Show a part of a task's text, and say where the next one begins."""
    if as_json:
        is_end = found.next == found.size
        shown = newest_shown(manager.tasks.store_of(task), task.key) if is_end else []
        document = {
            "id": task.id,
            "number": task.number,
            "name": task.name or None,
            "state": task.state.value,
            **found.as_json(),
            "shown": [each.as_json() for each in shown],
        }
        surface.document(json_text(document))
        return
    surface.output({"output_type": "stream", "name": "stdout", "text": f"{found.text}\n"})
    surface.end_of_output()
    said = f"bytes {found.from_byte:,} to {found.next:,} of {found.size:,}"
    if found.next < found.size:
        said += f": %bg_output {_named(manager, task)} --from-byte {found.next} goes on"
    print(surface.in_words(said), file=sys.stderr)
    _say_state(surface, manager, task)


def _all(manager: BackgroundTasks) -> list[TaskRecord]:
    return manager.tasks.select(Selection(manager.session.notebook_key() or -1))


def _only(tasks: Sequence[TaskRecord], flag: str) -> TaskRecord:
    if len(tasks) != 1:
        raise InvalidRequest(f"{flag} takes one task, not {len(tasks)}")
    return tasks[0]


def _bytes(manager: BackgroundTasks, task: TaskRecord, part: Part) -> Iterable[bytes]:
    return replay.stream_bytes(manager.tasks.store_of(task), task.key, part.cut_of_streams)


def _show_all(
    surface: Surface,
    manager: BackgroundTasks,
    tasks: Sequence[TaskRecord],
    part: Part,
    *,
    raw: bool,
) -> None:
    """Show the output of each task, with a headline if there are several."""
    if not tasks:
        click.echo("no background tasks")
    try:
        for task in tasks:
            if len(tasks) > 1 and not raw:
                surface.output(_headline(task))
            if raw:
                surface.raw(_bytes(manager, task, part))
            else:
                _show(surface, manager, task, part)
            _say_state(surface, manager, task)
    except KeyboardInterrupt:
        saves = surface.in_words("%bg_output --save FILE")
        print(f"\nstopped; {saves} writes the output of a task to a file", file=sys.stderr)
        surface.exit(INTERRUPTED)


def _headline(task: TaskRecord) -> Output:
    text = legible(f"==> task {task.label}: {task.state.value} <==")
    return {"output_type": "stream", "name": "stdout", "text": f"{text}\n"}


def _show(surface: Surface, manager: BackgroundTasks, task: TaskRecord, part: Part) -> None:
    store = manager.tasks.store_of(task)
    may_fold = isinstance(surface, NotebookSurface) and not part.is_cut
    is_long = text_bytes(store, task.key, part.kinds) > COMMAND.whole.characters
    try:
        if may_fold and is_long:
            _put(surface, task, _folded(store, task, part.kinds, _named(manager, task)))
        else:
            _put(surface, task, replay.of_task(store, task.key, part.cut))
    finally:
        surface.end_of_output()


def _folded(
    store: TaskStore, task: TaskRecord, kinds: Sequence[OutputKind], named: str
) -> Iterator[Output]:
    """Yield the outputs without the middle of the text, and one note of what is left out."""
    folded = FoldedOutputs(store, task.key, COMMAND, kinds)
    if kinds and store.outputs.count(task.key, (OutputKind.CLEAR_OUTPUT,)):
        folded.read_cleared()
    else:
        folded.read()
    folded.finish()
    present = folded.present()
    gaps = [placed for placed, _output in present if isinstance(placed, Fold)]
    for placed, output in present:
        if gaps and placed is gaps[0]:
            yield _left_out(named, reduce(Fold.with_more, gaps))
        elif not isinstance(placed, Fold):
            yield from replay.beside([output])


def _put(surface: Surface, task: TaskRecord, outputs: Iterable[Output]) -> None:
    for each in outputs:
        surface.output(_harmless(task, each))


def _harmless(task: TaskRecord, output: Output) -> Output:
    if not task.is_imported:
        return output
    return harmless_output(next(replay.beside([output])))


def _named(manager: BackgroundTasks, task: TaskRecord) -> str:
    return formatting.reference(task, not manager.tasks.is_own(task))


def _left_out(named: str, fold: Fold) -> Output:
    lines = formatting.counted(fold.lines, "line")
    text = (
        f"… {lines} ({formatting.size(fold.characters)}) left out here: %bg_output "
        f"{named} --save FILE writes all of it, --head N and --tail N show N lines …"
    )
    return {"output_type": "stream", "name": "stderr", "text": f"\n{text}\n"}


def _say_state(surface: Surface, manager: BackgroundTasks, task: TaskRecord) -> None:
    """Say on stderr if the task had not ended when its output was read, or was tried again."""
    if task.state.is_final:
        _say_try(surface, manager, task)
        return
    now = manager.tasks.refresh(task)
    named = _named(manager, now)
    if now.state.is_final:
        text = f"task {now.label} has just ended ({now.state.value}): %bg_output {named} shows all"
    elif now.started_at is None:
        text = f"task {now.label} is pending: %bg_output {named} --follow waits for its output"
    else:
        since = formatting.duration(now.elapsed_s(formatting.utc_now()))
        text = f"task {now.label} is still running ({since}): %bg_output {named} --follow goes on"
    sys.stdout.flush()
    print(surface.in_words(text), file=sys.stderr)


def _say_try(surface: Surface, manager: BackgroundTasks, task: TaskRecord) -> None:
    last = manager.tasks.last_try(task) if task.was_tried_again else task
    if last.key == task.key or task.retries is None:
        return
    named = _named(manager, last)
    text = (
        f"task {task.label} was try {task.try_number} of {task.retries.count + 1}; the latest is "
        f"task {last.number} ({last.state.value}): %bg_output {named} shows its output"
    )
    sys.stdout.flush()
    print(surface.in_words(legible(text)), file=sys.stderr)


def _show_json(
    surface: Surface,
    manager: BackgroundTasks,
    tasks: Sequence[TaskRecord],
    part: Part,
    *,
    in_list: bool,
) -> None:
    outputs = [_nbformat(manager, task, part) for task in tasks]
    document: Any = (
        outputs[0]
        if not in_list
        else {
            "tasks": [
                {"id": task.id, "number": task.number, "name": task.name or None, "outputs": each}
                for task, each in zip(tasks, outputs, strict=True)
            ]
        }
    )
    surface.document(json_text(document))


def _nbformat(manager: BackgroundTasks, task: TaskRecord, part: Part) -> list[Output]:
    found = replay.of_task(manager.tasks.store_of(task), task.key, part.cut)
    return replay.as_nbformat(replay.merge_streams(found))


def _save(task: TaskRecord, pieces: Iterable[bytes], path: Path) -> None:
    try:
        with typed_path(path).open("wb") as file:
            size = sum(file.write(piece) for piece in pieces)
    except OSError as error:
        raise disk_errors.refused(str(path), error, typed_path(path)) from error
    click.echo(legible(f"task {task.label}: {size:,} bytes written to {path}"))


def _follow(
    surface: Surface, manager: BackgroundTasks, task: TaskRecord, kinds: Sequence[OutputKind]
) -> None:
    try:
        _follow_to_the_end(surface, manager, task, kinds)
        while (following := manager.tasks.last_try(task)).key != task.key:
            surface.end_of_output()
            print(_goes_on(manager.tasks.refresh(task), following), file=sys.stderr)
            task = following
            _follow_to_the_end(surface, manager, task, kinds)
    except KeyboardInterrupt:
        surface.end_of_output()
        back = surface.in_words(f"%bg_output {_named(manager, task)} --follow")
        print(
            f"\nno longer following; task {task.label} runs on. {back} comes back to it",
            file=sys.stderr,
        )
        surface.exit(INTERRUPTED)
    finally:
        surface.end_of_output()


def _goes_on(ended: TaskRecord, following: TaskRecord) -> str:
    """Return what is said between the output of one try and that of a later one."""
    facts = (formatting.which_try(following), formatting.waits_for(following))
    said = f"task {ended.label} {ended.state.value}: {ended.reason}"
    return legible(f"{said} ({', '.join(filter(None, facts))})")


def _follow_to_the_end(
    surface: Surface, manager: BackgroundTasks, task: TaskRecord, kinds: Sequence[OutputKind]
) -> None:
    after, commits, reconciled_at = 0, CommitWatch(manager.store.database), 0.0
    follower = replay.Follower()
    while True:
        if time.monotonic() - reconciled_at > RECONCILE_S:
            manager.runners.reconcile()
            # What this process itself writes does not change the version that it sees.
            reconciled_at = time.monotonic()
            commits.forget()
        if commits.has_news():
            task = manager.tasks.refresh(task)
            for record in manager.tasks.store_of(task).outputs.of(
                task.key, kinds=kinds, after=after
            ):
                after = record.sequence
                if is_kept_widget(record.kind, record.data) and not task.is_imported:
                    content = json.loads(record.data)
                    surface.kept(content["model"], content["data"])
                if is_about_widget(record.kind, record.data):
                    continue  # it clears more than what was shown
                piece = follower.output(record)
                piece = harmless_output(piece) if task.is_imported else piece
                _pass_on(surface, record.kind, piece)
        if task.state.is_final:
            for each in follower.finish():
                surface.output(each)
            surface.ends_shown([task])
            return
        time.sleep(FOLLOW_S)


def _pass_on(surface: Surface, kind: OutputKind, output: Output) -> None:
    if kind is OutputKind.CLEAR_OUTPUT:
        surface.clear_output(bool(output["wait"]))
    elif kind is OutputKind.UPDATE_DISPLAY_DATA and isinstance(surface, NotebookSurface):
        surface.update(output)
    else:
        surface.output(output)
