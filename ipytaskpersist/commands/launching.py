"""The verbs that launch tasks: ``%%background``, rerun and resume; and load, for variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from ipytaskpersist.base.legible import legible_lines
from ipytaskpersist.base.records import Options, TaskRecord
from ipytaskpersist.base.retries import CAUSES
from ipytaskpersist.base.schedules import MISSED
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import (
    HELP,
    Seconds,
    one,
    refuse_together,
    several,
    surface_and_manager,
    verbs,
    yes,
)
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.errors import InvalidRequest, NamesMissing
from ipytaskpersist.session import notebook_parameters
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.requests import (
    IF_RUNNING,
    PROCESS,
    SHELL,
    THREAD,
    PlaceInQueue,
    Request,
    WholeNotebook,
    retries_of,
)
from ipytaskpersist.session.scheduling import schedule_of
from ipytaskpersist.text import formatting


def _names(_context: Any, _parameter: Any, given: str | None) -> list[str] | None:
    """Split ``a,b`` into a list of names, without empty ones."""
    return None if given is None else [name for name in given.replace(",", " ").split() if name]


def _variables(_context: Any, _parameter: Any, given: Sequence[str]) -> dict[str, str]:
    pairs = dict(pair.partition("=")[::2] for pair in given)
    for pair in given:
        if "=" not in pair or pair.startswith("="):
            raise click.BadParameter(f"'{pair}' is not of the form NAME=VALUE")
    return pairs


Decorators = tuple[Callable[[Any], Any], ...]
PLACES: Decorators = (
    click.option("--thread", is_flag=True, help="In a thread, with the notebook's variables."),
    click.option("--process", is_flag=True, help="In a process of its own: outlives the kernel."),
    click.option("--shell", is_flag=True, help="The body is a shell command: outlives the kernel."),
)
OF_PROCESSES: Decorators = (
    click.option(
        "--cwd", metavar="DIR", shell_complete=completion.folders,
        help="The directory in which the process runs.",
    ),
    click.option(
        "--env", multiple=True, metavar="NAME=VALUE", callback=_variables,
        help="An environment variable of the process. May be given several times.",
    ),
    click.option(
        "--timeout", type=Seconds(min=0, min_open=True), metavar="S",
        help="End the process after S seconds.",
    ),
)  # fmt: skip
OF_CODE: Decorators = (
    click.option(
        "--on", default="", metavar="PLACE", shell_complete=completion.places,
        help="Run a process or a command at a place: another machine, from the setting places.",
    ),
    click.option(
        "--send", multiple=True, metavar="PATH", shell_complete=completion.files,
        help="A file or folder that a task is to have at its place. May be given several times.",
    ),
    click.option(
        "--fetch", multiple=True, metavar="PATTERN",
        help="Files to bring back from a place at the end: 'results/*.csv'. May be given several "
        "times.",
    ),
    click.option("--pty", is_flag=True, help="Give the command a terminal to print to."),
    click.option(
        "--shell-path", metavar="PATH", shell_complete=completion.files,
        help="The shell that runs the command.",
    ),
    click.option(
        "--in", "inputs", metavar="NAMES", shell_complete=completion.variables,
        help="The variables a Python process is given: a,b. Default: those that it uses. A delay "
        "such as 2h or 1h30m instead: the task starts after it.",
    ),
    click.option(
        "--out", "outputs", metavar="NAMES", callback=_names, shell_complete=completion.variables,
        help="The variables it leaves: a,b. Default: those that it assigns.",
    ),
    click.option(
        "--fresh", is_flag=True,
        help="Start a Python process in a fresh interpreter, though a warm one is quicker.",
    ),
)  # fmt: skip
OF_TASKS: Decorators = (
    click.option(
        "--after", multiple=True, metavar="REF", shell_complete=completion.tasks,
        help="Start once this task has completed; any:REF once it has ended, failed:REF once it "
        "has failed. May be given several times.",
    ),
    click.option(
        "--group", metavar="NAME", default="", shell_complete=completion.groups,
        help="The group whose width the task takes part of. %bg_group NAME --width N makes one.",
    ),
    click.option(
        "--priority", type=click.IntRange(-(10**6), 10**6), default=0, metavar="N",
        help="Start before waiting tasks of a lower number. Default: 0.",
    ),
    click.option(
        "--at", default="", metavar="TIME",
        help="Start at 22:00, 'tomorrow 6:30' or 2026-11-30T06:00, not earlier.",
    ),
    click.option(
        "--every", default="", metavar="TIME",
        help="Run again and again, a new task each time: every 90s, 2h or 1d; the first time at "
        "once, or at --at. Needs a process.",
    ),
    click.option(
        "--cron", default="", metavar="RULE",
        help="Run by a cron rule in the local time zone: '0 22 * * 1-5' is 22:00 on weekdays. "
        "Needs a process.",
    ),
    click.option(
        "--missed", type=click.Choice(MISSED), default=None,
        help="Make up for missed times of the rule with one run, or leave them out. Default: run.",
    ),
    click.option(
        "--cpus", type=float, metavar="N",
        help="Start a process once N CPUs are free, and keep them for it.",
    ),
    click.option(
        "--memory", default="", metavar="SIZE",
        help="Start a process once so much memory is free, 8G or 500M, and end it when it uses "
        "more. auto: what the last run of its name used, and a quarter more.",
    ),
    click.option(
        "--gpus", type=int, metavar="N",
        help="Start a process once N GPUs are free, and let it see only these.",
    ),
    click.option(
        "--gpu-memory", default="", metavar="SIZE",
        help="So much of each GPU, 20G, which other tasks share. Default: all of it.",
    ),
    click.option(
        "--retries", type=click.IntRange(0, 1000), default=0, metavar="N",
        help="Try again up to N times when it ends badly, as a new task each time. Needs a "
        "process.",
    ),
    click.option(
        "--on-cause", metavar="CAUSES", callback=_names,
        help=f"Only after these: {','.join(CAUSES)}. Default: all. Never after a cancellation.",
    ),
    click.option(
        "--delay", metavar="TIME", default="",
        help="Wait so long before the second try, twice as long before the third: 30s, 2m.",
    ),
    click.option(
        "--max-delay", metavar="TIME", default="",
        help="The longest of these delays. Default: 1h.",
    ),
    click.option(
        "--memory-factor", type=float, metavar="X",
        help="After a try that was out of memory, let the next one use X times as much.",
    ),
    click.option(
        "--if-running", type=click.Choice(IF_RUNNING),
        help="What to do while this cell's task still runs. Default: the setting if_running.",
    ),
    click.option(
        "--key", default="", metavar="WORD",
        help="A second launch with the same key starts nothing and gives the same task.",
    ),
    click.option(
        "--tag", "tags", multiple=True, metavar="TAG", shell_complete=completion.tags,
        help="A word by which list finds it again. May be given several times.",
    ),
    click.option("--notify", is_flag=True, help="Tell when it has ended, where the settings say."),
    click.option(
        "--notify-to", multiple=True, metavar="PLACE",
        help="Tell it here, too: 'desktop', or an address of apprise. May be given several times.",
    ),
)  # fmt: skip


QUEUE = ("after", "group", "priority", "at", "cpus", "memory", "gpus", "gpu_memory")
"""The options that say when a task may start."""
BETWEEN_TRIES = ("delay", "max_delay", "memory_factor")
"""The options that say how one try follows another."""
OF_NOTEBOOKS: Decorators = (
    click.option(
        "-p", "parameters", multiple=True, metavar="NAME=VALUE",
        help="A parameter of the notebook. May be given several times.",
    ),
    click.option(
        "-o", "saved_as", metavar="FILE", default="", shell_complete=completion.files,
        help="Where the executed notebook is saved. Default: beside it, with the task's id.",
    ),
)  # fmt: skip


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what adds options to a command."""

    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@click.command(context_settings=HELP)
