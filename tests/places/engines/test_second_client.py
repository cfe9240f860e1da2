"""`jupyter bg --at`: the tasks of another machine, over a real ssh server on loopback."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import SshServer
from histories import add_task
from programs import Finished, environment, run_command

from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.places.second_client import spec_of
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.task_store import TaskStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")

At = Callable[..., Finished]


@pytest.fixture
def at(ssh_server: SshServer, store: TaskStore, tmp_path: Path) -> At:
    """Run a command line on a machine whose store is `store`, from one with another store."""
    own = tmp_path / "own"
    python = f"env IPYTASKPERSIST_DIR={shlex.quote(str(store.directory.root))} {sys.executable}"
    places = {"far": {**ssh_server.spec, "python": python}, "bare": {**ssh_server.spec}}
    for name, place in places.items():
        del place["name"]
        if name == "bare":
            place["python"] = f"{sys.executable} -S"
    folder = Path(environment(own)["IPYTHONDIR"]) / "profile_default"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ipython_config.py").write_text(f"c.BackgroundTasks.places = {places!r}\n")

    def run(*words: str, place: str = "far") -> Finished:
        return run_command(own, "--at", place, *words)

    return run


def test_commands_show_and_change_what_is_there(
    at: At, ssh_server: SshServer, store: TaskStore
) -> None:
    session = store.sessions.begin(session_identity(None))
    task = add_task(store, session, name="it's $HOME; `far`")
    (listed,) = json.loads(at("list", "--all", "--json").stdout)["tasks"]
    assert listed["id"] == task.id
    assert listed["name"] == "it's $HOME; `far`"
    assert at("delete", task.id, "--yes").returncode == 0
    assert store.tasks.get(task.key) is None

    refused = at("show", "no $such; 'task'")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("jupyter bg: no task 'no $such; 'task''")
    assert at("nonsense").returncode == 2
    bare = at("list", place="bare")
    assert bare.returncode == 1
    assert "this Python does not have ipytaskpersist: " in bare.stderr
    ssh_server.cut()
    ssh_server.stop()
    gone = at("list")
    assert gone.returncode == 1
    assert gone.stderr.endswith("jupyter bg: no connection with far; type 'ssh far' to see why\n")


def test_an_address_is_a_host_with_a_user_a_port_and_a_python() -> None:
    spec = spec_of("ssh://ann@gpu1:2222/opt/my%20env/bin/python", {})
    assert (spec["host"], spec["user"], spec["port"]) == ("gpu1", "ann", 2222)
    assert spec["python"] == "'/opt/my env/bin/python'"
    assert spec_of("ssh://gpu1", {})["python"] == "python3"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("gpu2", "or one of lab, not 'gpu2'; %bg_config places"),
        ("ssh://", "--at takes ssh://"),
        ("ssh://gpu1:99999", "--at takes ssh://"),
        ("ssh://ann:secret@gpu1", "--at takes ssh://"),
        ("https://gpu1", "--at takes ssh://"),
        ("lab", "its tasks are kept here"),
    ],
)
def test_what_is_no_machine_is_refused(target: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        spec_of(target, {"lab": {"kind": "slurm"}})
