"""A project's file can be a stranger's: it runs nothing, sends nothing, and takes nothing away.

What another user can do with such a file is in `test_another_user`.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import TIMEOUT_S, run_command, run_python

from ipytaskpersist.base import redaction
from ipytaskpersist.base.ownership import ACCESS_LIST
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.project_file import LIMIT_BYTES, NAME, folders_of_project

if sys.platform == "win32":
    pytest.skip("there are no owners and modes", allow_module_level=True)

PROCESS = "[tool.ipytaskpersist]\nrunner = 'process'\n"


@pytest.fixture
def folder(state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of a repository, in which the person is."""
    root = tmp_path / "clone"
    (root / ".git").mkdir(parents=True)
    monkeypatch.chdir(root)
    yield root
    redaction.use([])


def only_problem() -> str:
    """What is said of the project's file, which then sets nothing."""
    manager = BackgroundTasks()
    assert (manager.runner, manager.project.file) == ("thread", None)
    (problem,) = manager.setting_problems
    assert "\n" not in problem
    return problem


# What it may set.

YOURS_ALONE = {
    "archive_after_days": "0",
    "auto_resume": "true",
    "backups_kept": "0",
    "if_running": "'replace'",
    "keep": "'nothing'",
    "max_running": "1",
    "places": "{gpu = {kind = 'ssh', host = 'evil'}}",
    "max_store_bytes": "1",
    "notify": "['json://192.0.2.1']",
    "notify_after_s": "0",
    "settings_apart": "['random']",
    "shell_path": "'./evil'",
    "wait_at_exit_s": "1000000",
    "warm_processes": "false",
}


@pytest.mark.parametrize("name", YOURS_ALONE)
def test_what_is_yours_alone_is_refused_in_one_line(folder: Path, name: str) -> None:
    """It says the file, the setting, and where to put it instead."""
    (folder / NAME).write_text(f"[tool.ipytaskpersist]\n{name} = {YOURS_ALONE[name]}\n")
    manager = BackgroundTasks()
    assert manager.setting_problems == [
        f"[tool.ipytaskpersist] in {folder / NAME} cannot set {name}: a project may be a "
        "stranger's; set it in ipython_config.py or with %config"
    ]
    assert getattr(manager, name) == manager.traits()[name].default()
    assert manager.project_in_words() == ""


def test_a_setting_is_yours_alone_unless_it_says_otherwise() -> None:
    traits = BackgroundTasks.class_traits(config=True)
    projects = {name for name, trait in traits.items() if trait.metadata.get("of_project")}
    assert projects == set(traits) - set(YOURS_ALONE)
    assert projects == {
        "cancel_grace_s", "large_result_bytes", "max_output_bytes", "notebook", "runner",
        "secret_names", "synchronous",
    }  # fmt: skip


def test_no_program_of_the_project_is_run(folder: Path, state_dir: Path) -> None:
    """Not when the extension is loaded, and not at the first shell task."""
    marker = folder / "ran"
    evil = folder / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {marker}\n")
    evil.chmod(0o755)
    (folder / NAME).write_text(f"[tool.ipytaskpersist]\nshell_path = '{evil}'\n")
    ended = run_python(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.run_line_magic('load_ext', 'ipytaskpersist')\n"
        "shell.run_cell_magic('background', '--shell a', 'echo mine')\n"
        "shell.run_line_magic('bg_wait', 'a')\nshell.run_line_magic('bg_output', 'a')\n",
        state_dir,
        cwd=folder,
    )
    assert "mine" in ended.stdout
    assert "cannot set shell_path" in ended.stderr
    assert not marker.exists()


@pytest.mark.parametrize(
    "path", ["/elsewhere/a.ipynb", "../a.ipynb", "link/a.ipynb", "a/../../b.ipynb", "x\\u0000y"]
)
def test_a_project_cannot_pass_for_another_notebook(folder: Path, path: str) -> None:
    """Whose tasks it could then clear, delete and run again."""
    (folder / "link").symlink_to(folder.parent)
    (folder / NAME).write_text(f'[tool.ipytaskpersist]\nnotebook = "{path}"\n')
    manager = BackgroundTasks()
    (problem,) = manager.setting_problems
    assert "cannot set notebook to what is not below the file's folder; set it in" in problem
    assert manager.notebook == ""


