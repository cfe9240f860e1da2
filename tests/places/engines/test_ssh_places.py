"""Tasks on a machine that is reached by ssh: a real server on loopback."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import Link, SshServer, free_port, need
from kernels import until

from ipytaskpersist.places import ssh_bridge
from ipytaskpersist.places.connecting import check

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ssh's pipes need POSIX here")

Connect = Callable[..., Link]
MakeServer = Callable[..., SshServer]


def refusal(link: Connect, spec: dict[str, Any]) -> str:
    """What a place that cannot be reached answers."""
    answer, data = link(spec).ask("hello")
    assert answer["unreachable"] is True
    assert data == b""
    return str(answer["error"])


# A task over there.


def test_the_agent_runs_over_there_with_nothing_installed(
    link: Connect, ssh_server: SshServer
) -> None:
    answer, _ = link(ssh_server.spec).ask("hello")
    assert answer["pid"] != os.getpid()
    assert answer["python"].startswith("3.")


def test_a_task_is_started_once_and_read_to_its_end(
    link: Connect, ssh_server: SshServer, tmp_path: Path
) -> None:
    far = link(ssh_server.spec)
    folder = str(tmp_path / "tasks" / "one task, größer")
    assert far.start(folder, "echo begun; sleep 0.2; echo ended >&2; exit 3")["started"]
    assert far.start(folder, "echo again")["already"]
    end = far.end_of(folder)
    assert (end.status, end.reason) == (3, None)
    assert far.printed(folder) == b"begun\n"
    assert far.printed(folder, b"e") == b"ended\n"


def test_a_task_is_ended_by_a_signal(link: Connect, ssh_server: SshServer, tmp_path: Path) -> None:
    far = link(ssh_server.spec)
    folder = str(tmp_path / "task")
    far.start(folder, "echo $$; exec sleep 600")
    until(lambda: far.read_on(folder))
    far.ask("signal", folder=folder, what="end")
    end = far.end_of(folder)
    assert (end.status, end.reason) == (-signal.SIGTERM, "asked")


def test_nothing_is_missing_after_connections_were_cut(
    link: Connect, ssh_server: SshServer, tmp_path: Path
) -> None:
    far = link(ssh_server.spec)
    folder = str(tmp_path / "task")
    far.start(folder, "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.01; done")
    for count in (30, 130, 230):
        until(lambda: far.read_on(folder) and far.printed(folder).count(b"\n") >= count)  # noqa: B023
        ssh_server.cut()
    far.end_of(folder)
    assert accepted(ssh_server) == 4
    assert far.printed(folder) == b"".join(b"%d\n" % number for number in range(400))


def test_a_server_that_is_back_is_found_again(
    link: Connect, ssh_server: SshServer, tmp_path: Path
) -> None:
    far = link(ssh_server.spec)
    folder = str(tmp_path / "task")
    far.start(folder, "echo here; sleep 1; echo still here")
    ssh_server.cut()
    ssh_server.stop()
    # The first answer may say that the connection was lost.
    until(lambda: "no ssh server answers" in far.ask("hello")[0].get("error", ""))
    ssh_server.start()
    until(lambda: "error" not in far.ask("hello")[0])
    far.end_of(folder)
    assert far.printed(folder) == b"here\nstill here\n"


def test_large_payloads_pass_both_ways(
    link: Connect, ssh_server: SshServer, tmp_path: Path
) -> None:
    far = link(ssh_server.spec)
    content = os.urandom(8 * 1024 * 1024)
    path = str(tmp_path / "payload")
    half = len(content) // 2
    assert "error" not in far.ask("put", content[:half], path=path, offset=0, done=False)[0]
    assert "error" not in far.ask("put", content[half:], path=path, offset=half, done=True)[0]
    received = b""
    while len(received) < len(content):
        _, data = far.ask("get", path=path, offset=len(received), at_most=4 * 1024 * 1024)
        assert data
        received += data
    assert received == content


def test_the_next_request_ends_the_wait_for_news(
    link: Connect, ssh_server: SshServer, tmp_path: Path
) -> None:
    far = link(ssh_server.spec)
    folder = str(tmp_path / "task")
    far.start(folder, "exec sleep 600")
    far.send("read", tasks=[[folder, 0]], wait_s=600.0)
    far.ask("signal", folder=folder, what="end")
    assert far.receive()[0]["state"] == "running"
    assert far.end_of(folder).reason == "asked"


# Login shells.


@pytest.mark.parametrize("shell", ["sh", "bash", "fish", "csh"])
def test_any_login_shell_starts_the_agent(
    link: Connect, make_ssh_server: MakeServer, shell: str
) -> None:
    server = make_ssh_server(shell=shell)
    assert "error" not in link(server.spec).ask("hello")[0]


def test_what_a_login_shell_prints_is_left_out(
    link: Connect, make_ssh_server: MakeServer, tmp_path: Path
) -> None:
    """As a greeting in `.bashrc` does it."""
    shell = tmp_path / "loud"
    shell.write_text(
        "#!/bin/sh\nseq 5000\nprintf 'Welcome \\033[1mhome\\n'\necho oh >&2\nexec sh \"$@\"\n"
    )
    shell.chmod(0o755)
    server = make_ssh_server(shell=str(shell))
    assert "error" not in link(server.spec).ask("hello")[0]


def test_a_login_shell_that_prints_without_end_is_given_up(
    link: Connect, make_ssh_server: MakeServer, tmp_path: Path
) -> None:
    shell = tmp_path / "endless"
    shell.write_text("#!/bin/sh\nexec yes\n")
    shell.chmod(0o755)
    words = refusal(link, make_ssh_server(shell=str(shell)).spec)
    assert words == "far: its login shell prints without end, instead of starting the agent"


@pytest.mark.parametrize("shell", ["sh", "bash", "fish", "csh"])
def test_a_python_that_is_not_there_is_named(
    link: Connect, make_ssh_server: MakeServer, shell: str
) -> None:
    server = make_ssh_server(shell=shell)
    words = refusal(link, {**server.spec, "python": "python3.99"})
    assert words.startswith(
        "far has no 'python3.99' that a login shell finds; set 'python' to the path of a Python "
        "3.9 or newer over there ("
    )


def test_a_python_that_is_too_old_is_named(
    link: Connect, ssh_server: SshServer, tmp_path: Path
) -> None:
    old = tmp_path / "old python"
    old.write_text(
        "#!/bin/sh\n"
        "prelude='import sys; sys.version_info = (3, 8, 2); sys.version = \"3.8.2 x\"'\n"
        f'exec {sys.executable} -c "$prelude\n$2"\n'
    )
    old.chmod(0o755)
    words = refusal(link, {**ssh_server.spec, "python": f"'{old}'"})
    assert words == (
        "far: ipytaskpersist needs Python 3.9 there and found 3.8.2; set 'python' to another one"
    )


def test_a_program_that_is_no_python_is_quoted(link: Connect, ssh_server: SshServer) -> None:
    words = refusal(link, {**ssh_server.spec, "python": "echo 'I am no Python' >&2; exit 9;"})
    assert words == "far did not start the agent, exit status 9 (I am no Python)"


# Connections that fail.


def test_an_unknown_host_key_is_not_accepted(link: Connect, ssh_server: SshServer) -> None:
    (ssh_server.folder / "known_hosts").write_text("")
    words = refusal(link, ssh_server.spec)
    assert words.startswith(
        "the host key of far is not known here; type 'ssh far' in a terminal, and confirm its key"
    )
    assert (ssh_server.folder / "known_hosts").read_text() == ""


def test_a_changed_host_key_is_not_accepted(link: Connect, ssh_server: SshServer) -> None:
    ssh_server.trust("stranger_key.pub")
    assert refusal(link, ssh_server.spec).startswith(
        "far shows another host key than the one that is known, so it may not be that host"
    )


def test_a_key_that_is_refused_is_said(link: Connect, ssh_server: SshServer) -> None:
    ssh_server.write_config(key="stranger_key")
    assert refusal(link, ssh_server.spec).startswith(
        "far does not let you in without a password; set up a key"
    )


def test_a_port_where_nothing_answers_is_said(link: Connect, ssh_server: SshServer) -> None:
    words = refusal(link, {**ssh_server.spec, "port": free_port()})
    assert words.startswith("far is there, but no ssh server answers; correct 'port' (ssh: ")


def test_a_host_that_does_not_exist_is_said(link: Connect) -> None:
    need("ssh", "ssh")
    words = refusal(link, {"name": "far", "kind": "ssh", "host": "nowhere.invalid"})
    assert words.startswith("there is no host of the name nowhere.invalid; correct 'host' (ssh: ")


def test_a_missing_ssh_is_said(
    link: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = refusal(link, {"name": "far", "kind": "ssh", "host": "far"})
    assert words == "there is no program 'ssh' here; install OpenSSH's client"


def test_a_server_that_refuses_is_not_asked_again_at_once(
    link: Connect, ssh_server: SshServer
) -> None:
    """Servers lock out those who try too often."""
    ssh_server.write_config(key="stranger_key")
    far = link(ssh_server.spec)
    for _ in range(20):
        assert "does not let you in" in far.ask("hello")[0]["error"]
    refused = (ssh_server.folder / "log").read_text().count("Connection closed by authenticating")
    assert refused <= 2


# The user's own settings.


def test_what_a_host_is_set_to_do_for_people_is_not_in_the_way(
    link: Connect, ssh_server: SshServer
) -> None:
    taken = ssh_server.port
    ssh_server.write_config(
        "RemoteCommand tmux attach",
        "RequestTTY force",
        f"LocalForward {taken} 127.0.0.1:1",
        "ExitOnForwardFailure yes",
        "PermitLocalCommand yes",
        "LocalCommand echo hello",
    )
    assert "error" not in link(ssh_server.spec).ask("hello")[0]


def test_connections_share_a_master_that_stays(
    link: Connect, ssh_server: SshServer, short_dir: Path
) -> None:
    state = short_dir / "state"
    first, second = link(ssh_server.spec, state), link(ssh_server.spec, state)
    assert "error" not in first.ask("hello")[0]
    first.close()
    assert "error" not in second.ask("hello")[0]
    assert accepted(ssh_server) == 1
    (control,) = (state / "ssh").iterdir()
    assert control.is_socket()
    assert stat.S_IMODE((state / "ssh").stat().st_mode) == 0o700
    subprocess.run(
        ["ssh", "-F", ssh_server.config, "-S", control, "-O", "exit", "far"],
        check=True, capture_output=True,
    )  # fmt: skip


def accepted(server: SshServer) -> int:
    return (server.folder / "log").read_text().count("Accepted publickey")


def test_a_master_connection_of_the_users_own_is_used(
    link: Connect, ssh_server: SshServer, short_dir: Path
) -> None:
    """Where a second factor is asked for, it is the only way in."""
    own = short_dir / "own"
    ssh_server.write_config("ControlMaster auto", f"ControlPath {own}")
    with subprocess.Popen(
        ["ssh", "-F", ssh_server.config, "-M", "-N", "far"], stdin=subprocess.DEVNULL
    ) as master:
        until(own.exists)
        ssh_server.write_config("ControlMaster auto", f"ControlPath {own}", key="stranger_key")
        assert "error" not in link(ssh_server.spec, short_dir / "state").ask("hello")[0]
        master.terminate()


def test_a_path_too_long_for_a_socket_costs_only_the_sharing(
    link: Connect, ssh_server: SshServer, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    state = short_dir / ("long" * 25)
    assert "error" not in link(ssh_server.spec, state).ask("hello")[0]
    assert list(state.iterdir()) == []


def test_options_of_the_user_come_first() -> None:
    need("ssh", "ssh")
    spec = check(
        {"name": "far", "kind": "ssh", "host": "far", "options": ["-o", "ConnectTimeout=3"]}
    )
    command = ssh_bridge.ssh_command(spec, Path("/nonexistent"), b"")
    asked = subprocess.run(
        [*command[:1], "-G", *command[1:]], capture_output=True, text=True, check=True
    ).stdout
    assert "connecttimeout 3\n" in asked
    assert "batchmode yes\n" in asked
    assert not re.search("stricthostkeychecking (no|off|false)", asked)


# Its end.


def test_the_bridge_ends_with_its_supervisor_and_ssh_with_it(
    link: Connect, ssh_server: SshServer
) -> None:
    far = link(ssh_server.spec)
    far.ask("hello")
    far.close()
    assert far.process.returncode == 0
    until(lambda: not ssh_server.connections(), message="no connection left")


def test_a_connection_that_is_silent_is_given_up(link: Connect, ssh_server: SshServer) -> None:
    far = link(ssh_server.spec, SILENCE_S=1.0)
    hello, _ = far.ask("hello")
    os.kill(hello["pid"], signal.SIGSTOP)
    try:
        answer, _ = far.ask("hello")
        assert answer["error"] == "the connection to far was lost (it has not answered for 1 s)"
        assert "error" not in far.ask("hello")[0]
    finally:
        os.kill(hello["pid"], signal.SIGKILL)
