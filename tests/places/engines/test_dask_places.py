"""Tasks beside the workers of a Dask cluster: a real scheduler and real workers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from engines import DaskCluster, Link, end, free_port, need_dask
from kernels import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the agent needs POSIX")

Connect = Callable[..., Link]
ENDLESS = "exec sleep 600"


def refusal(link: Connect, spec: dict[str, Any]) -> str:
    answer, data = link(spec).ask("hello")
    assert answer["unreachable"] is True
    assert data == b""
    return str(answer["error"])


def place_of(cluster: DaskCluster, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {**cluster.spec, "folder": str(tmp_path / "tasks"), **more}


def test_a_task_runs_beside_a_worker_and_is_read_to_its_end(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker()
    far = link(place_of(dask_cluster, tmp_path))
    until(lambda: far.ask("hello")[0]["workers"])
    assert far.ask("hello")[0]["python"].startswith("3.")
    folder = str(tmp_path / "tasks" / "abcdefgh-1")
    started = far.start(folder, "echo begun; sleep 0.2; echo ended >&2; exit 3")
    assert started["started"]
    assert started["worker"].startswith("tcp://127.0.0.1:")
    assert far.start(folder, "echo again")["already"]
    end = far.end_of(folder)
    assert (end.status, end.reason) == (3, None)
    assert far.printed(folder) == b"begun\n"
    assert far.printed(folder, b"e") == b"ended\n"
    until(lambda: far.state_of(folder) == "ended")
    assert far.ask("forget", folders=[folder])[0] == {"kept": {}}
    assert far.state_of(folder) == "absent"
    assert not Path(folder).exists()


def running(link: Connect, cluster: DaskCluster, tmp_path: Path, **more: Any) -> Link:
    """A connection with a cluster that has a worker."""
    far = link(place_of(cluster, tmp_path, **more))
    until(lambda: far.ask("hello")[0].get("workers"), message="a worker")
    return far


def folder_of(tmp_path: Path, number: int = 1) -> str:
    return str(tmp_path / "tasks" / f"abcdefgh-{number}")


def numbers(file: Path) -> str:
    """A script that notes in a file that it was started, and prints numbers for two seconds."""
    return (
        f"echo started >> '{file}'; i=0; "
        "while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    )


ALL_NUMBERS = b"".join(b"%d\n" % number for number in range(200))


def pending(far: Link, folder: str, script: str = "echo done") -> str:
    """Ask for a start that has to wait, and return why."""
    answer, _ = far.ask("start", folder=folder, brief=far.brief(script), detach=True)
    assert answer.get("pending"), answer
    return str(answer["why"])


# Waiting for a worker.


def test_a_cluster_without_workers_is_waited_for(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    far = link(place_of(dask_cluster, tmp_path))
    assert far.ask("hello")[0] == {"workers": 0}
    folder = folder_of(tmp_path)
    assert pending(far, folder) == "the cluster has no worker"
    assert far.look(folder) == {"state": "pending", "size": 0, "why": "the cluster has no worker"}
    dask_cluster.add_worker()
    assert far.start(folder, "echo done")["started"]
    far.end_of(folder)
    assert far.printed(folder) == b"done\n"


def test_a_worker_is_not_given_more_tasks_than_it_has_room_for(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker("--resources", "GPU=1")
    far = running(link, dask_cluster, tmp_path, resources={"GPU": 1})
    first, second = folder_of(tmp_path, 1), folder_of(tmp_path, 2)
    assert far.start(first, ENDLESS)["started"]
    assert pending(far, second) in (
        "all workers are busy",
        "no worker of the cluster offers {'GPU': 1}",
    )
    far.ask("signal", folder=first, what="end")
    far.end_of(first)
    assert far.start(second, "echo done")["started"]
    far.end_of(second)


def test_resources_that_no_worker_has_are_named(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker()
    far = running(link, dask_cluster, tmp_path, resources={"GPU": 2})
    folder = folder_of(tmp_path)
    assert pending(far, folder) == "no worker of the cluster offers {'GPU': 2}"
    dask_cluster.add_worker("--resources", "GPU=2")
    assert far.start(folder, "echo done")["started"]


def test_a_named_worker_is_taken(link: Connect, dask_cluster: DaskCluster, tmp_path: Path) -> None:
    dask_cluster.add_worker(name="left")
    dask_cluster.add_worker(name="right")
    far = link(place_of(dask_cluster, tmp_path, workers=["right"]))
    until(lambda: far.ask("hello")[0].get("workers") == 2)
    workers = {far.start(folder_of(tmp_path, each), "true")["worker"] for each in range(3)}
    assert len(workers) == 1


def test_a_task_that_is_cancelled_while_it_waits_is_never_started(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker()
    far = running(link, dask_cluster, tmp_path)
    first, second, third = (folder_of(tmp_path, each) for each in range(3))
    far.start(first, ENDLESS)
    pending(far, second)
    assert far.ask("signal", folder=second, what="end")[0]["state"] == "absent"
    far.ask("signal", folder=first, what="end")
    far.end_of(first)
    far.start(third, "echo done")
    far.end_of(third)
    assert far.state_of(second) == "absent"
    assert not Path(second).exists()


def test_a_worker_that_was_chosen_is_released(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker()
    far = running(link, dask_cluster, tmp_path)
    first, second = folder_of(tmp_path, 1), folder_of(tmp_path, 2)
    bring(far, first, b"content")
    assert far.look(first)["why"].endswith("is ready for it")
    far.ask("signal", folder=first, what="end")
    assert far.start(second, "echo done")["started"]


def bring(far: Link, folder: str, content: bytes) -> None:
    """Bring a file for a task, as soon as there is a worker."""

    def put() -> bool:
        answer, _ = far.ask(
            "put", content, path=f"{folder}/input", within=str(Path(folder).parent), done=True
        )
        assert "error" not in answer, answer
        return "size" in answer

    until(put)


def test_files_are_brought_to_the_worker_and_fetched_from_there(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker()
    far = running(link, dask_cluster, tmp_path)
    folder = folder_of(tmp_path)
    bring(far, folder, b"content")
    far.start(folder, f"tr a-z A-Z < '{folder}/input' > '{folder}/output'")
    far.end_of(folder)
    ((path, size, _changed),) = far.ask("sizes", pattern=f"{folder}/outpu?")[0]["files"]
    assert (path, size) == (f"{folder}/output", 7)
    assert far.ask("get", path=path, offset=3, at_most=2)[1] == b"TE"


# What dies.


def test_a_task_outlives_its_worker_and_is_not_started_again(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    """Dask itself runs what the dead worker ran once more."""
    workers = [dask_cluster.add_worker(), dask_cluster.add_worker()]
    far = link(place_of(dask_cluster, tmp_path))
    until(lambda: far.ask("hello")[0].get("workers") == 2)
    folder, file = folder_of(tmp_path), tmp_path / "started"
    address = far.start(folder, numbers(file))["worker"]
    until(lambda: far.read_on(folder))
    kill(next(each for each in workers if listens(each, address)))
    end_ = far.end_of(folder)
    assert (end_.status, end_.reason) == (0, None)
    assert far.printed(folder) == ALL_NUMBERS
    assert file.read_text() == "started\n"


def listens(worker: subprocess.Popen[bytes], address: str) -> bool:
    port = int(address.rpartition(":")[2])
    return any(each.laddr.port == port for each in psutil.Process(worker.pid).net_connections())


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_no_worker_is_occupied_for_a_task_that_is_forgotten(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    """Dask occupies another worker if one dies before it has noticed the end of its task."""
    worker = dask_cluster.add_worker("--resources", "GPU=1")
    far = running(link, dask_cluster, tmp_path, resources={"GPU": 1})
    first, second = folder_of(tmp_path, 1), folder_of(tmp_path, 2)
    far.start(first, "true")
    far.end_of(first)
    assert far.ask("forget", folders=[first])[0] == {"kept": {}}
    kill(worker)
    dask_cluster.add_worker("--resources", "GPU=1")
    until(lambda: far.start(second, "echo done").get("started"))
    far.end_of(second)


def test_a_host_without_a_worker_is_said_and_read_when_there_is_one_again(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    worker = dask_cluster.add_worker()
    far = running(link, dask_cluster, tmp_path)
    folder, file = folder_of(tmp_path), tmp_path / "started"
    far.start(folder, numbers(file))
    kill(worker)
    words = (
        "no worker is left on 127.0.0.1, where the task is; it goes on there, and is read when a "
        "worker is started on that host"
    )
    until(lambda: far.look(folder).get("error") == words)
    assert far.state_of(folder) == "unknown"
    answer, _ = far.ask("signal", folder=folder, what="end")
    assert answer["unreachable"]
    dask_cluster.add_worker()
    far.end_of(folder)
    assert far.printed(folder) == ALL_NUMBERS
    assert file.read_text() == "started\n"


def test_nothing_is_missing_after_the_connection_was_killed(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker()
    first = running(link, dask_cluster, tmp_path)
    folder, file = folder_of(tmp_path), tmp_path / "started"
    first.start(folder, numbers(file))
    until(lambda: first.read_on(folder))
    kill(first.process)
    second = link(place_of(dask_cluster, tmp_path))
    assert second.start(folder, numbers(file))["already"]
    second.end_of(folder)
    assert second.printed(folder) == ALL_NUMBERS
    assert file.read_text() == "started\n"


def test_a_worker_stays_occupied_without_the_connection(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker()
    first = running(link, dask_cluster, tmp_path)
    folder = folder_of(tmp_path)
    first.start(folder, ENDLESS)
    kill(first.process)
    second = link(place_of(dask_cluster, tmp_path))
    assert pending(second, folder_of(tmp_path, 2)) == "all workers are busy"
    second.ask("signal", folder=folder, what="end")
    assert second.end_of(folder).reason == "asked"
    assert second.start(folder_of(tmp_path, 2), "echo done")["started"]


def test_a_task_outlives_the_scheduler(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    dask_cluster.add_worker()
    far = running(link, dask_cluster, tmp_path)
    folder, file = folder_of(tmp_path), tmp_path / "started"
    far.start(folder, numbers(file))
    dask_cluster.stop_scheduler()
    error = until(lambda: far.ask("look", folders=[folder])[0].get("error"))
    assert dask_cluster.address in error
    dask_cluster.start_scheduler()
    dask_cluster.add_worker()
    far.end_of(folder)
    assert far.printed(folder) == ALL_NUMBERS
    assert file.read_text() == "started\n"


def test_a_worker_can_be_ended_while_it_is_occupied(
    link: Connect, dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    worker = dask_cluster.add_worker()
    far = running(link, dask_cluster, tmp_path)
    far.start(folder_of(tmp_path), ENDLESS)
    end(worker)
    assert worker.returncode != -signal.SIGKILL
    dask_cluster.add_worker()
    until(lambda: "error" not in far.ask("signal", folder=folder_of(tmp_path), what="kill")[0])
    assert far.end_of(folder_of(tmp_path)).reason == "asked"


# A cluster that cannot be reached.


def test_an_address_where_no_scheduler_answers_is_said(link: Connect) -> None:
    need_dask()
    address = f"tcp://127.0.0.1:{free_port()}"
    words = refusal(link, {"name": "cluster", "kind": "dask", "address": address})
    assert words.startswith(f"no Dask scheduler answers at {address}; is it running? (")


def test_another_version_is_refused_in_words(link: Connect, dask_cluster: DaskCluster) -> None:
    """The scheduler only says that it is old: one that is would have to be fetched."""
    dask_cluster.stop_scheduler()
    dask_cluster.start_scheduler(before=OLD)
    words = refusal(link, dask_cluster.spec)
    dask_cluster.stop_scheduler()
    assert re.fullmatch(
        rf"the Dask scheduler at {dask_cluster.address} runs distributed 2024\.8\.0, and this "
        r"environment has [\d.]+; they must be of the same year: pip install "
        r"'distributed==2024\.8\.0' here, or update the cluster",
        words,
    )


OLD = """
import distributed.node as node
real = node.get_versions
def get_versions(*words, **more):
    found = real(*words, **more)
    found["packages"]["distributed"] = "2024.8.0"
    return found
node.get_versions = get_versions
"""


def test_a_missing_dask_is_said(link: Connect, tmp_path: Path) -> None:
    spec = {"name": "cluster", "kind": "dask", "address": "tcp://127.0.0.1:1"}
    words = str(link(spec, hidden="distributed").ask("hello")[0]["error"])
    assert words.startswith("Dask is not installed here (")
    assert words.endswith("): pip install 'ipytaskpersist[dask]'")
