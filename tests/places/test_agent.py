"""The agent starts a task once, keeps what it prints, and says how it ended."""

from __future__ import annotations

import ast
import json
import os
import secrets
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from far_ends import FarEnds, FarTask, is_running
from kernels import until

from ipytaskpersist.places import agent
from ipytaskpersist.places.far.files import read_json, write_json
from ipytaskpersist.places.far.processes import identity
from ipytaskpersist.places.messages import MessageReader, agent_text, agent_version, pack

OLDER = sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python3"))


# The text.


def test_the_text_needs_nothing_but_a_python_of_3_9() -> None:
    tree = ast.parse(agent_text(), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


def test_no_name_of_the_text_is_defined_twice() -> None:
    """Its modules share one namespace there."""
    defined = Counter(
        node.name
        for node in ast.parse(agent_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    )
    assigned = Counter(
        target.id
        for node in ast.parse(agent_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    )
    assert [name for name, count in (defined + assigned).items() if count > 1] == []


@pytest.mark.skipif(not OLDER, reason="there is no Python 3.9")
def test_a_python_of_3_9_keeps_a_task(tmp_path: Path) -> None:
    with closing(FarEnds(tmp_path / "home", str(OLDER[-1]))) as far:
        assert far.ask("hello")["python"].startswith("3.9.")
        task = far.start("sh", "-c", "echo here; sleep 100", timeout_s=60, memory_bytes=10**9)
        task.wait_for("here")
        task.signal("end")
        assert task.end().reason == "asked"
        until(lambda: task.state() == "ended")
        assert far.ask("forget", folders=[str(task.folder)]) == {"kept": {}}


def test_the_text_is_a_function_too(tmp_path: Path) -> None:
    """As a Dask worker evaluates it."""
    names = {"TEXT": agent_text(), "__name__": "agent"}
    exec(names["TEXT"], names)
    answer = names["answer"]
    assert callable(answer)
    brief = {"task_id": f"{secrets.token_hex(4)}-1", "command": ["echo", "hello"]}
    folder = str(tmp_path / "dask-1")
    started, _data = answer({"verb": "start", "folder": folder, "brief": brief}, b"")
    assert started["started"]
    until(lambda: answer({"verb": "look", "folders": [folder]}, b"")[0]["looks"][0].get("end"))
    found, data = answer({"verb": "read", "tasks": [[folder, 0]], "wait_s": 1}, b"")
    assert found["tasks"][0][0] == len(data)
    assert b"hello\n" in data


# The server.


def test_a_server_says_what_it_is(far: FarEnds) -> None:
    found = far.ask("hello")
    assert found["version"] == agent_version()
    assert found["home"] == str(far.home)
    assert found["host"] == os.uname().nodename
    assert found["pid"] == far.process.pid


def test_a_bad_request_is_answered_in_words_and_the_next_one_met(far: FarEnds) -> None:
    assert "dance" in far.refusal("dance")
    assert "folder" in far.refusal("start")
    assert "TypeError" in far.refusal("look", folders=[3])
    assert "no JSON" in _refusal_of(far, agent.MESSAGE.pack(3, 0) + b"[1]")
    assert "no JSON" in _refusal_of(far, agent.MESSAGE.pack(3, 0) + b"\xff{}")
    large = agent.LARGEST_JSON + 1
    assert "too large" in _refusal_of(far, agent.MESSAGE.pack(large, 2) + bytes(large + 2))
    assert far.ask("hello")


def test_a_request_may_come_right_behind_the_text() -> None:
    """As it does from a program that sends both to a Python in a far shell."""
    text = agent_text().encode()
    boot = f"import sys; TEXT = sys.stdin.buffer.read({len(text)}).decode(); exec(TEXT)"
    sent = text + pack({"verb": "hello"}) + pack({"verb": "look", "folders": []})
    ended = subprocess.run(
        [sys.executable, "-c", boot, "serve"], input=sent, capture_output=True, timeout=60,
        check=True,
    )  # fmt: skip
    (hello, _), (looked, _) = MessageReader().feed(ended.stdout)
    assert hello["version"] == agent_version()
    assert looked == {"looks": []}


def _refusal_of(far: FarEnds, request: bytes) -> str:
    assert far.process.stdin is not None
    far.process.stdin.write(request)
    far.process.stdin.flush()
    return str(far.receive()[0]["error"])


def test_a_request_that_comes_meanwhile_ends_a_wait_for_output(far: FarEnds) -> None:
    task = far.start("sleep", "100")
    far.send({"verb": "read", "tasks": [[str(task.folder), 0]], "wait_s": 100})
    far.send({"verb": "hello"})
    assert far.receive()[0] == {"tasks": [[0, None]]}
    assert "python" in far.receive()[0]


def test_a_server_ends_with_its_input(far: FarEnds) -> None:
    far.ask("hello")
    process = far.process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 0


# A start.


def test_a_task_is_started_printed_and_ended(far: FarEnds) -> None:
    task = far.start("sh", "-c", "echo grüße; echo bad >&2; exit 3")
    end = task.end()
    assert (task.text(), task.text(b"e")) == ("grüße\n", "bad\n")
    assert (end.status, end.reason, end.error) == (3, None, None)
    assert end.cpu_s is not None
    assert end.peak_memory_bytes
    until(lambda: task.state() == "ended")  # a moment after the spool says so
    look = task.look()
    assert look["end"]["status"] == 3
    assert look["size"] == task.reader.offset


def test_its_files_are_for_the_user_alone(far: FarEnds) -> None:
    task = far.start("true")
    task.end()
    assert {path.stat().st_mode & 0o777 for path in task.folder.iterdir()} == {0o600}
    assert task.folder.stat().st_mode & 0o777 == 0o700
    assert far.folder.stat().st_mode & 0o777 == 0o700


def test_an_exit_by_a_signal_is_told(far: FarEnds) -> None:
    assert far.start("sh", "-c", "kill -9 $$").end().status == -9


def test_output_of_any_bytes_arrives_as_it_is(far: FarEnds) -> None:
    code = "import os, sys; os.write(1, bytes(range(256)) * 5000); os.write(2, b'\\xff\\0')"
    task = far.start(sys.executable, "-c", code)
    task.end()
    assert task.data() == bytes(range(256)) * 5000
    assert task.data(b"e") == b"\xff\0"


def test_what_nobody_reads_does_not_hold_the_task_up(far: FarEnds) -> None:
    task = far.start("seq", "2000000")
    until(lambda: task.state() == "ended")
    task.end()
    assert task.text() == "".join(f"{number}\n" for number in range(1, 2_000_001))
    assert len(task.frames) < 1000


def test_a_directory_begins_at_home(far: FarEnds) -> None:
    (far.home / "Dö x").mkdir()
    for directory in ("~/Dö x", "Dö x", str(far.home / "Dö x")):
        task = far.start("pwd", name=f"n-{len(directory)}", directory=directory)
        task.end()
        assert task.text() == f"{far.home / 'Dö x'}\n"
    task = far.start("pwd", name="home")
    task.end()
    assert task.text() == f"{far.home}\n"


def test_a_variable_is_changed_or_removed(far: FarEnds) -> None:
    script = 'echo "$GREETING ${SECRET-removed} $IPYTASKPERSIST_TASK ${HOME:+home}"'
    task = far.start("sh", "-c", script, environment={"GREETING": "hé\nllo", "SECRET": None})
    task.end()
    assert task.text() == f"hé\nllo removed {task.folder.name} home\n"
    other = far.start("sh", "-c", "echo $SECRET", name="other")
    other.end()
    assert other.text() == "of the far end\n"


def test_a_script_is_its_input_or_a_file(far: FarEnds) -> None:
    task = far.start("sh", script="echo ü; exit 4", script_as="stdin", name="one")
    assert task.end().status == 4
    assert task.text() == "ü\n"
    script = "import sys; print(sys.argv[0][:8], 'ü')"
    task = far.start(sys.executable, script=script, script_as="file", name="two")
    task.end()
    assert task.text() == "/dev/fd/ ü\n"
    task = far.start("cat", name="three")
    assert (task.end().status, task.text()) == (0, "")


def test_a_terminal_is_one(far: FarEnds) -> None:
    task = far.start("sh", "-c", "test -t 1 && stty size <&1", pty=True)
    assert task.end().status == 0
    assert task.text() == "24 80\r\n"


def test_a_task_that_cannot_start_says_why_and_has_ended(far: FarEnds) -> None:
    answer = far.task("one").start("no-such-program")
    assert answer["error"].startswith("no-such-program: command not found")
    assert (answer["state"], answer["end"]["reason"]) == ("ended", "not started")
    answer = far.task("two").start("true", directory="~/nowhere")
    assert f"{far.home}/nowhere does not exist" in answer["error"]
    assert "Permission denied" in far.task("three").start("/etc/passwd")["error"]
    assert "needs an id and a command" in far.task("four").start()["error"]
    end = far.task("one").end()
    assert (end.status, end.reason) == (None, "not started")
    assert "command not found" in str(end.error)


# Once.


def test_of_two_starts_at_once_one_starts(far: FarEnds, tmp_path: Path) -> None:
    with closing(FarEnds(far.home)) as other:
        other.ask("hello")
        for number in range(20):
            tasks = [far.task(f"t-{number}"), other.task(f"t-{number}")]
            answers = _together(tasks, f"echo once >> {tmp_path}/{number}; sleep 0.1")
            assert sum(bool(answer.get("started")) for answer in answers) == 1, answers
            assert sum(bool(answer.get("already")) for answer in answers) == 1, answers
            assert tasks[0].end().status == 0
            assert (tmp_path / str(number)).read_text() == "once\n"


def _together(tasks: list[FarTask], script: str) -> list[dict[str, object]]:
    barrier, answers = threading.Barrier(len(tasks)), []

    def start(task: FarTask) -> None:
        barrier.wait()
        answers.append(task.start("sh", "-c", script))

    threads = [threading.Thread(target=start, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_a_task_is_not_started_again_after_its_end(far: FarEnds) -> None:
    task = far.start("true")
    until(lambda: task.state() == "ended")
    again = task.start("true")
    assert again["already"]
    assert again["state"] == "ended"


def test_a_folder_of_another_user_is_refused(far: FarEnds) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    task = far.task()
    task.folder.mkdir(parents=True)
    os.chown(task.folder, 12345, 12345)
    assert "another user" in task.start("true")["error"]


# In the foreground, as Slurm runs a keeper.


def keep(task: FarTask) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", agent_text(), "keep", str(task.folder)],
        env={**os.environ, "HOME": str(task.far.home)}, stdout=subprocess.PIPE,
    )  # fmt: skip


def test_a_stored_task_waits_for_its_keeper_and_runs_once(far: FarEnds) -> None:
    task = far.task()
    command = ["sh", "-c", "echo $SECRET; exit 5"]
    answer = task.start(*command, detach=False, environment={"SECRET": "1234"})
    assert answer["stored"]
    assert answer["state"] == "claimed"
    assert task.start(*command, detach=False)["already"]
    keepers = [keep(task) for _ in range(3)]
    codes = sorted(keeper.wait(timeout=60) for keeper in keepers)
    said = [json.loads(keeper.communicate()[0]) for keeper in keepers]
    assert codes == [5, os.EX_TEMPFAIL, os.EX_TEMPFAIL]
    assert sorted(bool(each.get("started")) for each in said) == [False, False, True]
    assert task.end().status == 5
    assert task.text() == "1234\n"
    assert [path for path in task.folder.iterdir() if b"1234" in path.read_bytes()] == [
        task.folder / "spool"
    ]
    assert not (task.folder / "brief").exists()


def test_a_stored_task_that_is_asked_to_end_is_never_started(far: FarEnds) -> None:
    task = far.task()
    task.start("echo", "started", detach=False)
    assert task.signal("end")["state"] == "ended"
    keeper = keep(task)
    assert keeper.wait(timeout=30) == os.EX_TEMPFAIL
    keeper.communicate()
    end = task.end()
    assert (end.status, end.reason) == (None, "asked")
    assert task.text() == ""


def test_a_keeper_that_comes_after_all_was_removed_starts_nothing(far: FarEnds) -> None:
    task = far.task()
    task.start("echo", "started", detach=False)
    task.signal("kill")
    assert far.ask("forget", folders=[str(task.folder)]) == {"kept": {}}
    keeper = keep(task)
    assert keeper.wait(timeout=30) == os.EX_TEMPFAIL
    assert "no task is stored" in json.loads(keeper.communicate()[0])["error"]


def test_a_task_asked_to_end_as_its_keeper_comes_has_one_end(far: FarEnds, tmp_path: Path) -> None:
    for number in range(5):
        task = far.task(f"t-{number}")
        task.start("sh", "-c", f"echo x >> {tmp_path}/{number}; sleep 100", detach=False)
        keeper = keep(task)
        if number >= 3:
            _wait_for_file(task.folder / "asked")
        task.signal("end")
        end = task.end()
        assert end.reason == "asked"
        keeper.communicate()
        started = (tmp_path / str(number)).exists()
        assert (end.status is not None) or not started
        assert [frame.kind for frame in task.frames].count(b"Z") == 1


def _wait_for_file(path: Path) -> None:
    until(path.exists)


# What is known of a task.


def test_a_killed_keeper_leaves_a_task_that_is_lost_for_ever(far: FarEnds) -> None:
    task = far.start("sh", "-c", "echo one; exec sleep 100")
    task.wait_for("one")
    psutil.Process(task.keeper).kill()
    until(lambda: task.state() == "lost")
    look = task.pull(wait_s=30.0)
    assert look is not None
    assert look["state"] == "lost"
    assert look["left"] == task.processes()
    assert task.start("true")["already"]
    assert f"{task.folder}" in far.ask("forget", folders=[str(task.folder)])["kept"]
    assert task.signal("end")["left"] == []
    assert task.processes() == []
    assert far.ask("forget", folders=[str(task.folder)]) == {"kept": {}}
    assert not task.folder.exists()
    assert task.state() == "absent"


def claimed_by(task: FarTask, **keeper: object) -> None:
    """Let a task be kept by another keeper, which need not exist."""
    task.folder.mkdir(parents=True)
    claim = {**identity(), "task_id": task.folder.name, **keeper}
    write_json(task.folder / "claim", claim)
    write_json(task.folder / "state", {"started_at": 1.0})


def test_another_boot_of_this_host_is_the_end_once_the_keeper_is_silent(far: FarEnds) -> None:
    task = far.task()
    claimed_by(task, boot_id="an-earlier-one")
    assert task.state() == "running"
    os.utime(task.folder / "state", (1e9, 1e9))
    assert task.state() == "lost"


def test_a_keeper_on_another_host_is_never_lost_only_silent(far: FarEnds) -> None:
    task = far.task()
    claimed_by(task, host="elsewhere", boot_id="another", pid=1)
    assert task.look()["silent_s"] < 60
    os.utime(task.folder / "state", (1e9, 1e9))
    look = task.look()
    assert look["state"] == "running"
    assert look["silent_s"] > 1e8
    assert far.ask("forget", folders=[str(task.folder)])["kept"]
    assert sorted(path.name for path in task.folder.iterdir()) == ["claim", "state"]


def test_a_folder_that_was_forgotten_is_that_of_a_new_task(far: FarEnds) -> None:
    """Also for a server that has looked at the first one."""
    with closing(FarEnds(far.home)) as other:
        first = far.start("true")
        until(lambda: far.task().state() == other.task().state() == "ended")
        far.ask("forget", folders=[str(first.folder)])
        second = far.start("sleep", "100")
        assert other.task().state() == "running"
        second.signal("kill")


def test_a_keeper_touches_the_state_of_its_task(far: FarEnds) -> None:
    task = far.start("sleep", "100")
    os.utime(task.folder / "state", (1e9, 1e9))
    until(lambda: task.look()["silent_s"] < 60)


def test_a_task_that_cannot_be_looked_at_is_unknown(far: FarEnds) -> None:
    task = far.task()
    task.folder.mkdir(parents=True)
    (task.folder / "claim").symlink_to(task.folder / "claim")
    look = task.look()
    assert look["state"] == "unknown"
    assert "symbolic links" in look["error"]


def test_one_request_reads_three_hundred_tasks(far: FarEnds) -> None:
    """Most of them are kept by this process: three hundred keepers would take minutes to start."""
    real = [far.start("sh", "-c", f"echo {n}; sleep 100", name=f"real-{n}") for n in range(2)]
    for task in real:
        task.wait_for("\n")
    others = [far.task(f"other-{number}") for number in range(298)]
    for task in others:
        claimed_by(task)
        (task.folder / "spool").touch()
    tasks = [[str(task.folder), task.reader.wanted] for task in real + others]
    far.ask("read", tasks=tasks, wait_s=0.0)
    before = sum(psutil.Process(far.process.pid).cpu_times()[:2])
    answer = far.ask("read", tasks=tasks, wait_s=2.0)
    assert answer["tasks"] == [[0, None]] * 300
    used_s = sum(psutil.Process(far.process.pid).cpu_times()[:2]) - before
    assert used_s < 1.0
    real[1].signal("kill")
    news = far.ask("read", tasks=tasks, wait_s=60.0)["tasks"]
    assert [index for index, (size, _look) in enumerate(news) if size] == [1]


# Files.


def test_a_file_is_put_in_pieces_and_appears_whole(far: FarEnds) -> None:
    path = far.folder / "x" / "inputs" / "größe.bin"
    where = {"path": str(path), "within": str(far.folder)}
    assert far.ask("put", b"one ", offset=0, done=False, **where) == {"size": 4}
    assert not path.exists()
    assert "has 4 bytes, not 3" in far.refusal("put", b"bad", offset=3, done=True, **where)
    far.ask("put", b"two", offset=4, done=True, **where)
    assert path.read_bytes() == b"one two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["größe.bin"]
    assert "No such file" in far.refusal("put", b"", path="~/nowhere/x", offset=0, done=True)


def test_a_file_is_got_in_pieces(far: FarEnds) -> None:
    (far.home / "data").write_bytes(b"0123456789")
    got = far.ask_for("get", path="~/data", offset=3, at_most=4)
    assert got == ({"size": 10}, b"3456")
    assert far.ask_for("get", path="data", offset=10, at_most=4) == ({"size": 10}, b"")
    assert "No such file" in far.refusal("get", path="~/nothing", offset=0, at_most=1)
    assert "no regular file" in far.refusal("get", path="~", offset=0, at_most=1)
    assert "no regular file" in far.refusal("get", path="/dev/zero", offset=0, at_most=1)


def test_files_are_found_by_a_pattern(far: FarEnds) -> None:
    (far.home / "out" / "deep").mkdir(parents=True)
    for name in ("out/b.csv", "out/a.csv", "out/deep/c.csv", "out/.hidden.csv"):
        (far.home / name).write_text(name)
    found = far.ask("sizes", pattern="~/out/*.csv")["files"]
    assert [(Path(path).name, size) for path, size, _at in found] == [("a.csv", 9), ("b.csv", 9)]
    deep = far.ask("sizes", pattern="out/**/*.csv")["files"]
    assert [Path(path).name for path, _size, _at in deep] == ["a.csv", "b.csv", "c.csv"]
    assert far.ask("sizes", pattern="~/nothing*") == {"files": []}


def test_only_tasks_that_are_over_are_forgotten(far: FarEnds) -> None:
    running, ended = far.start("sleep", "100"), far.start("true", name="ended")
    until(lambda: ended.state() == "ended")
    (far.home / "mine").mkdir()
    folders = [str(running.folder), str(ended.folder), str(far.home / "mine"), "~/nothing"]
    assert far.ask("forget", folders=folders)["kept"] == {folders[0]: "the task is running"}
    assert not ended.folder.exists()
    assert (far.home / "mine").exists()
    # What was sent for one that was never started goes, and what it alone shared.
    where = {"within": str(far.folder), "done": True}
    far.ask("put", path=f"{far.folder}/never/sent", **where)
    for name, content in (("signing.key", b"key"), ("5.buffers", b"large")):
        path, shared = f"{far.folder}/never/python/{name}", f"{far.folder}/buffers/{name}"
        far.ask("put", content, path=path, within=str(far.folder), done=True)
        linked = far.ask("link", path=path, to=shared, within=str(far.folder))
        assert linked == {"linked": True}
    nothing = {"path": f"{far.folder}/buffers/x", "to": f"{far.folder}/never/python/x"}
    assert far.ask("link", **nothing) == {"linked": False}
    far.ask("forget", folders=[f"{far.folder}/never"])
    assert [*(far.folder / "buffers").iterdir()] == []
    assert is_running(running.keeper)
    assert read_json(running.folder / "claim")
