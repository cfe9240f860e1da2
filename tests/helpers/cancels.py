"""A program that cancels cells at random moments: `python cancels.py COUNT SEED`.

Every cell ends; a task beside them goes on; and the foreground can import, print, log, start
threads and launch afterwards. It prints what was otherwise, and exits with 1 then.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

import ipytaskpersist

ENDED_S = 30

CELLS = {
    "threads": """
import threading
while True:
    thread = threading.Thread(target=abs, args=(1,))
    thread.start()
    thread.join()
""",
    "a pool of threads": """
from concurrent.futures import ThreadPoolExecutor
while True:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(abs, range(20)))
""",
    "imports": """
import sys
while True:
    for number in range(8):
        sys.modules.pop(f"chained_{number}", None)
    import chained_0
""",
    "commands": "while True:\n    !true",
    "captured commands": "while True:\n    lines = !echo hello",
    "forks": """
import os
while True:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
""",
    "processes": """
import multiprocessing
while True:
    process = multiprocessing.get_context("fork").Process(target=abs, args=(1,))
    process.start()
    process.join()
""",
    "pools": """
import multiprocessing
while True:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(abs, range(50))
""",
    "a pool": """
import multiprocessing
pool = multiprocessing.get_context("fork").Pool(2)
while True:
    pool.map(abs, range(50))
""",
    "subprocesses": """
import subprocess
while True:
    subprocess.run(["true"], capture_output=True)
""",
    "logging": """
import logging
while True:
    logging.getLogger("cell").warning("hello %s", 1)
""",
    "queues": """
import queue, threading
pipe = queue.Queue(3)
def feed():
    try:
        while True:
            pipe.put(1, timeout=3)
    except queue.Full:
        pass
threading.Thread(target=feed, daemon=True).start()
while True:
    pipe.get()
""",
    "an empty queue": "import queue\nqueue.Queue().get()",
    "an event": "import threading\nthreading.Event().wait()",
    "a sleeping thread": """
import threading, time
sleeping = threading.Thread(target=time.sleep, args=(3,), daemon=True)
sleeping.start()
sleeping.join()
while True:
    pass
""",
    "generators": """
def numbers():
    try:
        yield from range(100)
    finally:
        sum(range(100))
while True:
    for number in numbers():
        if number > 50:
            break
""",
    "finally": """
while True:
    try:
        sum(range(1000))
    finally:
        sum(range(100))
""",
    "C": """
import hashlib
while True:
    sorted(range(20_000), key=lambda number: -number)
    hashlib.sha256(b"x" * 100_000).hexdigest()
""",
    "__del__": """
class Dropped:
    def __del__(self):
        for _ in range(50):
            pass
while True:
    Dropped()
""",
    "weak references": """
import weakref
class Watched:
    pass
while True:
    watched = Watched()
    reference = weakref.ref(watched, lambda _: sum(range(50)))
    del watched
""",
    "asyncio": """
import asyncio
while True:
    await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(5)))
""",
    "a busy loop": "import asyncio\nwhile True:\n    await asyncio.sleep(0)",
    "conditions": """
import threading
lock, condition = threading.RLock(), threading.Condition()
while True:
    with lock, condition:
        condition.wait(0.001)
""",
    "lines": "while True:\n    print('line')",
    "files": """
import tempfile
while True:
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
""",
    "tasks": """
import ipytaskpersist
while True:
    ipytaskpersist.background("1").wait(30)
""",
    "databases": """
import sqlite3
while True:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE numbers (number)")
    database.close()
""",
    "displays": "from IPython.display import display\nwhile True:\n    display({'a': 1})",
    "sleeps": "import time\nwhile True:\n    time.sleep(0.2)",
    "context managers": """
from contextlib import contextmanager
@contextmanager
def nothing():
    yield
while True:
    with nothing():
        pass
""",
}

BYSTANDER = """
import logging, sys, threading, time
beats = 0
while not is_enough:
    logging.getLogger("bystander").warning("beat")
    bystanding = threading.Thread(target=abs, args=(1,))
    bystanding.start()
    bystanding.join()
    sys.modules.pop("of_bystander", None)
    import of_bystander
    print(beats)
    beats += 1
    time.sleep(0.005)
"""


def write_modules(folder: Path) -> None:
    for number in range(7):
        following = f"import time\ntime.sleep(0.001)\nimport chained_{number + 1}\n"
        (folder / f"chained_{number}.py").write_text(following)
    for name in ("chained_7", "of_bystander", "of_foreground"):
        (folder / f"{name}.py").write_text("total = sum(range(10_000))\n")


def keep_logs_quiet() -> None:
    handler = logging.FileHandler(os.devnull)
    for name in ("cell", "bystander"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(handler)


def use_the_kernel() -> None:
    """Do what must go on working."""
    sys.modules.pop("of_foreground", None)
    import of_foreground  # type: ignore[import-not-found]  # noqa: F401

    logging.getLogger("cell").warning("line")
    print(end="")
    thread = threading.Thread(target=abs, args=(1,))
    thread.start()
    thread.join()
    assert ipytaskpersist.background("1").wait(ENDED_S)


def in_time(action: Callable[[], object]) -> bool:
    """Do something in a thread. False when it fails, or does not come to an end."""
    succeeded = []
    thread = threading.Thread(target=lambda: succeeded.append(action()), daemon=True)
    thread.start()
    thread.join(2 * ENDED_S)
    return bool(succeeded)


def goes_on(space: dict[str, Any]) -> bool:
    """Whether the task beside has come further than now, soon."""
    before, deadline = space.get("beats", 0), time.monotonic() + ENDED_S
    while space.get("beats", 0) <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(space.get("beats", 0) > before)


def main(count: int, seed: str) -> int:
    folder = Path(tempfile.mkdtemp())
    write_modules(folder)
    sys.path.insert(0, str(folder))
    keep_logs_quiet()
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "ipytaskpersist")
    is_enough: list[bool] = []
    shell.user_ns["is_enough"] = is_enough
    bystander = ipytaskpersist.background(BYSTANDER)
    chosen = random.Random(seed)  # a seed is printed, and repeats a run  # nosec B311
    names = [*CELLS] * (count // len(CELLS)) + chosen.sample([*CELLS], count % len(CELLS))
    chosen.shuffle(names)
    wrong = []
    for name in names:
        task = ipytaskpersist.background(CELLS[name])
        time.sleep(chosen.choice([chosen.uniform(0.004, 0.03), chosen.uniform(0, 0.3)]))
        task.cancel()
        task.wait(ENDED_S)
        what = {
            f"is {task.state}": task.state.value == "cancelled",
            "the kernel": in_time(use_the_kernel),
            "the task beside": goes_on(shell.user_ns),
        }
        problems = [problem for problem, is_well in what.items() if not is_well]
        if problems:
            wrong.append((name, *problems))
            faulthandler.dump_traceback()
    is_enough.append(True)
    bystander.wait(ENDED_S)
    print(f"{count} cancels, seed {seed}; wrong: {wrong}; task beside: {bystander.state}")
    return 1 if wrong or bystander.state.value != "completed" else 0


if __name__ == "__main__":
    exit_code = main(int(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(exit_code)  # not after threads that may be stuck