@with_options(*PLACES, *OF_PROCESSES, *OF_CODE, *OF_TASKS)
@click.option(
    "--notebook", metavar="FILE", shell_complete=completion.files,
    help="Run all cells of a notebook in a kernel of its own, which outlives this one.",
)  # fmt: skip
@with_options(*OF_NOTEBOOKS)
@click.option("--name", "named", metavar="NAME", help="The task's name, where code follows it.")
@click.argument("name", nargs=-1)
def background(name: Sequence[str], named: str | None, **given: Any) -> Request:
    """Run a cell in the background: %%background [NAME] above its code.

    The cell runs in a thread that shares the notebook's variables, or with --process in its own
    process. A body that begins with %%bash, %%sh or %%script X, or that has only ! lines, is a
    shell command. The name is optional; %bg_list, %bg_output and the others accept it or the
    number. %background [OPTIONS] CODE runs one line.
    """
    places = {f"--{where}": bool(given.pop(where)) for where in (THREAD, PROCESS, SHELL)}
    notebook = _notebook(given.pop("notebook"), given.pop("parameters"), given.pop("saved_as"))
    refuse_together({**places, "--notebook": notebook is not None})
    refuse_together({"--name": named is not None, "a name without it": bool(name)})
    where = next((flag.strip("-") for flag, chosen in places.items() if chosen), "")
    names = given.pop("inputs")
    delay = names if names and names[0].isdigit() else ""  # no variable begins with a digit
    given["inputs"] = None if delay else _names(None, None, names)
    return _request(named or " ".join(name), where, notebook, delay, **given)


