"""Every setting, with its meaning and the time when a change takes effect."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

from traitlets import Bool, Enum, Float, Int, List, Unicode, observe

from ipytaskpersist.base import redaction
from ipytaskpersist.isolation.library_settings import LIBRARIES
from ipytaskpersist.session.requests import ASK, IF_RUNNING
from ipytaskpersist.session.settings import (
    WAIT_AT_EXIT,
    Configured,
    NotifyTargets,
    Patterns,
    Places,
)

LOAD = "%load_ext ipytaskpersist"
LATER_SESSIONS = f"in sessions that begin later; set it before {LOAD}"
RELOAD = "%reload_ext ipytaskpersist"


def seconds_from(text: str | None) -> float | None:
    """Return the seconds that an environment variable says, 0 without one; None for a mistake."""
    try:
        seconds = float(text or 0)
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


class TaskSettings(Configured):
    """The settings of this process's background tasks."""

    notebook = Unicode(
        "",
        help="Path of this notebook, by which its sessions know each other. Empty (the default): "
        "$IPYTASKPERSIST_NOTEBOOK, else what VS Code or Jupyter say; in a terminal the working "
        "directory.",
    ).tag(
        config=True,
        of_project=True,
        takes_effect=f"in sessions that begin later; set it before {LOAD}",
    )
    synchronous = Enum(
        ("normal", "full"),
        "normal",
        help="'normal' (the default): what is committed survives the end of any process. 'full': "
        "also a loss of power, at the cost of waiting for the disk with every commit.",
    ).tag(config=True, of_project=True, takes_effect=f"with {RELOAD}")

    runner = Enum(
        ("thread", "process"),
        "thread",
        help="Where a Python cell runs when neither --thread nor --process is given. 'thread' (the "
        "default): it shares the notebook's variables and ends with the kernel. 'process': it gets "
        "copies of the variables that it uses, and outlives the kernel.",
    ).tag(config=True, of_project=True)
    if_running = Enum(
        IF_RUNNING,
        ASK,
        help="What a launch does while the task of an earlier run of the same cell still runs. "
        "'ask' (the default): it starts, and its card says that the cell runs twice, and how to "
        "end either. 'attach': it starts nothing, and shows the task that runs. 'replace': it "
        "cancels that task first. 'new': it starts. --if-running says so for one launch.",
    ).tag(config=True)
    warm_processes = Bool(
        sys.platform == "linux",
        help="Whether --process tasks begin in copies of an interpreter that has already imported "
        "what the notebook has, after the first one. --fresh does without it for one task. "
        "Default: True on Linux; elsewhere it has no effect.",
    ).tag(config=True)
    settings_apart = List(
        Enum([library.shown for library in LIBRARIES.values()]),
        help="Libraries whose settings stay apart: a --process task is not given the notebook's, "
        "and does not change them. Any of: pandas, matplotlib, InlineBackend, numpy, "
        "numpy.random, random, decimal, scikit-learn, IPython, warnings, logging, sys, os.environ. "
        "Default: none.",
    ).tag(config=True)
    places = Places(
        help="Other machines where tasks can run, by name: {'gpu1': {'kind': 'ssh', 'host': "
        "'gpu1'}}. Kinds: ssh, dask and slurm. --on gpu1 runs a task there; %bg_places shows "
        "whether they answer. Default: {}.",
    ).tag(config=True)
    shell_path = Unicode(
        "",
        help="The shell that runs the body of %%background --shell: a path, or a program's name. "
        "Empty (the default): bash where there is one, else /bin/sh.",
    ).tag(config=True)
    cancel_grace_s = Float(
        5.0,
        min=0,
        help="Seconds between SIGTERM and SIGKILL when a process or shell task is cancelled or its "
        "time is over, and before a thread task is cancelled that asks ending_soon(). Default: 5.",
    ).tag(config=True, of_project=True)
    max_running = Int(
        None,
        min=1,
        allow_none=True,
        help="How many tasks of the group 'default' run at once, over all notebooks and terminals "
        "of this user; the others wait. The last notebook that says a number decides, as "
        "%bg_group default --width does. Default: None, any number.",
    ).tag(config=True)
    wait_at_exit_s = Float(
        None,
        min=0,
        allow_none=True,
        help="Seconds for which a kernel that is shut down, or an IPython that ends, waits for its "
        "tasks in threads, which end with it. None (the default): $IPYTASKPERSIST_WAIT_AT_EXIT, "
        "else not at all.",
    ).tag(config=True)
    auto_resume = Bool(
        False,
        help="Whether loading the extension runs this notebook's interrupted tasks again, each "
        "once. Default: False.",
    ).tag(config=True)
    max_output_bytes = Int(
        None,
        min=1,
        allow_none=True,
        help="How many bytes are kept of what a task prints and displays; what follows is counted "
        "and marked, not kept. Errors and results always are. Default: None, for all.",
    ).tag(config=True, of_project=True)
    large_result_bytes = Int(
        100_000_000,
        min=1,
        allow_none=True,
        help="From how many bytes on a task says in a line that a value which it leaves is kept: "
        "its result, or a variable of a process task. None: never. Default: 100 MB.",
    ).tag(config=True, of_project=True)
    archive_after_days = Float(
        30.0,
        min=0,
        allow_none=True,
        help="Days after their end when tasks move to the archive of their month, from where "
        "everything still finds them. None: never by itself. Default: 30.",
    ).tag(config=True)
    max_store_bytes = Int(
        None,
        min=1,
        allow_none=True,
        help="How many bytes all tasks may take together: in the store, in the archives, and as "
        "pickled results. Beyond it the tasks that ended first are deleted for good, archived ones "
        "before others. Default: None, never.",
    ).tag(config=True)
    keep = Unicode(
        "keep",
        help="The tag that protects a task from being archived or deleted by a limit. "
        "Default: keep.",
    ).tag(config=True)
    notify = NotifyTargets(
        help="Where the end of tasks is told that were launched with --notify, or run for "
        "notify_after_s: 'desktop', or addresses of apprise such as mailto://…. They may hold "
        "passwords, and are shown without. Default: [], nowhere.",
    ).tag(config=True)
    notify_after_s = Float(
        None,
        min=0,
        allow_none=True,
        help="Seconds after which the end of a task of this notebook is told without being asked "
        "for. Default: None, only of those with --notify.",
    ).tag(config=True)
    secret_names = Patterns(
        help="Patterns of names that are those of secrets, besides those that always are: "
        f"{' '.join(redaction.ALWAYS)}. Their values are neither kept for a rerun, when given by "
        "--env, nor exported, nor shown where a task failed. * stands for anything, and case does "
        "not matter. Default: [].",
    ).tag(config=True, of_project=True)
    backups_kept = Int(
        3,
        min=0,
        help="How many of the backups are kept that are made before a migration of the store. "
        "Default: 3.",
    ).tag(config=True, takes_effect=f"with {RELOAD}")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        redaction.use(self.secret_names)
        if seconds_from(os.environ.get(WAIT_AT_EXIT)) is None:
            self.setting_problems.append(
                f"{WAIT_AT_EXIT}={os.environ[WAIT_AT_EXIT]} is not a number of seconds, so it sets "
                "nothing"
            )

    @property
    def patience_at_exit_s(self) -> float:
        """Seconds to wait for the tasks in threads before the process ends."""
        if self.wait_at_exit_s is not None:
            return float(self.wait_at_exit_s)
        return seconds_from(os.environ.get(WAIT_AT_EXIT)) or 0

    @observe("secret_names")
    def _use_secret_names(self, _change: object) -> None:
        redaction.use(self.secret_names)
