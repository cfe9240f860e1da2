"""Tasks beside the workers of a Dask cluster: a real scheduler and real workers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import DaskCluster, Link
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
    assert far.ask("forget", folders=[folder])[0] == {"kept": {}}
    assert far.state_of(folder) == "absent"
    assert not Path(folder).exists()
