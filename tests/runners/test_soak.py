"""A day of a busy session in a short time: nothing grows that is not to grow.

What happens periodically (heartbeats, looks at the store, upkeep) happens as often as in a day.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
from programs import environment

SOAK_S = float(os.environ.get("IPYTASKPERSIST_SOAK_S", "12"))
"""`make soak` says 600."""
DAY_S = 86_400

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="process tasks need fork()"),
    pytest.mark.timeout(SOAK_S * 3 + 300),
]

HURRY = """
# Imported by every interpreter that finds it: the pauses of periodic work, shorter by a factor.
import importlib.abc, importlib.machinery, os, sys

PAUSES = {
    "ipytaskpersist.output.recorder": ("HEARTBEAT_S", "WATCH_S"),
    "ipytaskpersist.runners.store_watch": ("UNPROMPTED_LOOK_S",),
    "ipytaskpersist.runners.kernel_watch": ("KERNEL_S",),
    "ipytaskpersist.history.upkeep": ("BEGIN_S", "SOON_S", "INTERVAL_S"),
}
FACTOR = float(os.environ.get("SOAK_FACTOR", "1"))

class Hurry(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in PAUSES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        plain = spec.loader.exec_module
        def exec_module(module):
            plain(module)
            for pause in PAUSES[name]:
                setattr(module, pause, getattr(module, pause) / FACTOR)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Hurry())
"""

DAY = """
import contextlib, io, json, os, sys, threading, time
import psutil
from IPython.core.interactiveshell import InteractiveShell
import ipytaskpersist as bg
from ipytaskpersist.output import recorder
from ipytaskpersist.session.manager import current

duration_s = float(sys.argv[1])
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")
manager, own = current(), psutil.Process()
samples, done = [], {"launched": 0, "cancelled": 0, "read": 0, "rerun": 0}

def quietly(magic, line):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        shell.run_line_magic(magic, line)
    return text.getvalue()

def supervisor():
    (found,) = manager.store.supervisors.unfinished()
    return psutil.Process(found.pid)

def sample(seconds):
    other = supervisor()
    log = manager.store.database.log
    samples.append({
        "seconds": seconds,
        "kernel_kb": own.memory_info().rss // 1024, "kernel_files": own.num_fds(),
        "kernel_threads": own.num_threads(),
        "supervisor_kb": other.memory_info().rss // 1024, "supervisor_files": other.num_fds(),
        "supervisor_threads": other.num_threads(),
        "log_kb": log.stat().st_size // 1024,
    })

def turn(number):
    tasks = [
        bg.background(f"for line in range(30): print({number}, line)"),
        bg.background("x = list(range(1000))\\nx[:3]"),
    ]
    if number % 4 == 0:
        tasks.append(bg.background(f"seq 200; echo {number} >&2", shell=True))
    endless = bg.background("sleep 1000", shell=True) if number % 10 == 0 else bg.background(
        "import time\\nwhile True: print('.', end=''); time.sleep(0.01)")
    for task in tasks:
        assert task.wait(120), task
    assert endless.cancel() and endless.wait(120)
    done["launched"] += len(tasks) + 1
    done["cancelled"] += 1
    assert tasks[0].stdout.endswith(f"{number} 29\\n")
    assert f"{number} 29" in quietly("bg_output", str(tasks[0].number))
    quietly("bg_list", "--limit 20")
    done["read"] += 3
    if number % 5 == 0:
        again = manager.launcher.rerun(manager.tasks.find(tasks[1].number))
        assert manager.waiting.wait([again], 120)[0].state.value == "completed"
        done["rerun"] += 1

bg.background("true", shell=True).wait(60)
begun, number, sampled = time.monotonic(), 0, -1e9
while (seconds := time.monotonic() - begun) < duration_s:
    turn(number)
    number += 1
    if seconds - sampled > duration_s / 60:
        sampled = seconds
        sample(round(seconds, 1))
session = manager.store.sessions.get(manager.session.record().id)
print(json.dumps({
    "samples": samples, "done": done, "heartbeat_s": recorder.HEARTBEAT_S,
    "whole": manager.store.database.row("PRAGMA integrity_check")[0],
    "heard_s": time.time() - session.heartbeat_at.timestamp(),
}))
"""

MAY_GROW = {
    "kernel_kb": 5_000, "kernel_files": 4, "kernel_threads": 3,
    "supervisor_kb": 5_000, "supervisor_files": 4, "supervisor_threads": 2,
    "log_kb": 8_000,
}  # fmt: skip
"""By how much the mean of the last third may be above that of the second. The log of a day grew by
30 MB in each third before it was cut; within seconds it only comes to its size."""


def test_a_day_of_work_lets_nothing_grow(state_dir: Path, tmp_path: Path) -> None:
    hurry = tmp_path / "hurry"
    hurry.mkdir()
    (hurry / "sitecustomize.py").write_text(HURRY)
    paths = [str(hurry), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "SOAK_FACTOR": str(DAY_S / 600)}
    ended = subprocess.run(
        [sys.executable, "-c", DAY, str(SOAK_S)], env=environment(state_dir, more),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SOAK_S * 2 + 240,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    samples = found["samples"]
    assert found["whole"] == "ok"
    assert found["heartbeat_s"] < 1, "the pauses are as long as ever"
    assert found["heard_s"] < 60
    third = len(samples) // 3
    assert third >= 1, "too slow to say anything"
    for name, most in MAY_GROW.items():
        second, last = (
            mean(each[name] for each in part)
            for part in (samples[third : 2 * third], samples[2 * third :])
        )
        print(f"{name}: {samples[0][name]} at first, {second:.0f}, then {last:.0f}")
        assert last - second <= most, (name, [each[name] for each in samples])
    print(found["done"])