def _notebook(path: str | None, parameters: Sequence[str], saved_as: str) -> WholeNotebook | None:
    """Return the notebook to run; None without one."""
    if path is None:
        given = "-p" if parameters else "-o" if saved_as else ""
        if given:
            raise InvalidRequest(f"{given} is for a whole notebook: add --notebook FILE")
        return None
    return WholeNotebook(path, notebook_parameters.parsed(parameters), saved_as)


def _request(
    name: str, where: str, notebook: WholeNotebook | None, start_after: str, **given: Any
) -> Request:
    given["timeout_s"] = given.pop("timeout")
    for option in ("send", "fetch"):
        given[option] = list(given.get(option) or ()) or None
    given["if_running"] = given["if_running"] or ""
    place = PlaceInQueue(**{option: given.pop(option) for option in QUEUE}, delay=start_after)
    causes = given.pop("on_cause") or ()
    retries = retries_of(
        given.pop("retries"), causes, *(given.pop(option) for option in BETWEEN_TRIES)
    )
    schedule = schedule_of(given.pop("every"), given.pop("cron"), given.pop("missed") or "")
    apart = ("tags", "key", "notify", "notify_to", "if_running")
    more = {option: given.pop(option) for option in apart} | {"on": given.pop("on", "")}
    more |= {"notebook": notebook, "retries": retries, "schedule": schedule}
    return Request(name, where, Options(**given), place=place, **more)


@verbs.command()
@click.argument("path", metavar="FILE", shell_complete=completion.files)
@with_options(*OF_NOTEBOOKS, *OF_PROCESSES, *OF_TASKS)
@click.option("--in", "start_after", metavar="DELAY", default="", help="Start after 2h or 1h30m.")
@click.option("--name", default="", metavar="NAME", help="The task's name.")
@surface_and_manager
def run(
    surface: Surface,
    manager: BackgroundTasks,
    path: str,
    parameters: Sequence[str],
    saved_as: str,
    start_after: str,
    name: str,
    **given: Any,
) -> None:
    """Run all cells of a notebook as a process task: run report.ipynb -p day=2026-11-28."""
    notebook = _notebook(path, parameters, saved_as)
    launched = manager.launcher.launch("", _request(name, "", notebook, start_after, **given))
    surface.come_to(launched, launched.task.source)


anyway = click.option(
    "--anyway", is_flag=True, help="Even if this kernel lacks variables that the task uses."
)


