"""Tasks that ask for CPUs, memory or GPUs: they start when these are free, and keep to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from kernels import NotebookKernel, until

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.runners import control_groups, gpus, memory_groups
from ipytaskpersist.runners.machine import MachineReader
from ipytaskpersist.runners.machine_limits import CONTROL_GROUPS
from ipytaskpersist.store.booking import Booking, Gpu

GB = 10**9
LIBRARY = Path(__file__).parents[1] / "helpers" / "nvml.c"
HOLDS = "x = bytearray(b'1' * {size}); time.sleep({seconds})"


class Shared:
    """A kernel whose tasks ask for parts of the machine."""

    def __init__(self, kernel: NotebookKernel, folder: Path) -> None:
        self.kernel = kernel
        self.folder = folder

    def say(self, line: str) -> str:
        """What a command shows, or why it is refused."""
        cell = self.kernel.run(line, check=False)
        return cell.text + (cell.error[1] if cell.error else "")

    def launch(self, name: str, flags: str) -> str:
        """Launch a task that ends once there is a file of its name."""
        waits = f"until [ -e {self.folder / name} ]; do sleep 0.01; done"
        said = self.say(
            f"%%background --shell {flags} {name}\necho got $CUDA_VISIBLE_DEVICES\n{waits}"
        )
        assert "background task" in said or "pending" in said or "running" in said, said
        return said

    def end(self, *names: str) -> None:
        """Let tasks end."""
        for name in names:
            (self.folder / name).touch()

    def task(self, name: str) -> dict[str, Any]:
        listed = json.loads(self.say("%bg_list --all --json --limit 1000"))
        return {task["name"]: task for task in listed["tasks"]}[name]

    def await_state(self, name: str, state: str) -> dict[str, Any]:
        until(lambda: self.task(name)["state"] == state, 60, f"{name} {state}: {self.task(name)}")
        return self.task(name)

    def await_lack(self, name: str) -> str:
        """Wait until it is known why a task does not start, and return that."""
        until(lambda: (self.task(name)["waiting"] or {}).get("lacks"), 30, f"what {name} lacks")
        return str(self.task(name)["waiting"]["lacks"])


@pytest.fixture
def shared(make_kernel: Callable[..., NotebookKernel], tmp_path: Path) -> Shared:
    return Shared(make_kernel(notebook=tmp_path / "a.ipynb"), tmp_path)


def refuses(shared: Shared, lines: Mapping[str, str]) -> None:
    """Each of these lines is refused where it is typed, in these words."""
    for line, words in lines.items():
        assert words in shared.say(f"%%background {line} refused\npass"), line
    assert json.loads(shared.say("%bg_list --all --json"))["tasks"] == []


def test_what_the_machine_can_never_give_is_refused_where_it_is_launched(shared: Shared) -> None:
    refuses(shared, {
        "--shell --cpus 0": "--cpus is a number greater than 0, such as 4 or 0.5, not 0",
        "--shell --cpus nan": "--cpus is a number greater than 0",
        "--shell --cpus 100000": "--cpus 100000 is more than the",
        "--shell --memory 0G": "is a size greater than 0, with its unit, not '0G'; examples: 8G",
        "--shell --memory -8G": "examples: 8G, 500M, 1.5T, 16GiB",
        "--shell --memory 8": "with its unit, not '8'",
        "--shell --memory much": "not 'much'",
        "--process --memory 9000T": "--memory 9,000 TB is more than the",
        "--shell --memory auto": "no process or shell task of this name has ended",
        "--shell --gpus 1": "--gpus cannot be had:",
        "--shell --gpus 0": "--gpus is a number of GPUs, 1 or more, not 0",
        "--thread --cpus 1": "--cpus needs a process: add --process, or --shell",
        "--memory 1G": "--memory needs a process",
    })  # fmt: skip
    shared.say("import ipytaskpersist as bg")
    assert "--cpus needs a process" in shared.say("bg.submit(print, cpus=1)")
    assert "not '0 B'" in shared.say("bg.background('1', process=True, memory=0)")
    assert "--cpus 100000 is more" in shared.say("bg.submit(print, process=True, cpus=100000)")


def test_memory_is_waited_for_and_seen_everywhere(shared: Shared) -> None:
    """Two of these do not fit: each takes most of what is free."""
    part = int(psutil.virtual_memory().available * 0.8)
    shared.launch("first", f"--memory {part}B")
    running = shared.await_state("first", "running")
    assert running["memory_bytes"] == part
    shared.launch("second", f"--memory {part}B")
    shared.launch("third", "--memory 50M")
    shared.launch("plain", "")
    assert shared.await_lack("second").startswith("needs ")
    assert shared.await_lack("third").startswith("waits behind another")
    shared.await_state("plain", "running")
    words = shared.await_lack("second").partition(",")[0]
    for command in ("%bg_list", "%bg_show second", "%bg_groups"):
        assert words in " ".join(shared.say(command).split()), command
    card = shared.say("import ipytaskpersist as bg; bg.task('second')")
    assert words in card
    assert "has booked" in shared.say("%bg_show first")
    shared.end("first", "plain")
    shared.await_state("second", "running")
    shared.end("second", "third")
    shared.await_state("second", "completed")
    again = shared.say("%bg_rerun second")
    assert "second" in again
    assert shared.await_state("second", "completed")["memory_bytes"] == part


def test_a_task_that_uses_more_memory_than_it_may_is_ended_with_all_its_processes(
    shared: Shared,
) -> None:
    python = f"{sys.executable} -c"
    hold = f'{python} "import time; {HOLDS.format(size=200_000_000, seconds=600)}"'
    shared.say(f"%%background --shell --memory 300M tree\n{hold} & {hold} & wait")
    # What forks share counts once, however many there are.
    forks = "import os, time; x = bytearray(b'1' * 100_000_000)\n[os.fork() for _ in range(2)]\n"
    shared.say(f"%%background --process --fresh --memory 400M forks\n{forks}time.sleep(2)")
    tree = shared.await_state("tree", "failed")
    assert tree["reason"].startswith("used ")
    assert tree["reason"].endswith((" MB of its 300 MB", "more than its 300 MB"))
    assert not [each for each in psutil.process_iter() if _holds(each)]
    shared.await_state("forks", "completed")
    size = 80_000_000
    shared.say(f"%%background --shell hungry\n{python} \"x = b'1' * {size}\"")
    shared.await_state("hungry", "completed")
    peak = json.loads(shared.say("%bg_show hungry --json"))["process"]["peak_memory_bytes"]
    shared.say("%%background --shell --memory auto hungry\ntrue")
    limit = shared.task("hungry")["memory_bytes"]
    assert peak * 1.25 <= limit <= peak * 1.25 + 10**6


def test_the_system_stops_a_task_that_takes_much_memory_at_once(shared: Shared) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        group = memory_groups.hold("probe", other.pid, 10**9)
        other.kill()
    if group is None:
        pytest.skip("this user may make no control group")
    group.remove()
    burst = f"{sys.executable} -c \"import time; x = b'1' * 4_000_000_000; time.sleep(60)\""
    shared.say(f"%%background --shell --memory 200M burst\n{burst} & wait; echo not reached")
    burst_ = shared.await_state("burst", "failed")
    assert burst_["reason"].startswith("used ")
    assert burst_["reason"].endswith(" its 200 MB")
    shown = json.loads(shared.say("%bg_show burst --json"))
    # Beyond the limit between two looks, a task would have had ten times as much.
    assert shown["process"]["peak_memory_bytes"] < 250_000_000
    own = [*CONTROL_GROUPS.rglob(f"{memory_groups.PREFIX}{burst_['id']}")]
    until(lambda: not any(each.exists() for each in own), message="that its group is gone")


def _holds(process: psutil.Process) -> bool:
    try:
        return "b'1' * 200000000" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library that stands in for NVIDIA's driver, which no test machine has."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    pytest.importorskip("pynvml")
    folder = tmp_path_factory.mktemp("driver")
    made = ["-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(LIBRARY)]
    subprocess.run([compiler, *made], check=True)
    return folder


def test_gpus_are_lent_by_what_their_driver_says_is_free(
    make_kernel: Callable[..., NotebookKernel], driver: Path, tmp_path: Path
) -> None:
    file = tmp_path / "gpus"

    def have(*free: int) -> None:
        lines = [f"GPU-{index}a {24 * GB} {each * GB}\n" for index, each in enumerate(free)]
        (tmp_path / "new").write_text("".join(lines))
        (tmp_path / "new").rename(file)

    have(24, 9)
    processes = tmp_path / "processes"
    env = {"LD_LIBRARY_PATH": str(driver), "FAKE_GPUS": str(file)}
    env["FAKE_GPU_PROCESSES"] = str(processes)
    shared = Shared(make_kernel(notebook=tmp_path / "a.ipynb", env=env), tmp_path)
    refuses(shared, {
        "--shell --gpus 3": "--gpus 3 is more than this machine has: 2 GPUs",
        "--shell --gpu-memory 30G": "no GPU here has so much; the largest has 24 GB (Fake GPU)",
        "--thread --gpu-memory 8G": "--gpu-memory needs a process",
    })  # fmt: skip
    shared.launch("whole", "--gpus 1")
    assert shared.await_state("whole", "running")["gpu_ids"] == ["GPU-0a"]
    shared.say("%bg_group other --unlimited")
    shared.launch("large", "--gpu-memory 20G")
    shared.launch("small", "--gpu-memory 8G --group other")
    assert shared.await_state("small", "running")["gpu_ids"] == ["GPU-1a"]
    assert shared.await_lack("large") == "GPU 1 has 1 of 20 GB free"
    until(lambda: "got GPU-1a" in shared.say("%bg_output small --raw"), 30, "its environment")
    assert "1 GPU with 8 GB" in shared.say("%bg_show small")
    pid = json.loads(shared.say("%bg_show small --json"))["process"]["pid"]
    processes.write_text(f"0 1 {GB}\n1 {pid} {3 * GB}\n")
    used = json.loads(shared.say("%bg_top --json --every 0.1s"))["tasks"]
    assert {each["name"]: each["gpu_bytes"] for each in used} == {"whole": 0, "small": 3 * GB}
    shared.end("small")
    until(lambda: shared.await_lack("large") == "GPU 1 has 9 of 20 GB free", 30, "the new figure")
    have(24, 23)  # the stranger has ended
    assert shared.await_state("large", "running")["gpu_ids"] == ["GPU-1a"]
    shared.launch("both", "--gpus 2")
    assert shared.await_lack("both") == "needs 2 of 2 GPUs, none is free"
    shared.end("whole", "large")
    shared.await_state("both", "running")
    until(lambda: "got GPU-0a,GPU-1a" in shared.say("%bg_output both --raw"), 30, "both GPUs")
    shared.end("both")
    shared.await_state("both", "completed")
    shared.say("%bg_rerun both")
    assert shared.await_state("both", "completed")["gpu_ids"] == ["GPU-0a", "GPU-1a"]
    shared.say("import ipytaskpersist as bg")
    shared.say(
        "import os; bg.submit(os.getenv, 'CUDA_VISIBLE_DEVICES', "
        "name='called', process=True, gpu_memory='8G', memory=10**9)"
    )
    called = shared.await_state("called", "completed")
    assert (called["gpus"], called["gpu_memory_bytes"]) == (1, 8 * GB)
    assert shared.say("%bg_result called").strip("'\n") == called["gpu_ids"][0]


def test_gpus_that_cannot_be_lent_are_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The library of the driver cannot be found in this process, as on any machine without one."""
    pytest.importorskip("pynvml")
    with pytest.raises(gpus.NoGpus, match="has no NVIDIA driver that answers"):
        gpus.find()
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "pynvml", None)
        with pytest.raises(gpus.NoGpus, match="pip install nvidia-ml-py"):
            gpus.find()
    monkeypatch.setattr(gpus, "AMD_COMPUTE", tmp_path)
    with pytest.raises(gpus.NoGpus, match="GPUs are AMD's, and only NVIDIA's can be lent"):
        gpus.find()
    gpu = Gpu("GPU-12ab", 1, "A GPU", GB, GB)
    assert all(gpus.is_visible(gpu, each) for each in (None, "0,1", "GPU-12", "1"))
    assert not any(gpus.is_visible(gpu, each) for each in ("", "-1", "0", "GPU-13", "11"))


