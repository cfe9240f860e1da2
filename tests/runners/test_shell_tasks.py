"""A shell task leaves what the command would have left: the same bytes, the same exit code."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from kernels import NotebookKernel, end_processes_of, until
from programs import TIMEOUT_S, Finished, environment, run_command, run_python
from shells import (
    Ran,
    directly,
    ended,
    expected_end,
    finish,
    own_session,
    pieces,
    process_of,
    shell,
    store,
    stream,
    supervisor,
    what_it_left,
)

from ipytaskpersist.api import Task
from ipytaskpersist.base.checkpoint_folders import VARIABLE
from ipytaskpersist.base.process_tree import MARK
from ipytaskpersist.base.records import OutputKind, TaskState
from ipytaskpersist.cells.shell_commands import usual_shell
from ipytaskpersist.display import task_details
from ipytaskpersist.errors import BackgroundError
from ipytaskpersist.session import manager
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Selection

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="process tasks need fork()")

PYTHON = shlex.quote(sys.executable)
HUNDRED_MB = 100_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which the commands run."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "noise").write_bytes(random.Random(7).randbytes(1_000_000))
    (folder / "every-byte").write_bytes(bytes(range(256)) * 3)
    return folder


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundTasks]:
    """One session, and so one supervisor, for all tests that only need their own tasks."""
    with without_ignored_signals(), own_session(tmp_path_factory.mktemp("shell") / "state") as own:
        yield own


class without_ignored_signals:  # noqa: N801 - used as a context manager
    """Signals that whoever started the tests ignores would be ignored by every command."""

    def __enter__(self) -> None:
        ours = signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}  # Python's own choice
        self._ignored = [each for each in ours if signal.getsignal(each) is signal.SIG_IGN]
        for each in self._ignored:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *_error: object) -> None:
        for each in self._ignored:
            signal.signal(each, signal.SIG_IGN)


# The same as without this package.


def exit_codes() -> Iterable[str]:
    return (f"exit {code}" for code in sorted({*range(0, 256, 3), 1, 2, 126, 127, 128, 137, 254}))


def signals() -> Iterable[str]:
    stopping = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    for number in sorted(signal.valid_signals() - stopping):
        yield f"ulimit -c 0; echo before; kill -{int(number)} $$; echo survived"


def quiet_commands() -> Iterable[str]:
    return ["true", "false", ":", "", " ", "#", "echo", "printf ''", "cat", "wc -c", "read line"]


def byte_commands() -> Iterable[str]:
    yield from (f"printf '\\{code:o}'" for code in (0, 1, 7, 8, 10, 13, 27, 127, 128, 192, 255))
    yield from (f"printf 'before\\{code:o}after\\n'" for code in (0, 13, 27, 0o200, 0o355, 0o377))
    yield r"printf '\303\050 \240\241 \342\050\241 \360\050\214\274\n'"
    yield r"printf '\303'; printf '\274\n'"
    yield r"printf 'cut in a character \342\202'"
    yield r"printf '\355\240\200\n'"
    yield "cat every-byte"
    yield "cat every-byte >&2"
    yield "cat noise"
    yield "cat noise | tee /dev/stderr"
    yield "head -c 100000 /dev/zero"
    yield r"printf '\r%s' 1% 50% 100%; echo"
    yield r"printf 'one\r\ntwo\r\n'"
    yield r"printf '\033[1;31mred\033[0m \033[4munder\033[24m\n\033[2K\033[1A'"
    yield r"printf '\033]0;title\007'"
    yield r"printf 'no line feed at the end'"
    yield "echo 'Grüße, 世界 🎉'"
    yield f"head -c 5000000 /dev/zero | tr '\\0' x; sha256sum < {os.devnull}"
    yield "seq 300000"
    yield "yes | head -n 200000"


def two_stream_commands() -> Iterable[str]:
    yield "echo problem >&2"
    yield "echo out; echo err >&2; echo out; echo err >&2"
    yield "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    yield "seq 50000 & seq 50000 >&2; wait"
    yield "echo both 2>&1 >&2"
    yield "ls /nowhere/at/all"
    yield "set -x; echo traced"
    yield "echo swapped 3>&1 1>&2 2>&3"


def outliving_commands() -> Iterable[str]:
    yield "(sleep 0.3; echo late) & echo now"
    yield "(sleep 0.3; echo late >&2) & exit 3"
    yield "(sleep 0.3; echo late) & kill -TERM $$"
    yield "(sleep 0.2; (sleep 0.2; echo grandchild) & echo child) & echo parent"
    yield "setsid sh -c 'sleep 0.3; echo in a session of its own' & echo now"
    yield "nohup sh -c 'sleep 0.2; echo nohup' & echo now"
    yield "sleep 30 > /dev/null 2>&1 & echo 'nobody waits for a process that cannot print'"


def closing_commands() -> Iterable[str]:
    yield "exec >&-; echo lost; echo still here >&2; exit 4"
    yield "exec 2>&-; echo still here; echo lost >&2"
    yield "exec >&- 2>&-; sleep 0.1; exit 5"
    yield "exec > /dev/null 2>&1; sleep 0.1; echo lost"
    yield "echo before; exec >&-; sleep 0.1; echo after >&2"
    yield "seq 100000 | head -n 1"
    yield "exec 0<&-; cat"


def long_commands() -> Iterable[str]:
    yield from (f"printf %s {'x' * size}" for size in (64 * 1024, 99_980, 100_020, 131_000))
    yield f"printf %s {'ü' * 32 * 1024}"
    yield f": {'x' * 101_000}; cat; exit 7"
    yield f": {'x' * 101_000}; missing-command 2> /dev/null"
    yield f": {'x' * 101_000}; kill -TERM $$"
    yield ": " + "x" * 101_000 + "\ncat <<END\nhere\nEND\n"


def language_commands() -> Iterable[str]:
    yield "missing-command"
    yield "missing-command --with 'some arguments'; exit $?"
    yield "/etc/passwd"
    yield "/"
    yield "if"
    yield "echo 'not closed"
    yield "printf '<%s>' '' a '' 'b  c' \"\""
    yield "cat <<END\nhere $((6 * 7))\nEND"
    yield "cat <<'END'\n$HOME `date` \\\nEND"
    yield "seq 100 | sort -r | head -n 3 | tr '\\n' ,"
    yield "false | true"
    yield "false || echo otherwise"
    yield "trap 'echo leaving' EXIT; exit 9"
    yield "trap 'echo caught' USR1; kill -USR1 $$; echo on"
    yield "{ sh -c 'kill -KILL $$'; } 2>/dev/null; echo $?"
    yield "sh -c 'sh -c \"exit 6\"'"
    yield "set -e; false; echo never"
    yield "set -u; echo $NOT_SET_ANYWHERE"
    yield "f() { echo in $1; return 3; }; f it"
    yield 'read line; echo "read <$line> $?"'
    yield "cat - - | wc -c"
    yield "test -t 0 || test -t 1 || test -t 2 || echo no terminal"
    yield "pwd; ls"
    yield "umask; ulimit -a"
    yield 'echo $0 $# "$@"'
    yield "echo \\\nlong \\\nline"
    yield "exec echo replaced"
    yield "-x"
    yield f"exec {PYTHON} -c 'import sys; sys.exit(\"said why\")'"
    yield f"{PYTHON} -c 'import os; os.write(1, bytes(256)); os.write(2, b\"x\"); os._exit(77)'"
    yield f"{PYTHON} -c 'import os; os.abort()'"
    yield "ls -l /proc/self/fd | wc -l; cat /proc/self/status | grep -E '^Sig(Blk|Ign|Cgt)'"


FAMILIES = (
    exit_codes, signals, quiet_commands, byte_commands, two_stream_commands, outliving_commands,
    closing_commands, long_commands, language_commands,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_task_leaves_the_bytes_and_the_exit_code_of_its_command(
    session: BackgroundTasks, folder: Path, family: Callable[[], Iterable[str]]
) -> None:
    commands = [command for command in family() if command.strip()]
    tasks = [shell(command, cwd=folder) for command in commands]
    wrong = {}
    for command, task in zip(commands, tasks, strict=True):
        expected = directly(command, cwd=folder)
        found = what_it_left(task)
        end = (task.state, task.reason)
        if (found, end) != (expected, expected_end(expected.exit_code)):
            wrong[command[:200]] = f"{shortened(found)} {end}, not {shortened(expected)}"
    assert not wrong


def shortened(ran: Ran) -> str:
    return f"{ran.stdout[:150]!r} {ran.stderr[:150]!r} {ran.exit_code}"


def test_a_command_of_any_length_runs_and_reads_nothing_of_itself(
    session: BackgroundTasks, folder: Path
) -> None:
    """A script of 300 KB is longer than what one argument may be."""
    lines = [f"echo 'line {number} {'.' * 60}'" for number in range(4000)]
    source = "\n".join([*lines, "cat", "echo end >&2", "exit 8"])
    assert len(source) > 300_000
    script = folder / "long.sh"
    script.write_text(source)
    assert what_it_left(finish(source)) == directly(f"{usual_shell()} {shlex.quote(str(script))}")


def test_many_tasks_run_at_once_and_each_keeps_its_own_output(session: BackgroundTasks) -> None:
    tasks = [shell(f"echo {n}; echo {n} >&2; sleep 0.5; echo {n}; exit {n}") for n in range(100)]
    for number, task in enumerate(tasks):
        text = f"{number}\n".encode()
        assert what_it_left(task) == Ran(text * 2, text, number)


# Its output, read elsewhere.


def raw(state_dir: Path, *arguments: str) -> bytes:
    """What `output --raw` writes in a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "ipytaskpersist", "output", "--raw", *arguments],
        env=environment(state_dir), stdin=subprocess.DEVNULL, capture_output=True, check=True,
        timeout=TIMEOUT_S,
    ).stdout  # fmt: skip


