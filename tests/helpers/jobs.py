"""Ways to have work done by workers that live on, for kernels under test: imported there by name.

Each function of `MAKERS` makes its workers and returns a function that has them say a word and
waits for that.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from logging.handlers import QueueHandler, QueueListener
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

Use = Callable[[str], Any]


def say(word: str) -> str:
    """Say a word in Python, on stderr, and by a command."""
    sys.stdout.write(f"prints {word}\n")  # in one piece, also with PYTHONUNBUFFERED
    sys.stderr.write(f"warns {word}\n")
    subprocess.run(["echo", f"echoes {word}"], check=True)
    return word


def fail(word: str) -> None:
    raise ValueError(word)


def say_when(descriptor: int, word: str) -> None:
    """Say it once one byte can be read."""
    os.read(descriptor, 1)
    say(word)


def say_once(path: str, word: str) -> None:
    """Say it once a file is there."""
    while not Path(path).exists():
        time.sleep(0.01)
    say(word)


def print_to(path: str) -> None:
    """In a worker: let descriptor 1 be a file."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)


def nothing(*_ignored: object) -> int:
    return os.getpid()


def _pool(kind: str) -> Use:
    pool = multiprocessing.get_context(kind).Pool(1)
    pool.apply(nothing)
    return lambda word: pool.map(say, [word])


def _executor(kind: str) -> Use:
    executor = ProcessPoolExecutor(1, multiprocessing.get_context(kind))
    executor.submit(nothing).result()
    return lambda word: executor.submit(say, word).result()


def thread_pool() -> Use:
    pool = ThreadPool(2)
    return lambda word: list(pool.imap(say, [word]))


def thread_pool_apply() -> Use:
    pool = ThreadPool(1)
    return lambda word: pool.apply(say, (word,))


def thread_pool_callback() -> Use:
    pool = ThreadPool(1)

    def use(word: str) -> None:
        told = threading.Event()

        def tell(_result: object) -> None:
            say(word)
            told.set()

        pool.map_async(nothing, range(3), callback=tell).get()
        assert told.wait(30)

    return use


def thread_pool_input() -> Use:
    pool = ThreadPool(1)
    return lambda word: list(pool.imap_unordered(nothing, map(say, [word])))


def fork_pool() -> Use:
    return _pool("fork")


def spawn_pool() -> Use:
    return _pool("spawn")


def fork_executor() -> Use:
    return _executor("fork")


def spawn_executor() -> Use:
    return _executor("spawn")


def forkserver_executor() -> Use:
    return _executor("forkserver")


def thread_executor() -> Use:
    executor = ThreadPoolExecutor(1)
    executor.submit(nothing).result()
    return lambda word: executor.submit(say, word).result()


def _call_back(executor: Any, word: str) -> None:
    told = threading.Event()

    def tell(_future: object) -> None:
        say(word)
        told.set()

    executor.submit(nothing).add_done_callback(tell)
    assert told.wait(30)


def done_callback() -> Use:
    executor = ThreadPoolExecutor(1)
    executor.submit(nothing).result()
    return lambda word: _call_back(executor, word)


def done_callback_of_process() -> Use:
    executor = ProcessPoolExecutor(1)
    executor.submit(nothing).result()
    return lambda word: _call_back(executor, word)


def _joblib(**options: Any) -> Use:
    import joblib

    parallel = joblib.Parallel(n_jobs=2, **options)
    parallel(joblib.delayed(nothing)() for _ in range(4))
    return lambda word: parallel([joblib.delayed(say)(word)])


def loky() -> Use:
    return _joblib()


def joblib_threads() -> Use:
    return _joblib(prefer="threads")


def joblib_processes() -> Use:
    return _joblib(backend="multiprocessing")


def joblib_input() -> Use:
    """joblib takes what it works on from an iterator, in whichever thread has a result."""
    import joblib

    parallel = joblib.Parallel(n_jobs=2, pre_dispatch=2)
    parallel(joblib.delayed(nothing)() for _ in range(4))

    def given(word: str) -> Iterator[str]:
        yield from ["", "", "", ""]
        yield say(word)

    return lambda word: parallel(joblib.delayed(nothing)(each) for each in given(word))


def _loop_thread() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def loop_callback() -> Use:
    loop = _loop_thread()

    def use(word: str) -> None:
        told = threading.Event()
        loop.call_soon_threadsafe(lambda: (say(word), told.set()))
        assert told.wait(30)

    return use


def loop_coroutine() -> Use:
    loop = _loop_thread()

    async def speak(word: str) -> None:
        await asyncio.sleep(0.01)
        say(word)

    return lambda word: asyncio.run_coroutine_threadsafe(speak(word), loop).result(30)


def tornado_loop() -> Use:
    from tornado.ioloop import IOLoop

    ready: queue.Queue[IOLoop] = queue.Queue()

    def run() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        ready.put(IOLoop.current())
        IOLoop.current().start()

    threading.Thread(target=run, daemon=True).start()
    loop = ready.get()

    def use(word: str) -> None:
        told = threading.Event()
        loop.add_callback(lambda: (say(word), told.set()))
        assert told.wait(30)

    return use


def _queue_thread(words: Any) -> Use:
    def run() -> None:
        while True:
            _order, word = words.get()
            say(word)
            words.task_done()

    threading.Thread(target=run, daemon=True).start()

    def use(word: str) -> None:
        words.put((0, word))
        words.join()

    return use


def queue_thread() -> Use:
    return _queue_thread(queue.Queue())


def priority_queue_thread() -> Use:
    return _queue_thread(queue.PriorityQueue())


def _listener(records: Any) -> Use:
    logger = logging.getLogger(f"jobs-{id(records)}")
    logger.propagate = False
    logger.addHandler(QueueHandler(records))
    told = threading.Event()

    class Handler(logging.StreamHandler[Any]):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            told.set()

    shown = Handler(sys.stderr)
    shown.setFormatter(logging.Formatter("warns %(message)s"))
    QueueListener(records, shown).start()

    def use(word: str) -> None:
        told.clear()
        logger.warning(word)
        assert told.wait(30)

    return use


def queue_listener() -> Use:
    return _listener(queue.Queue())


def simple_queue_listener() -> Use:
    return _listener(queue.SimpleQueue())


THREADS: list[Callable[[], Use]] = [
    thread_pool,
    thread_pool_apply,
    thread_pool_callback,
    thread_pool_input,
    thread_executor,
    done_callback,
    done_callback_of_process,
    joblib_threads,
    joblib_input,
    loop_callback,
    loop_coroutine,
    tornado_loop,
    queue_listener,
    simple_queue_listener,
]
QUEUES: list[Callable[[], Use]] = [queue_thread, priority_queue_thread]
"""A thread that takes what is put may work for itself: these are the foreground's, or work on."""
PROCESSES: list[Callable[[], Use]] = [
    fork_pool,
    spawn_pool,
    fork_executor,
    spawn_executor,
    forkserver_executor,
    joblib_processes,
    loky,
]
MAKERS = {make.__name__: make for make in [*THREADS, *QUEUES, *PROCESSES]}