def test_a_project_adds_names_of_secrets_and_takes_none_of_yours_away(
    folder: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "ipython" / "profile_default" / "ipython_config.py"
    profile.parent.mkdir(parents=True)
    profile.write_text("c = get_config()\nc.BackgroundTasks.secret_names = ['mine*']\n")
    (folder / NAME).write_text("[tool.ipytaskpersist]\nsecret_names = ['theirs*']\n")
    assert sorted(BackgroundTasks().secret_names) == ["mine*", "theirs*"]
    assert redaction.is_secret("mine1")
    assert redaction.is_secret("theirs1")


def test_a_thousand_mistakes_are_a_few_lines(folder: Path) -> None:
    names = "".join(f"a{number} = 1\n" for number in range(1000))
    (folder / NAME).write_text(f"[tool.ipytaskpersist]\n{'x' * 10_000} = 1\n{names}")
    problems = BackgroundTasks().setting_problems
    assert len(problems) == 9
    assert problems[-1].endswith("has 993 more mistakes")
    assert max(map(len, problems)) < 400


# Which files are read.


def hang(file: Path) -> None:
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def terminal(file: Path) -> None:
    file.symlink_to("/dev/tty")


@pytest.mark.parametrize("kind", [hang, endless, terminal])
def test_what_is_no_file_is_neither_waited_for_nor_read(
    folder: Path, state_dir: Path, kind: object
) -> None:
    kind(folder / NAME)  # type: ignore[operator]
    begun = time.monotonic()
    ended = run_command(state_dir, "config", "runner")
    assert ended.stderr == (
        f"{folder / NAME} is not believed, so it sets nothing: it is not a regular file\n"
    )
    assert ended.stdout.startswith("runner = 'thread'")
    assert time.monotonic() - begun < TIMEOUT_S / 2


def test_a_huge_file_is_not_read(folder: Path) -> None:
    with (folder / NAME).open("w") as file:
        file.write(PROCESS)
        file.truncate(1 << 40)
    assert only_problem().endswith(f"it is larger than {LIMIT_BYTES:,} bytes")


LITTLE_MEMORY = f"""
import resource
from ipytaskpersist.session.manager import BackgroundTasks
resource.setrlimit(resource.RLIMIT_AS, ({1 << 30}, {1 << 30}))
for problem in BackgroundTasks().setting_problems:
    print(problem)
"""
BOMBS = {
    "one key of many parts": "a." * 60_000 + "b = 1",
    "the same, quoted": '"a" . ' * 40_000 + "b = 1",
    "the same, in a table's name": f"[{'a.' * 60_000}b]",
    "the same, in an inline table": f"x = {{{'a.' * 60_000}b = 1}}",
    "deep lists": "a = " + "[" * 200_000,
    "deep tables": "a = " + "{a=" * 60_000,
    "many deep keys": "".join(".".join([f"b{i}"] * 90) + " = 1\n" for i in range(600)),
    "quotes": "'\"" * 100_000,
    "one long word": "a" * 200_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_text_takes_all_memory_or_time(folder: Path, state_dir: Path, bomb: str) -> None:
    """Whose table stands in it, and is otherwise right."""
    (folder / NAME).write_text(PROCESS + BOMBS[bomb])
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    ended = run_python(LITTLE_MEMORY, state_dir, cwd=folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) <= 1
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used < 15


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_file_in_a_folder_that_others_can_write_to_is_not_believed(
    folder: Path, mode: int
) -> None:
    """Whoever can write there can put one there; a sticky folder does not change that."""
    (folder / NAME).write_text(PROCESS)
    folder.chmod(mode)
    assert only_problem() == (
        f"{folder / NAME} is not believed, so it sets nothing: "
        f"others can write to the folder {folder}"
    )


def test_nor_is_one_below_such_a_folder(folder: Path) -> None:
    """Its owner could rename what is below, and put a folder of an earlier time in its place."""
    (folder / NAME).write_text(PROCESS)
    folder.parent.chmod(0o777)
    assert only_problem().endswith(f"others can write to the folder {folder.parent}")


def test_a_private_folder_in_a_sticky_one_is_sound(folder: Path) -> None:
    """As those in ``/tmp`` are: others cannot move what is not theirs."""
    (folder / NAME).write_text(PROCESS)
    folder.parent.chmod(0o1777)
    manager = BackgroundTasks()
    assert (manager.setting_problems, manager.runner) == ([], "process")


@pytest.mark.skipif(os.getuid() != 0, reason="only an administrator gives files to any group")
@pytest.mark.parametrize("shared", ["folder", "folder above", "file"])
def test_a_group_counts_as_others(folder: Path, shared: str) -> None:
    file = folder / NAME
    file.write_text(PROCESS)
    path = {"folder": folder, "folder above": folder.parent, "file": file}[shared]
    os.chown(path, -1, 54321)
    path.chmod(0o664 if path == file else 0o775)
    what = "it" if path == file else f"the folder {path}"
    assert only_problem().endswith(f"others can write to {what}")


def test_a_group_of_your_own_does_not(folder: Path) -> None:
    """Many systems make one for each user, and let it write."""
    (folder / NAME).write_text(PROCESS)
    for path in (folder, folder.parent, folder / NAME):
        path.chmod(path.stat().st_mode | 0o020)
    manager = BackgroundTasks()
    if os.getuid() == 0:
        assert (manager.setting_problems, manager.runner) == ([], "process")


def test_an_access_list_counts_as_others(folder: Path) -> None:
    """It shows as a group that may write, and the group may be your own."""
    (folder / NAME).write_text(PROCESS)
    entries = [(1, 7, -1), (2, 7, 12345), (4, 5, -1), (0x10, 7, -1), (0x20, 5, -1)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries)
    try:
        os.setxattr(folder, ACCESS_LIST, packed)
    except OSError as error:
        pytest.skip(f"this file system has no access lists ({error})")
    assert only_problem().endswith(f"others can write to the folder {folder}")


def test_a_file_that_all_can_write_to_is_not_believed(folder: Path) -> None:
    (folder / NAME).write_text(PROCESS)
    (folder / NAME).chmod(0o666)
    assert only_problem().endswith("others can write to it")


def test_a_link_is_followed_as_far_as_every_folder_on_its_way_is_sound(folder: Path) -> None:
    there, shared = folder.parent / "there", folder.parent / "shared"
    for each in (there, shared):
        each.mkdir()
    (there / "settings").write_text(PROCESS)
    (folder / NAME).symlink_to(there / "settings")
    assert BackgroundTasks().runner == "process"
    (folder / NAME).unlink()
    (shared / "way").symlink_to(there)
    (folder / NAME).symlink_to("../shared/way/settings")
    assert BackgroundTasks().runner == "process"
    shared.chmod(0o777)
    assert only_problem().endswith(f"others can write to the folder {shared}")


def test_a_circle_of_links_is_said(folder: Path) -> None:
    (folder / NAME).symlink_to(NAME)
    assert "cannot be read (Too many" in only_problem()


def test_a_file_that_is_not_believed_hides_none_that_is_further_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / NAME).write_text(PROCESS)
    below = folder / "below"
    below.mkdir()
    os.mkfifo(below / NAME)
    monkeypatch.chdir(below)
    manager = BackgroundTasks()
    assert (manager.runner, len(manager.setting_problems)) == ("process", 1)


def test_one_that_does_not_speak_of_us_is_not_our_concern(folder: Path) -> None:
    (folder / NAME).write_text("[project]\nname = 'other'\n")
    (folder / NAME).chmod(0o666)
    folder.chmod(0o777)
    assert BackgroundTasks().setting_problems == []


# Where it is looked for.


def test_the_search_ends_at_the_root_of_the_repository(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / NAME).write_text(PROCESS)
    deep = folder / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    manager = BackgroundTasks()
    assert (manager.runner, manager.setting_problems) == ("thread", [])
    (folder / NAME).write_text(PROCESS)
    assert BackgroundTasks().project.file == folder / NAME


def test_a_file_named_git_is_a_root_too(folder: Path) -> None:
    """So it is of a submodule, and of a second working tree."""
    inner = folder / "submodule"
    inner.mkdir()
    (inner / ".git").write_text("gitdir: ../.git/modules/submodule\n")
    assert folders_of_project(inner) == [inner]


def test_the_search_ends_at_your_home(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Your home itself is looked at; what is above is not yours."""
    home = tmp_path / "home" / "me"
    (home / "work").mkdir(parents=True)
    (home / NAME).write_text(PROCESS)
    (home.parent / NAME).write_text("[tool.ipytaskpersist]\nmax_output_bytes = 1\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    assert BackgroundTasks().project.file == home / NAME
    (home / NAME).unlink()
    assert BackgroundTasks().project.file is None
    assert folders_of_project(home) == [home]
    assert folders_of_project(home.parent) == [home.parent]


def test_elsewhere_only_the_folder_itself_is_looked_at(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = tmp_path / "loose" / "below"
    loose.mkdir(parents=True)
    (loose.parent / NAME).write_text(PROCESS)
    monkeypatch.chdir(loose)
    assert BackgroundTasks().project.file is None
    (loose / NAME).write_text(PROCESS)
    assert BackgroundTasks().project.file == loose / NAME


# What is said.


def test_loading_says_which_file_is_in_effect_and_what_it_changes(
    folder: Path, state_dir: Path
) -> None:
    """One line, and none where nothing is changed."""
    load = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "InteractiveShell.instance().run_line_magic('load_ext', 'ipytaskpersist')\n"
    )
    file = folder / NAME
    file.write_text(PROCESS + "cancel_grace_s = 5\nsecret_names = ['*_dsn']\nkeep = 'x'\n")
    ended = run_python(load, state_dir, cwd=folder)
    assert ended.stdout == f"Settings of {file}: runner = 'process', secret_names = ['*_dsn']\n"
    assert len(ended.stderr.splitlines()) == 1
    file.write_text("[tool.ipytaskpersist]\nrunner = 'thread'\n")
    ended = run_python(load, state_dir, cwd=folder)
    assert (ended.stdout, ended.stderr) == ("", "")


def test_the_profile_is_read_no_further_than_a_file_of_yours(folder: Path, tmp_path: Path) -> None:
    """Programs run it, so it is read as carefully, and never waited for."""
    profile = tmp_path / "ipython" / "profile_default" / "ipython_config.py"
    profile.parent.mkdir(parents=True)
    os.mkfifo(profile)
    (problem,) = BackgroundTasks().setting_problems
    assert problem == f"{profile} is not believed, so it sets nothing: it is not a regular file"