def test_raw_and_save_give_exactly_the_bytes(
    session: BackgroundTasks, folder: Path, tmp_path: Path
) -> None:
    root, saved = session.directory.root, tmp_path / "saved"
    task = finish("cat noise; cat every-byte >&2; exit 3", cwd=folder)
    out, err = (folder / "noise").read_bytes(), (folder / "every-byte").read_bytes()
    assert raw(root, task.id, "--stdout") == out
    assert raw(root, task.id, "--stderr") == err
    assert sorted(raw(root, task.id)) == sorted(out + err)
    run_command(root, "output", task.id, "--stdout", "--save", str(saved))
    assert saved.read_bytes() == out
    run_command(root, "output", task.id, "--stderr", "--save", str(saved))
    assert saved.read_bytes() == err


def test_raw_keeps_the_order_of_what_was_printed_one_after_the_other(
    session: BackgroundTasks,
) -> None:
    task = finish("for n in 1 2 3; do echo out $n; sleep 0.1; echo err $n >&2; sleep 0.1; done")
    expected = b"".join(b"out %d\nerr %d\n" % (number, number) for number in (1, 2, 3))
    assert raw(session.directory.root, task.id) == expected


def test_a_line_of_100_mb_comes_back_whole(session: BackgroundTasks, tmp_path: Path) -> None:
    root, saved = session.directory.root, tmp_path / "saved"
    task = ended(shell(f"head -c {HUNDRED_MB} /dev/zero | tr '\\0' x"), timeout=90)
    expected = digest([b"x" * 1_000_000] * 100)
    assert digest(pieces(task, OutputKind.STDOUT)) == expected
    assert digest([raw(root, task.id, "--stdout")]) == expected
    run_command(root, "output", task.id, "--save", str(saved))
    assert digest([saved.read_bytes()]) == expected
    assert listed(root, task.id)["last_line"] == "x" * 240


