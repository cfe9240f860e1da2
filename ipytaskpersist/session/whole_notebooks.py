"""Launch a whole notebook as a process task: what it needs is checked before there is a task."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base.detached import python_command
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.records import Options, ProcessRecord, TaskRecord
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.runners.notebook_spec import PYTHON, NotebookRun
from ipytaskpersist.session import notebook_parameters
from ipytaskpersist.session.requests import NOT_FOR_NOTEBOOKS, WholeNotebook, directory_of, refuse
from ipytaskpersist.store.processes import NewProcess

if TYPE_CHECKING:
    from nbformat import NotebookNode

INSTALL = "pip install 'ipytaskpersist[notebooks]'"
ENDING = ".ipynb"
NAMED_AT_MOST = 5


def source_of(asked: WholeNotebook, source: str) -> str:
    """Return the source of a notebook's task, which launches it again where it is run.

    Raise `InvalidRequest` if there is code besides, or a parameter cannot be one.
    """
    if source.strip():
        raise InvalidRequest(
            "--notebook runs the cells of the notebook, so no code goes with it; leave out "
            f"'{legible(source.strip().splitlines()[0])}', and give a name with --name"
        )
    notebook_parameters.check(asked.parameters)
    words = ["--notebook", asked.path]
    for name, value in asked.parameters.items():
        words += ["-p", f"{name}={_typed(value)}"]
    if asked.output:
        words += ["-o", asked.output]
    return " ".join(["%background", *map(shlex.quote, words)])


def _typed(value: Any) -> str:
    """Return a value as ``-p`` takes it."""
    is_text = isinstance(value, str) and notebook_parameters.value_of(value) == value
    return value if is_text else json.dumps(value, ensure_ascii=False)


def run_of(asked: WholeNotebook) -> NotebookRun:
    """Return what to run. Raise `InvalidRequest` for what certainly fails."""
    path = _existing(asked.path)
    notebook = _read(path)
    kernel, language = _kernel(notebook.metadata.get("kernelspec") or {}, path)
    if asked.parameters and language.lower() != PYTHON:
        raise InvalidRequest(
            f"{path.name} is in {legible(language)}, and parameters can be given to notebooks in "
            "Python only; leave out -p"
        )
    return NotebookRun(
        path=str(path),
        kernel=kernel,
        language=language,
        parameters=dict(asked.parameters),
        output=_output(asked.output, path),
    )


def _read(path: Path) -> NotebookNode:
    """Read a notebook. Raise `InvalidRequest` if it is none, or could not be run here."""
    if find_spec("nbclient") is None:
        raise InvalidRequest(
            f"to run a whole notebook needs nbclient, which is not installed here: {INSTALL}"
        )
    from ipytaskpersist.runners import notebook_content

    return notebook_content.read(path)


def _existing(typed: str) -> Path:
    """Return the path of a notebook. Raise `InvalidRequest` if there is no such file."""
    path = typed_path(typed)
    if path.is_dir():
        raise InvalidRequest(f"{path} is a directory, and --notebook takes a notebook's file")
    if path.is_file():
        return path
    raise InvalidRequest(legible(f"there is no notebook {path}; {_what_is_there(path)}"))


def _what_is_there(path: Path) -> str:
    """Return what to say of a notebook that is not there: which others its folder has."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    others = sorted(each.name for each in folder.glob(f"*{ENDING}"))
    # Without the ending, which all have in common.
    alike = difflib.get_close_matches(path.stem, [Path(name).stem for name in others], n=1)
    if alike:
        return f"did you mean {alike[0]}{ENDING}?"
    if not others:
        return f"{folder} has no notebooks: give the path of one, such as reports/week{ENDING}"
    more = len(others) - NAMED_AT_MOST
    return f"in {folder} are {', '.join(others[:NAMED_AT_MOST])}" + (
        f" and {more} more" if more > 0 else ""
    )


def _kernel(named: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """Return a notebook's kernelspec and its language. Raise `InvalidRequest` if it is missing."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    specs, name = KernelSpecManager(), str(named.get("name") or "python3")
    try:
        return name, str(specs.get_kernel_spec(name).language or named.get("language") or "")
    except NoSuchKernel:
        there = ", ".join(sorted(specs.find_kernel_specs())) or "none"
        raise InvalidRequest(
            f"{path.name} wants the kernel '{legible(name)}', which is not installed here; there "
            f"are: {there}"
        ) from None


def _output(typed: str, path: Path) -> str:
    """Return where to save the executed notebook; empty for the usual place."""
    output = typed_path(typed) if typed else path.with_name(f"{path.stem}-saved{ENDING}")
    if output.is_dir():
        raise InvalidRequest(f"-o takes a file, and {output} is a directory")
    if output.exists() and output.samefile(path):
        raise InvalidRequest(
            f"{output} is the notebook itself, which is never written; give another file with -o"
        )
    if not output.parent.is_dir():
        raise InvalidRequest(f"the directory {output.parent} does not exist; -o saves a file in it")
    if not os.access(output.parent, os.W_OK):
        raise InvalidRequest(
            f"nothing can be written in {output.parent}; give a file elsewhere with -o"
        )
    return str(output) if typed else ""


def process_of(run: NotebookRun, options: Options, grace_s: float) -> NewProcess:
    """Return the process that runs a notebook, by default in the notebook's directory."""
    refuse(options, ("pty", "shell_path", "inputs", "outputs", "fresh"), NOT_FOR_NOTEBOOKS)
    at_home = replace(options, cwd=options.cwd or str(Path(run.path).parent))
    return NewProcess(
        command=python_command("runners.notebook_program", "-u"),
        directory=directory_of(at_home),
        grace_s=grace_s,
        options=options,
        script=run.as_json(),
        script_as="stdin",
        interpreter=f"kernel {run.kernel}",
    )


def again(
    task: TaskRecord, before: ProcessRecord, process: NewProcess, *, resume: bool
) -> NewProcess:
    """Return the process that runs a task's notebook again, or goes on where it failed.

    Raise `InvalidRequest` if the notebook is gone, or is none any more.
    """
    run = asked_of(before)
    _read(_existing(run.path))
    saved = run.saved_as(task.id)  # missing if the task ended before its first cell
    earlier = str(saved) if saved.is_file() else run.goes_on_from
    return replace(
        process,
        command=python_command("runners.notebook_program", "-u"),
        script=replace(run, resumes=earlier if resume else "", tries=()).as_json(),
        interpreter=before.interpreter,
    )


def asked_of(process: ProcessRecord) -> NotebookRun:
    """Return what the process of a notebook's task was asked to run."""
    assert process.script is not None
    return NotebookRun.from_json(process.script)
