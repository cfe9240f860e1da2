"""What a process finds around itself, and cannot rely on: signals, /proc, a home, names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kernels import NotebookKernel, end_processes_of, processes_of, until
from programs import environment, run_command, run_python

from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import Selection

MakeKernel = Callable[..., NotebookKernel]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def all_ended(store: TaskStore) -> list[TaskRecord]:
    """All tasks, once they have ended."""
    tasks = store.tasks.select(Selection())
    return tasks if tasks and all(task.state.is_final for task in tasks) else []


def listed(kernel: NotebookKernel) -> list[dict[str, Any]]:
    """The tasks as a kernel lists them."""
    tasks: list[dict[str, Any]] = json.loads(kernel.run("%bg_list --json").text)["tasks"]
    return tasks


def said(store: TaskStore, task: TaskRecord) -> str:
    """All that a task has printed and displayed."""
    return b"".join(output.data for output in store.outputs.of(task.key)).decode()


# Signals.

INHERIT = """\
import os, signal, sys
how, *command = sys.argv[1:]
if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execvp(command[0], command)
"""
MASK = "grep SigBlk /proc/self/status"


@LINUX
@pytest.mark.parametrize("how", ["blocked", "ignored"])
def test_a_task_has_ended_though_its_kernel_was_started_deaf(
    how: str, make_kernel: MakeKernel, store: TaskStore
) -> None:
    """Signals with which the kernel was started blocked, or SIGCHLD ignored, reach its tasks."""
    kernel = make_kernel(run_by=[sys.executable, "-c", INHERIT, how])
    kernel.run(f"%%background --shell\n{MASK}\nsleep 0.2 & wait\nexit 3")
    kernel.run("%%background --process\nimport subprocess\nsubprocess.run('exit 4', shell=True)")
    kernel.run("%%background --shell\nexec sleep 60")
    kernel.run("%bg_cancel 3")
    shell, python, cancelled = until(lambda: all_ended(store), message="the end of all three")
    assert (shell.state, shell.exit_code) == (TaskState.FAILED, 3)
    assert int(said(store, shell).split()[1], 16) == 0, "its program has signals blocked"
    assert python.state is TaskState.COMPLETED
    assert "returncode=4" in said(store, python)
    assert cancelled.state is TaskState.CANCELLED


# /proc.

MASKED = {
    "no /proc": "mount -t tmpfs none /proc",
    "no /proc/sys": "mount -t tmpfs none /proc/sys",
}
"""What a sandbox may do to /proc."""
LATER_BOOT = """sed -E 's/^btime (.*)/echo btime $((\\1 + 30))/e' /proc/stat > {file}
mount --bind {file} /proc/stat"""
"""The system says that it was booted 30 s later, as after a step of its clock."""


def masked(*commands: str) -> list[str]:
    """What to put before a program that is to see another /proc."""
    script = "\n".join(["set -e", *commands, 'exec "$@"'])
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def why_not_masked() -> str:
    """Why that cannot be done here; empty when it can."""
    if shutil.which("unshare") is None:
        return "there is no unshare(1)"
    tried = subprocess.run(
        [*masked(MASKED["no /proc/sys"]), "true"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip() if tried.returncode else ""


CAN_MASK = pytest.mark.skipif(bool(why_not_masked()), reason=why_not_masked() or "it can")


@CAN_MASK
@pytest.mark.parametrize("which", MASKED)
def test_everything_works_without_proc(
    which: str, make_kernel: MakeKernel, store: TaskStore, state_dir: Path
) -> None:
    """Tasks run, are listed, cancelled and outlive their kernel; nothing is said to be dead."""
    kernel = make_kernel(notebook="masked.ipynb", run_by=masked(MASKED[which]))
    kernel.run("%%background\nimport time\nprint('thread')\nwhile True: time.sleep(0.01)")
    kernel.run("%%background --process\nimport time\nprint('process')\n40 + 2")
    kernel.run("%%background --shell\necho shell; exec sleep 60")
    assert "process" in kernel.run("%bg_wait 2\n%bg_output 2\n%bg_result 2").text
    until(lambda: "shell" in kernel.run("%bg_output 3").text)
    doctor = json.loads(kernel.run("%bg_doctor --json").text)
    assert not [each for each in doctor["findings"] if "could not be checked" in each["message"]]
    assert [each["state"] for each in listed(kernel)] == ["running", "completed", "running"]
    outside = run_command(state_dir, "list", "--all", "--json")
    assert [each["state"] for each in json.loads(outside.stdout)["tasks"]][::2] == ["running"] * 2
    kernel.run("%bg_cancel 1\n%bg_wait 1")
    kernel.kill()
    kernel.revive()
    kernel.run("%load_ext ipytaskpersist")
    kernel.run("%bg_cancel 3\n%bg_wait 3")
    assert [each["state"] for each in listed(kernel)] == ["cancelled", "completed", "cancelled"]
    kernel.kill()
    until(lambda: not processes_of(state_dir), message="the end of the supervisors")


@CAN_MASK
def test_a_step_of_the_clock_is_no_reboot_where_the_boot_has_no_name(
    make_kernel: MakeKernel, state_dir: Path, tmp_path: Path
) -> None:
    """A live task of another kernel is not interrupted by a command that sees a later boot."""
    kernel = make_kernel(run_by=masked(MASKED["no /proc/sys"]))
    kernel.run("%%background\nimport time\nwhile True: time.sleep(0.01)")
    later = masked(MASKED["no /proc/sys"], LATER_BOOT.format(file=tmp_path / "stat"))
    look = [*later, sys.executable, "-m", "ipytaskpersist", "list", "--all", "--json"]
    found = subprocess.run(look, env=environment(state_dir), capture_output=True, check=True)
    (task,) = json.loads(found.stdout)["tasks"]
    assert (task["state"], task["reason"]) == ("running", None)
    kernel.kill()
    found = subprocess.run(look, env=environment(state_dir), capture_output=True, check=True)
    (task,) = json.loads(found.stdout)["tasks"]
    assert (task["state"], task["reason"]) == ("interrupted", "kernel died")


# A home.

NOBODY = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
"""What to put before a program that is to run as a user of whom the system knows nothing."""
HOMELESS = [*NOBODY, "env", "-u", "HOME", "-u", "XDG_STATE_HOME", "-u", "XDG_CONFIG_HOME"]


def homeless(*arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HOMELESS, sys.executable, *arguments],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


CAN_BE_NOBODY = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*NOBODY, "true"], capture_output=True, check=False).returncode != 0,
    reason="no user namespace can be made here",
)


@CAN_BE_NOBODY
def test_who_has_no_home_is_told_in_a_line(tmp_path: Path) -> None:
    """No store is begun where the next process would not find it."""
    env = environment(tmp_path)
    del env["IPYTASKPERSIST_DIR"]
    load = "%load_ext ipytaskpersist"
    program = (
        "import ipytaskpersist as bg\ntry: bg.tasks()\nexcept bg.BackgroundError as e: print(e)"
    )
    ran = {
        "verb": homeless("-m", "ipytaskpersist", "list", cwd=tmp_path, env=env),
        "shell": homeless("-m", "IPython", "--colors=NoColor", "-c", load, cwd=tmp_path, env=env),
        "program": homeless("-c", program, cwd=tmp_path, env=env),
        "relative": homeless(
            "-m",
            "ipytaskpersist",
            "list",
            cwd=tmp_path,
            env={**env, "IPYTASKPERSIST_DIR": "~/state"},
        ),
    }
    for name, found in ran.items():
        lines = (found.stdout + found.stderr).splitlines()
        assert [line for line in lines if "this user has no home folder" in line][1:] == [], lines
        assert "IPYTASKPERSIST_DIR" in lines[-1] or "begins with /" in lines[-1], (name, lines)
        assert not any("Traceback" in line for line in lines)
    assert not list(tmp_path.glob("*~*"))


@CAN_BE_NOBODY
def test_a_place_of_ones_own_needs_no_home(tmp_path: Path) -> None:
    """With a state directory everything works, and says nothing of homes."""
    env = environment(tmp_path / "state")
    program = "import ipytaskpersist as bg\nprint(bg.background('echo ran', shell=True).wait(30))"
    assert homeless("-c", program, cwd=tmp_path, env=env).stdout == "True\n"
    for verb in (["show", "1"], ["config"], ["doctor"]):
        found = homeless("-m", "ipytaskpersist", *verb, cwd=tmp_path, env=env)
        assert (found.returncode, found.stderr) == (0, ""), verb
    found = homeless("-m", "ipytaskpersist", "backup", "~/copy", cwd=tmp_path, env=env)
    assert "type a path that begins with /" in found.stderr
    assert not list(tmp_path.glob("*~*"))


# Names that are not UTF-8.

STRANGE = os.fsdecode(b"caf\xe9")
STRICT = {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"}
"""A terminal of which no byte but UTF-8 is taken."""
FORMATS = ("jsonl", "json", "ipynb", "html")
NAME_HOST = """\
import os, socket, sys
socket.sethostname(b"h\\xf6st")
os.execvp(sys.argv[1], sys.argv[1:])
"""


VERBS = """\
import json, sys
from contextlib import suppress
from click.exceptions import Exit
from ipytaskpersist.commands.definition import run
from ipytaskpersist.session.manager import current
from ipytaskpersist.commands.surfaces import Surface
surface = Surface(current())
for words in json.loads(sys.argv[1]):
    with suppress(Exit):
        run(words, surface)