def digest(data: Iterable[bytes]) -> str:
    """The SHA-256 of bytes in pieces, after their number."""
    total, size = hashlib.sha256(), 0
    for piece in data:
        total.update(piece)
        size += len(piece)
    return f"{size} {total.hexdigest()}"


def listed(root: Path, task_id: str) -> dict[str, object]:
    """What `list` says of a task."""
    answer = json.loads(run_command(root, "list", "--all", "--json").stdout)
    (found,) = (task for task in answer["tasks"] if task["id"] == task_id)
    return dict(found)


def test_the_list_knows_what_a_running_task_printed_last(session: BackgroundTasks) -> None:
    task = shell("printf 'first\\n10%%\\r\\033[32m20%%\\033[0m'; read line < /dev/zero")
    assert until(lambda: listed(session.directory.root, task.id)["last_line"]) == "20%"
    assert task.state is TaskState.RUNNING
    task.cancel()
    ended(task)


# A terminal.


def test_a_task_with_a_terminal_sees_one_and_its_input_is_still_empty(
    session: BackgroundTasks,
) -> None:
    script = "for n in 0 1 2; do test -t $n && echo terminal $n; done; wc -c; echo err >&2; exit 3"
    assert what_it_left(finish(script, pty=True)) == Ran(
        b"terminal 1\r\nterminal 2\r\n0\r\nerr\r\n", b"", 3
    )
    assert what_it_left(finish(script)) == Ran(b"0\n", b"err\n", 3)