def test_the_use_of_a_booking_is_measured_and_what_was_seen_holds_for_a_moment() -> None:
    spins = "import time; x = b'1' * 80_000_000\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spins], start_new_session=True)
    try:
        started = psutil.Process(process.pid)
        until(lambda: started.memory_info().rss > 80_000_000, 30, "its memory")
        booking = Booking(7, Demands(cpus=1), pid=process.pid)
        reader = MachineReader()
        seen = reader.read([booking], with_gpus=False)
        assert reader.read([booking], with_gpus=False) is seen
        assert 0 < seen.used[7].cpus < 1.5
        assert 80_000_000 < seen.used[7].memory_bytes < 110_000_000
        assert 0 < seen.busy_cpus <= len(os.sched_getaffinity(0)) + 0.5
        assert 0 < seen.free_memory_bytes < seen.memory_bytes
        assert seen.gpus is None
        other = reader.read([], with_gpus=False)
        assert other is not seen
        assert other.used == {}
    finally:
        process.kill()
        process.wait()


# The limits of a container.


def test_a_container_has_the_least_of_what_its_control_groups_allow(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"

    def write(files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    def found() -> tuple[tuple[int, int] | None, float | None]:
        return control_groups.memory(tmp_path, groups), control_groups.cpus(tmp_path, groups)

    groups.write_text("0::/a/b\n")
    assert found() == (None, None)
    write({
        "a/memory.max": f"{8 * GB}\n", "a/memory.current": f"{6 * GB}\n",
        "a/memory.stat": f"anon 1\ninactive_file {GB}\n", "a/cpu.max": "150000 100000\n",
        "a/b/memory.max": "max\n", "a/b/memory.current": "5\n", "a/b/cpu.max": "max 100000\n",
    })  # fmt: skip
    assert found() == ((8 * GB, 3 * GB), 1.5)
    groups.write_text("5:cpu,cpuacct:/outside\n4:memory:/outside\n0::/\n")
    write({
        "memory/memory.limit_in_bytes": f"{4 * GB}\n", "memory/memory.usage_in_bytes": f"{GB}\n",
        "memory/memory.stat": "total_inactive_file 0\n",
        "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    assert found() == ((4 * GB, 3 * GB), None)
    write({"cpu/cpu.cfs_quota_us": "200000\n"})
    assert found() == ((4 * GB, 3 * GB), 2.0)
    write({"memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert found() == (None, 2.0)