"""


def strictly(state_dir: Path, *lines: str, cwd: Path, notebook: str = "") -> str:
    """What verbs print where all has to be UTF-8. ``STRANGE`` stands for a strange name."""
    words = [[each.replace("STRANGE", STRANGE) for each in line.split()] for line in lines]
    env = {**STRICT, "IPYTASKPERSIST_NOTEBOOK": notebook}
    found = run_python(VERBS, state_dir, json.dumps(words), env=env, cwd=cwd)
    assert found.returncode == 0, found.stderr
    return found.stdout


@LINUX
def test_a_folder_a_notebook_and_a_host_need_not_be_utf8(
    make_kernel: MakeKernel, store: TaskStore, state_dir: Path, tmp_path: Path
) -> None:
    """Tasks run in that folder, also again, and everything can be shown and exported."""
    folder = tmp_path / STRANGE
    folder.mkdir()
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
        git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run([*git, *command], cwd=folder, check=True)
    notebook = str(folder / f"{STRANGE}.ipynb")
    run_by = ["unshare", "--uts", sys.executable, "-c", NAME_HOST] if not why_not_masked() else []
    kernel = make_kernel(notebook=notebook, run_by=run_by)
    kernel.run(f"import os\nos.chdir({str(folder)!r})")
    kernel.run("%%background --shell\ntouch here\nexit 3")
    kernel.run("%%background --process\nopen('there', 'w').close()\nraise ValueError(os.getcwd())")
    kernel.run("%%background\nprint(os.getcwd())")
    assert "failed" in kernel.run("%bg_wait 1 2 3", check=False).text
    assert (folder / "here").exists()
    assert (folder / "there").exists()
    kernel.run("%bg_list\n%bg_show 1\n%bg_show 2\n%bg_output 2\n%bg_sessions\n%bg_rerun 1")
    until(lambda: all("git" in task.provenance for task in store.tasks.select(Selection())))
    kernel.restart()
    kernel.run("%load_ext ipytaskpersist\n%bg_rerun 1\n%bg_wait", check=False)
    assert [task["exit_code"] for task in listed(kernel)] == [3, 1, 0, 3, 3]
    shown = strictly(
        state_dir,
        *("list --all", "list --json", "show 1 --json", "show 2", "sessions", "stats"),
        *(f"export --all --format {form} --output all.{form}" for form in FORMATS),
        *("delete --yes 1 2", "import all.json", "show 1 --json"),
        cwd=folder,
        notebook=notebook,
    )
    assert "imported 2 tasks" in shown
    assert all((folder / f"all.{form}").read_bytes().decode() for form in FORMATS)
    assert store.database.row("PRAGMA integrity_check")[0] == "ok"


@LINUX
def test_a_state_directory_need_not_be_utf8(tmp_path: Path) -> None:
    """A store there can be used, saved and divided like any other."""
    state_dir = tmp_path / STRANGE / "state"
    run = "import ipytaskpersist as bg\nprint(bg.background('echo ran', shell=True).wait(30))"
    assert run_python(run, state_dir, env=STRICT, cwd=tmp_path).stdout == "True\n"
    shown = strictly(
        state_dir,
        *("output 1", "backup", "archive --older-than 0d", "unarchive 1"),
        *("export --all --format json --output STRANGE.json", "delete --yes 1"),
        *("import STRANGE.json", "doctor"),
        cwd=tmp_path,
    )
    for said in ("ran", "backed up 1", "moved 1 task to", "moved 1 task back", "imported 1 task"):
        assert said in shown


# Memory.

GROUPS_1 = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 600_000_000


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group (version 1) with little memory, below this process's own."""
    own = next(
        (line.split(":", 2)[2] for line in _own_groups() if ":memory:" in line), "none of version 1"
    )
    group = GROUPS_1 / own.lstrip("/") / f"ipytaskpersist-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no control group of version 1 can be made here ({error.strerror})")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text(), message="the end of all in the group")
    group.rmdir()


def _own_groups() -> list[str]:
    try:
        return Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def test_a_kill_for_want_of_memory_is_named_under_the_first_control_groups(
    small_group: Path, make_kernel: MakeKernel, store: TaskStore, state_dir: Path
) -> None:
    """The reason says that memory ran out."""
    join = ["sh", "-c", f'echo $$ > {small_group}/cgroup.procs; exec "$@"', "sh"]
    kernel = make_kernel(run_by=join)
    kernel.run(f"%%background --shell\nexec {sys.executable} -c 'print(len(b\"x\" * 10**9))'")
    (task,) = until(lambda: all_ended(store), message="the end of the task")
    assert task.reason == "killed by SIGKILL (out of memory)"
    kernel.shutdown()
    end_processes_of(state_dir)