def test_programs_that_ask_for_the_size_of_the_terminal_are_answered(
    session: BackgroundTasks,
) -> None:
    script = "tput cols; stty size <&1; stty size; stty; echo end"
    task = finish(script, pty=True, env={"TERM": "xterm"})
    lines = stream(task).decode().split("\r\n")
    assert lines[:2] == ["80", "24 80"]
    assert lines[-2:] == ["end", ""]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("(sleep 0.3; echo late) & echo now", b"now\r\nlate\r\n"),
        ("printf '\\r50%%'; printf '\\r100%%\\n'", b"\r50%\r100%\r\n"),
        ("seq 100000", b"".join(b"%d\r\n" % number for number in range(1, 100_001))),
        (f"exec {PYTHON} -c 'import sys; print(sys.stdout.isatty())'", b"True\r\n"),
        ("printf 'no line feed'; kill -KILL $$", b"no line feed"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_everything_that_is_printed_to_a_terminal_is_kept(
    session: BackgroundTasks, command: str, expected: bytes
) -> None:
    assert stream(finish(command, pty=True)) == expected


# Where it runs, and with what.


def test_a_task_runs_in_the_directory_of_its_launch_or_in_the_one_that_is_named(
    session: BackgroundTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "two words"
    named.mkdir()
    monkeypatch.chdir(tmp_path)
    assert finish("pwd").stdout == f"{tmp_path}\n"
    assert finish("pwd", cwd=named).stdout == f"{named}\n"
    assert finish("pwd", cwd="two words").stdout == f"{named}\n"
    monkeypatch.chdir("/")
    assert finish("pwd").stdout == "/\n"


def test_a_task_has_the_variables_that_it_is_given_as_they_are(session: BackgroundTasks) -> None:
    given = {
        "WORDS": "  two  words ", "EQUAL": "a=b=c", "UNICODE": "Grüße 世界", "EMPTY": "",
        "LINES_": "one\ntwo\n", "QUOTED": "\"'`$(date)`", "lower_odd2": "1", "PATH": "/odd",
        "LARGE": "x" * 100_000, "BYTES": "\udcff\udc80",
    }  # fmt: skip
    assert given.items() <= variables(finish("/usr/bin/env -0", env=given)).items()
    assert given.keys() - variables(finish("env -0")).keys() == given.keys() - {"PATH"}


def variables(task: object) -> dict[str, str]:
    """The environment that ``env -0`` has printed."""
    printed = os.fsdecode(stream(task)).split("\0")  # type: ignore[arg-type]
    return dict(variable.split("=", 1) for variable in printed if variable)


def test_a_task_has_the_environment_of_the_process_that_launches_it_at_launch(
    session: BackgroundTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWD", str(Path.cwd()))  # where it is missing, a shell makes one
    monkeypatch.setenv("CHANGES", "first")
    monkeypatch.setenv("GOES", "soon")
    finish("true")
    monkeypatch.setenv("CHANGES", "second")
    monkeypatch.setenv("COMES", "late")
    monkeypatch.delenv("GOES")
    monkeypatch.delenv("HOME", raising=False)
    task = finish("exec env -0")
    counted = {"SHLVL"}  # by each shell
    found = {name: value for name, value in variables(task).items() if name not in counted}
    wanted = {name: value for name, value in os.environ.items() if name not in counted}
    folder = session.directory.checkpoints / task.id
    assert found == wanted | {MARK: task.id, VARIABLE: str(folder)}


@pytest.mark.parametrize("lost", ["", "LC_CTYPE LANG LC_ALL", "HOME PATH USER SHELL TERM"])
def test_a_task_has_exactly_the_environment_that_any_child_would_have(
    state_dir: Path, lost: str
) -> None:
    program = """
        import json, os, subprocess, sys
        import ipytaskpersist as bg
        for name in sys.argv[1].split():
            os.environ.pop(name, None)
        command = "exec /usr/bin/env -0"
        task = bg.background(command, shell=True)
        assert task.wait(30)
        print(json.dumps([task.stdout, subprocess.getoutput(command)]))
    """
    ran = run_program(program, state_dir, lost)
    found, expected = (set(text.split("\0")) for text in json.loads(ran.stdout))
    of_shell = (MARK, VARIABLE, "SHLVL=", "_=")  # what /bin/sh may set is not what bash sets
    assert {each for each in found if not each.startswith(of_shell)} == {
        each for each in expected if not each.startswith(of_shell)
    }


def run_program(code: str, state_dir: Path, *arguments: str) -> Finished:
    """Run a program that must succeed."""
    ran = run_python(textwrap.dedent(code), state_dir, *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_a_variable_that_is_gone_stays_gone_when_the_extension_is_loaded_again(
    state_dir: Path,
) -> None:
    program = """
        import os
        import ipytaskpersist as bg
        from ipytaskpersist.session import manager
        os.environ["GOES"] = "soon"
        running = bg.background("sleep 30", shell=True)
        manager.current().close()
        manager.set_current(None)
        del os.environ["GOES"]
        task = bg.background("echo ${GOES-gone}", shell=True)
        assert task.wait(30)
        running.cancel()
        print(task.stdout, end="")
    """
    assert run_program(program, state_dir).stdout == "gone\n"


def test_every_task_has_the_limit_on_open_files_of_the_process_that_launches_it(
    state_dir: Path,
) -> None:
    program = """
        import resource
        import ipytaskpersist as bg
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        tasks = [bg.background("ulimit -n", shell=True) for _ in range(50)]
        assert all(task.wait(30) for task in tasks)
        print({task.stdout for task in tasks})
    """
    assert run_program(program, state_dir).stdout == "{'200\\n'}\n"


def test_more_tasks_run_at_once_than_the_launching_process_may_open_files(
    state_dir: Path,
) -> None:
    program = """
        import resource
        import ipytaskpersist as bg
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        tasks = [bg.background("ulimit -n; exec sleep 60", shell=True) for _ in range(150)]
        while not all(task.stdout or task.done() for task in tasks):
            pass
        print({(task.state.value, task.reason, task.stdout) for task in tasks})
        for task in tasks:
            task.cancel()
        assert all(task.wait(30) for task in tasks)
    """
    assert run_program(program, state_dir).stdout == "{('running', None, '100\\n')}\n"


def test_bash_runs_a_command_unless_another_shell_is_named(
    session: BackgroundTasks, folder: Path
) -> None:
    """People type for the shell of their terminal: `source`, `[[`, arrays, `pipefail`."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (folder / "five").write_text("five=5\n")
    script = (
        "set -o pipefail; source ./five; numbers=(4 $five 6)\n"
        "[[ abc == a* ]] && echo ${numbers[1]}; false | true"
    )
    for options in ({}, {"shell_path": "bash"}, {"shell_path": bash}):
        task = finish(script, cwd=folder, **options)
        assert (task.stdout, task.exit_code) == ("5\n", 1)
    assert f"{bash} -c" in details(task)
    session.shell_path = "/bin/sh"
    assert "/bin/sh -c" in details(finish("echo 'in the shell of the setting'"))
    session.shell_path = ""


def details(task: Task) -> str:
    return task_details.as_text(manager.current(), manager.current().tasks.find(task.id))


def test_rerun_runs_a_command_again_with_the_same_options(
    session: BackgroundTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finish("pwd; echo $GIVEN; test -t 1", cwd=tmp_path, env={"GIVEN": "a=b"}, pty=True)
    monkeypatch.chdir("/")
    again = first.rerun()
    assert (
        what_it_left(again) == what_it_left(first) == Ran(f"{tmp_path}\r\na=b\r\n".encode(), b"", 0)
    )


# Its time.


def test_a_task_whose_time_is_over_fails_and_keeps_what_it_printed(
    session: BackgroundTasks,
) -> None:
    task = ended(shell("echo before; sleep 60; echo never", timeout=1), timeout=10)
    assert (task.state, task.reason) == (TaskState.FAILED, "timed out after 1 s")
    assert (task.stdout, task.exit_code) == ("before\n", -signal.SIGTERM)
    elapsed_s = (task.ended_at - task.started_at).total_seconds()  # type: ignore[operator]
    assert 1 <= elapsed_s < 4


def test_processes_of_a_task_whose_time_is_over_are_gone(session: BackgroundTasks) -> None:
    task = shell("sleep 60 & setsid sleep 60 & sleep 60 & wait", timeout=0.5)
    leader = psutil.Process(process_of(task).pid)
    assert ended(task).reason == "timed out after 0.5 s"
    assert not leader.is_running()
    assert not of_task(task.id)


def of_task(task_id: str) -> list[psutil.Process]:
    """The processes whose environment says that they belong to a task."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == task_id:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_task_that_ends_in_time_is_not_touched(session: BackgroundTasks) -> None:
    task = finish("sleep 0.2; echo done", timeout=30)
    assert (task.state, task.stdout) == (TaskState.COMPLETED, "done\n")


# What cannot be launched.


@pytest.mark.parametrize(
    "options",
    [
        {"cwd": "/nowhere/at/all"},
        {"cwd": "/etc/passwd"},
        {"cwd": "with\0null"},
        {"shell_path": "/nowhere/sh"},
        {"shell_path": "no-such-shell"},
        {"shell_path": "/tmp"},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"inputs": ["x"]},
        {"process": True},
    ],
    ids=str,
)
def test_what_cannot_be_launched_is_said_in_one_line_and_makes_no_task(
    session: BackgroundTasks, options: dict[str, object]
) -> None:
    before = number_of_tasks()
    with pytest.raises(BackgroundError) as caught:
        shell("echo never", **options)
    assert str(caught.value).isprintable()
    assert number_of_tasks() == before


def number_of_tasks() -> int:
    return store().tasks.count(Selection())


@pytest.mark.parametrize("source", ["", " ", "\n\n", "\t"], ids=repr)
def test_an_empty_command_makes_no_task(session: BackgroundTasks, source: str) -> None:
    before = number_of_tasks()
    with pytest.raises(BackgroundError):
        shell(source)
    assert number_of_tasks() == before


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("echo a\0b", {}),
        ("echo \ud800", {}),
        ("echo", {"env": {"A=B": "value"}}),
        ("echo", {"env": {"A": "null \0"}}),
        ("echo", {"env": {"A\0B": "value"}}),
        ("echo", {"env": {"A": "\ud800"}}),
        ("echo", {"env": {"A": 1}}),
        ("echo", {"env": {"A": "x" * 200_000}}),
        ("echo", {"env": {f"A{number}": "x" * 100_000 for number in range(100)}}),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_command_that_no_system_can_run_harms_no_other_task(
    session: BackgroundTasks, source: str, options: dict[str, object]
) -> None:
    other = shell("sleep 30")
    until(lambda: other.state is TaskState.RUNNING)
    supervisor_before = supervisor()
    said = refusal(source, options)
    assert said
    assert "\n" not in said
    assert finish("echo after").stdout == "after\n"
    assert other.state is TaskState.RUNNING
    assert supervisor().key == supervisor_before.key
    other.cancel()
    ended(other)


def refusal(source: str, options: dict[str, object]) -> str:
    """What is said of a command that cannot run: at its launch, or as the task's reason."""
    try:
        task = ended(shell(source, **options))
    except BackgroundError as error:
        return str(error)
    assert task.state is TaskState.FAILED
    return task.reason or ""


def test_a_directory_that_is_gone_when_the_task_begins_is_named(
    session: BackgroundTasks, tmp_path: Path
) -> None:
    folder = tmp_path / "short-lived"
    folder.mkdir()
    overseer = psutil.Process(supervisor().pid)
    overseer.suspend()
    try:
        task = shell("pwd", cwd=folder)
        folder.rmdir()
    finally:
        overseer.resume()
    assert ended(task).state is TaskState.FAILED
    assert task.reason == f"the directory {folder} does not exist any more"


# From a notebook.


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    """One kernel for the cells that are shell commands."""
    place = tmp_path_factory.mktemp("cells")
    try:
        with NotebookKernel(place / "state", notebook=place / "cells.ipynb") as kernel:
            kernel.run("%load_ext ipytaskpersist\nimport ipytaskpersist as bg\nword = 'two words'")
            yield kernel
    finally:
        end_processes_of(place / "state")


def launched(kernel: NotebookKernel, cell: str) -> dict[str, object]:
    """What `show` says of the task of a cell, and its streams, after its end."""
    kernel.run(f"%%background {cell}")
    kernel.run("task = bg.task()\nassert task.wait(30)")
    shown = json.loads(kernel.run("%bg_show --json").stream("stdout"))
    texts = kernel.run("import json; print(json.dumps([task.stdout, task.stderr]))")
    stdout, stderr = json.loads(texts.stream("stdout"))
    return {**shown, "stdout": stdout, "stderr": stderr}


@pytest.mark.parametrize(
    ("cell", "stdout"),
    [
        ("\n%%bash\nnumbers=(1 2); echo ${numbers[1]}", "2\n"),
        ("--shell\n%%bash\necho $0", "bash\n"),
        ("--shell\n!printf 'not a negation'", "not a negation"),
        ("\n%%sh\necho $((6 * 7))", "42\n"),
        ("\n%%script python3\nprint('from', 'python')", "from python\n"),
        ("\n%%bash -s one two\necho $2", "two\n"),
        ("\n!echo line", "line\r\n"),
        ("\n!echo {word}\n!echo $((1 + 1))", "two words\r\n2\r\n"),
        ("--shell\necho plain; test -t 1", "plain\n"),
        ("--shell --pty\ntest -t 1 && echo terminal", "terminal\r\n"),
        ("--shell --shell-path bash\n[[ a == a ]] && echo bash", "bash\n"),
        ("--shell --cwd /\npwd", "/\n"),
        ("--shell --env 'A=a b' --env B=c=d --env C=ü\necho \"$A,$B,$C\"", "a b,c=d,ü\n"),
    ],
    ids=lambda value: value.strip()[:25],
)
def test_a_cell_that_is_a_shell_command_runs_in_a_process(
    notebook: NotebookKernel, cell: str, stdout: str
) -> None:
    task = launched(notebook, cell)
    assert (task["kind"], task["runner"], task["stdout"]) == ("shell", "process", stdout)


@pytest.mark.parametrize(
    "cell",
    [
        "\n%%bash --out captured\necho text",
        "\n%%script --no-raise-error false",
        "\n!echo line\nx = 1",
        "\nlines = !echo line",
        "--thread\n!echo line",
        "--thread\n%%bash\necho line",
    ],
    ids=lambda value: value.strip()[:25],
)
def test_a_cell_that_reaches_into_the_notebook_stays_python_in_a_thread(
    notebook: NotebookKernel, cell: str
) -> None:
    task = launched(notebook, cell)
    assert (task["kind"], task["runner"]) == ("python", "thread")


def test_what_a_script_captures_in_a_thread_is_in_the_notebook(notebook: NotebookKernel) -> None:
    launched(notebook, "\n%%bash --out captured\necho text")
    assert notebook.run("print(captured, end='')").stream("stdout") == "text\n"


def test_a_cell_whose_time_is_over_fails(notebook: NotebookKernel) -> None:
    task = launched(notebook, "--shell --timeout 0.5\necho before; sleep 60")
    assert (task["state"], task["reason"]) == ("failed", "timed out after 0.5 s")
    assert task["stdout"] == "before\n"


@pytest.mark.parametrize(
    "flags",
    [
        "--shell --cwd /nowhere/at/all", "--shell --shell-path no-such-shell",
        "--shell --timeout 0", "--shell --timeout soon", "--shell --env A", "--shell --env =b",
        "--shell --process", "--shell --in x", "--thread --cwd /", "--pty", "--unknown",
    ],
)  # fmt: skip
def test_a_flag_that_makes_no_sense_is_said_in_one_line_and_makes_no_task(
    notebook: NotebookKernel, flags: str
) -> None:
    count = "print(len(bg.tasks()))"
    before = notebook.run(count).text
    cell = notebook.run(f"%%background {flags}\necho never", check=False)
    assert len(cell.text.strip().splitlines()) == 1, cell.text
    assert "Traceback" not in cell.text
    assert notebook.run(count).text == before