@verbs.command()
@one
@anyway
@yes
@surface_and_manager
def rerun(
    surface: Surface, manager: BackgroundTasks, ref: str | None, anyway: bool, yes: bool
) -> None:
    """Run an ended task's source again with the same options, as a new task."""
    task = manager.tasks.find(ref)
    if not task.state.is_final:
        raise InvalidRequest(
            f"task {task.label} is {task.state.value}; cancel it first: %bg_cancel {task.number}"
        )
    if task.is_imported and task.runner == THREAD and not yes:
        # An imported task may have another task's name and be the latest, without being meant.
        read_it = f"%bg_show {task.number} shows its source"
        surface.confirm(
            f"Run task {task.label}, which was imported from a file? {read_it}.",
            f"task {task.label} was imported from a file; {read_it}, and --yes runs it",
        )
    _show_again(surface, manager.launcher.rerun(task, anyway=anyway))


def _show_again(surface: Surface, task: TaskRecord) -> None:
    """Show a task that runs another one again, and from which checkpoint it goes on."""
    surface.launched(task)
    if task.checkpoint_at is not None:
        kept = formatting.age((formatting.utc_now() - task.checkpoint_at).total_seconds())
        click.echo(f"task {task.label} goes on from the checkpoint kept {kept}")


@verbs.command()
@several
@click.option("--all", "every_task", is_flag=True, help="All that were interrupted, each once.")
@anyway
@surface_and_manager
def resume(
    surface: Surface,
    manager: BackgroundTasks,
    refs: Sequence[str],
    every_task: bool,
    anyway: bool,
) -> None:
    """Run interrupted tasks again. A whole notebook goes on at the cell that was cut off or failed.

    Use rerun for any other task that ended by itself.
    """
    refuse_together({"--all": every_task, "references": bool(refs)})
    waiting = manager.tasks.interrupted()
    certain = manager.tasks.certainly_dead(waiting)
    chosen = manager.tasks.find_all(refs) if refs else certain if every_task else certain[-1:]
    for task in chosen:
        if task.id not in {each.id for each in waiting} and not task.can_go_on:
            raise InvalidRequest(_why_not(task))
    refused: list[str] = []
    for task in chosen:
        try:
            new = manager.launcher.rerun(task, once=True, anyway=anyway)
            _show_again(surface, new)
        except NamesMissing as error:  # the others do not depend on it
            refused.append(str(error))
    left = [] if refs else [task for task in waiting if task not in certain]
    if left:
        click.echo(_may_run_on(left))
    elif not chosen:
        click.echo("nothing to resume: no task of this notebook is interrupted")
    if refused:
        raise NamesMissing("; ".join(refused))


def _may_run_on(tasks: Sequence[TaskRecord]) -> str:
    which = ", ".join(task.label for task in tasks)
    them, numbers = "it" if len(tasks) == 1 else "them", " ".join(str(t.number) for t in tasks)
    return (
        f"left out, because it cannot be seen from here whether it has really ended: {which}; "
        f"%bg_resume {numbers} runs {them} again all the same"
    )


def _why_not(task: TaskRecord) -> str:
    if not task.state.is_final:
        return f"task {task.label} is {task.state.value}; there is nothing to resume"
    if task.is_imported:
        return f"task {task.label} was imported; %bg_show {task.number} shows what it ran"
    is_again = task.is_whole_notebook and "rerun_as" in task.provenance
    why = (
        "has been run again already"
        if is_again or task.state.value == "interrupted"
        else (f"is {task.state.value}: it ended by itself")
    )
    return f"task {task.label} {why}; %bg_rerun {task.number} runs it once more"


@verbs.command()
@click.argument("words", nargs=-1, metavar="[REF] [NAME]...", shell_complete=completion.tasks)
@surface_and_manager
def load(surface: Surface, manager: BackgroundTasks, words: Sequence[str]) -> None:
    """Load the variables that a process task left into the notebook: all, or those named."""
    task, names = manager.tasks.find_first(words)
    if manager.shell is None:
        raise InvalidRequest(
            f"load puts variables into a notebook; here %bg_show {task.number} lists them"
        )
    click.echo(legible_lines(manager.results.load_variables(task, names).in_words(task)))
