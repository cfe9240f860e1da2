"""A task that prints more than fits into memory: what it costs is time and disk, not memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from programs import environment, run_command
from shells import ended, own_session, row, shell, store, supervisor

from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.output import replay

MB = 1024 * 1024
FLOOD_MB = int(os.environ.get("IPYTASKPERSIST_FLOOD_MB", "200"))
"""How much a task prints; `make stress` says 10240."""
NOTEBOOK = {"IPYTASKPERSIST_NOTEBOOK": "/flood.ipynb"}
GROWTH_MB = 100
"""More than a process may grow by, however much goes through it."""

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="process tasks need fork()"),
    pytest.mark.timeout(3000),
]

FLOOD = f"yes 'a line of the flood, forty-one bytes long' | head -c {FLOOD_MB * MB}; echo; echo end"
THREAD = f"""
import json, os, sys, threading, time
import psutil
from IPython.core.interactiveshell import InteractiveShell
import ipytaskpersist as bg
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ipytaskpersist")
own, line = psutil.Process(), "a line of the flood, forty-one bytes long" + chr(10)
bg.background("print(1)").wait(60)
before = most = own.memory_info().rss
task = bg.background('''
text = line * 1000
for _ in range({FLOOD_MB} * {MB} // len(text)):
    print(text, end="")
print("end")
''')
shell.user_ns["line"] = line
while not task.wait(0.05):
    most = max(most, own.memory_info().rss)
print(task.state, (most - before) // {MB})
"""


def used_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def require_disk(folder: Path) -> None:
    if shutil.disk_usage(folder).free < (20 * 1024 if FLOOD_MB > 1000 else 1) * MB:
        pytest.skip("too little room on this disk")


def test_a_shell_task_that_floods_costs_its_supervisor_no_memory(state_dir: Path) -> None:
    state_dir.mkdir()
    require_disk(state_dir)
    with own_session(state_dir):
        ended(shell("true"))
        process = psutil.Process(supervisor().pid)
        before = most = process.memory_info().rss
        begun = time.monotonic()
        task = shell(FLOOD)
        while not task.done():
            most = max(most, process.memory_info().rss)
            time.sleep(0.02)
        took_s = time.monotonic() - begun
        begun = time.monotonic()
        tail = replay.stream_bytes(store(), row(task), replay.Cut((OutputKind.STDOUT,), tail=1))
        last = b"".join(tail)
        tail_ms = (time.monotonic() - begun) * 1000
        assert last == b"end\n"
        size = store().outputs.stream_size(row(task), OutputKind.STDOUT).size_bytes
        assert size == FLOOD_MB * MB + len(b"\nend\n")
        print(
            f"{FLOOD_MB} MB in {took_s:.1f} s, {FLOOD_MB / took_s:.0f} MB/s; supervisor "
            f"{before // MB} MB, at most {most // MB} MB; tail in {tail_ms:.1f} ms; "
            f"{used_bytes(state_dir) / MB:.1f} MB on disk"
        )
        assert (most - before) / MB < GROWTH_MB


def test_a_thread_task_that_floods_costs_its_kernel_no_memory(state_dir: Path) -> None:
    state_dir.mkdir()
    require_disk(state_dir)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", THREAD], env=environment(state_dir, NOTEBOOK),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state, growth_mb = done.stdout.split()
    took_s = time.monotonic() - begun
    print(
        f"{FLOOD_MB} MB in {took_s:.1f} s; the kernel grew by {growth_mb} MB; "
        f"{used_bytes(state_dir) / MB:.1f} MB on disk"
    )
    assert state == "completed"
    assert int(growth_mb) < GROWTH_MB
    ended_with = run_command(state_dir, "output", "2", "--tail", "1", notebook="/flood.ipynb")
    assert ended_with.stdout == "end\n"


def test_a_flood_beyond_the_limit_is_counted_and_takes_no_disk(state_dir: Path) -> None:
    state_dir.mkdir()
    with own_session(state_dir) as session:
        session.max_output_bytes = MB
        task = ended(shell(FLOOD), timeout=1000)
        size = store().outputs.stream_size(row(task), OutputKind.STDOUT).size_bytes
        assert size == MB
        record = store().tasks.by_id(task.id)
        assert record is not None
        assert record.dropped_bytes == FLOOD_MB * MB + len(b"\nend\n") - MB
        assert task.state == "completed"
        assert used_bytes(state_dir) < 10 * MB
