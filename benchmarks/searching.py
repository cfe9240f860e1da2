"""What a search takes over a long past, and what its index costs who prints."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks import stores
from benchmarks.bench import Bench
from benchmarks.kernels import CHECKOUT
from benchmarks.results import BenchmarkError, Row
from benchmarks.store_calls import milliseconds
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, SessionRecord
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.history.search_query import Scope, parse
from ipytaskpersist.history.text_search import Found, search
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.search_index import SearchIndex
from ipytaskpersist.store.task_store import TaskStore

VOCABULARY = 50_000
POOL_LINES = 200_000
"""How many different lines there are; those of a task are drawn from them."""
WORDS_A_LINE = 10
PIECE_BYTES = 1 << 18
RARE = "rare{}"
"""A word that one task alone has."""
NUMBER = "0.1{:05}"
"""A number that one task alone has, made of digits that many have."""
PHRASE_TASKS = 100
"""In one of so many tasks two common words are next to each other."""
APART_SEARCHES = 3
LEAST_INDEX_BYTES = 200_000
PRINT_ROUNDS = 4
PRINTED_LINES = 400_000
PASSES = 5
PREPARE = f"""\
from benchmarks.searching import Texts
lines = Texts().output(0, {PRINTED_LINES}).decode().splitlines()
"""
PRINT_TASK = f"""\
%%background printing
for _ in range({PASSES}):
    for line in lines:
        print(line)
"""
CATCHER = """\
import os, sys, time
os.nice(10)
from benchmarks import stores
from ipytaskpersist.store.search_index import SearchIndex
from pathlib import Path
with stores.opened(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    while True:
        SearchIndex(store).catch_up()
        time.sleep(0.05)
"""


def searching(bench: Bench) -> list[Row]:
    """Index a long past, search it in several ways, and print while the index catches up."""
    state = bench.new_state()
    _require_room(state.parent, 4 * bench.scale.log_bytes)
    bench.say(f"storing {bench.scale.tasks:,} tasks with {bench.log_size} of varied output")
    fill(state, bench.scale.tasks, bench.scale.log_bytes)
    with stores.opened(state) as store:
        bench.say("indexing them")
        indexing = milliseconds(SearchIndex(store).catch_up) / 1e3
        megabytes = store.directory.search_index.stat().st_size / 1e6
        rows = [
            Row("search", f"{what}, {bench.past}", "ms", tuple(samples)).at_most(200)
            for what, samples in query_ms(bench, store)
        ]
        bench.say("searching for two common words that are never together")
        apart = [_query_ms(store, ["loss step"], 0) / 1e3 for _ in range(APART_SEARCHES)]
    shutil.rmtree(state)
    return [
        *rows,
        Row("search", "a phrase that no task has, though all have its words", "s", tuple(apart)),
        Row("search", f"indexing {bench.past}", "s", (indexing,)),
        Row("search", f"the index of {bench.past}", "MB", (megabytes,)),
        *writing(bench),
    ]


def _require_room(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise BenchmarkError(f"{folder} has {free / 1e9:.1f} GB of room, less than is needed")


# A long past.


def fill(state: Path, tasks: int, size_bytes: int) -> None:
    """Store so many ended tasks, which have printed so much together."""
    texts = Texts()
    lines = size_bytes // tasks // texts.line_bytes
    with stores.opened(state) as store:
        for first in range(0, tasks, stores.TASKS_A_SESSION):
            session = store.sessions.begin(stores.past_session(state))
            for index in range(first, min(first + stores.TASKS_A_SESSION, tasks)):
                store_task(store, session, index, texts.output(index, lines))
            store.sessions.end(session.id, "kernel restarted")


def store_task(store: TaskStore, session: SessionRecord, index: int, text: bytes) -> None:
    """Store one task that has printed this and ended."""
    task = store.tasks.insert(stores.new_task(session, f"fit-{index}"))
    now = time.time()
    store.tasks.start(task.key, now)
    store.outputs.append([piece.as_row() for piece in pieces(task.key, text, now)])
    store.tasks.end(task.key, *stores.ENDS[index % len(stores.ENDS)], now)


def pieces(key: int, text: bytes, now: float) -> Iterator[NewOutput]:
    """A stream's text as the recorder cuts it."""
    lines = 0
    for first in range(0, len(text), PIECE_BYTES):
        data = text[first : first + PIECE_BYTES]
        count = data.count(b"\n")
        yield NewOutput(
            key, OutputKind.STDOUT, now, data, first_byte=first, first_line=lines, lines=count
        )
        lines += count


class Texts:
    """Lines of words as they are in a language: few often, many seldom, and numbers."""

    def __init__(self) -> None:
        self._chance = chance = random.Random(1)
        letters = "abcdefghijklmnopqrstuvwxyz"
        known = {"".join(chance.choices(letters, k=chance.randint(3, 10))) for _ in range(60_000)}
        self.words = sorted(known)[:VOCABULARY]
        chance.shuffle(self.words)
        weights = [1 / (rank + 10) for rank in range(len(self.words))]
        drawn = iter(chance.choices(self.words, weights, k=POOL_LINES * WORDS_A_LINE))
        self._pool = [
            f"{place // 3600 % 24:02}:{place // 60 % 60:02}:{place % 60:02} "
            f"{' '.join(next(drawn) for _ in range(WORDS_A_LINE))} "
            f"loss 0.{chance.randint(0, 99_999):05} step {chance.randint(0, 10**6)}\n"
            for place in range(POOL_LINES)
        ]
        self.line_bytes = sum(map(len, self._pool)) // POOL_LINES

    def output(self, index: int, lines: int) -> bytes:
        """What a task prints: lines of the pool, and one with a word of its own."""
        own = f"{self.words[0]} checkpoint {RARE.format(index)} at {NUMBER.format(index)}\n"
        if index % PHRASE_TASKS == 0:
            own += f"{self.words[0]} {self.words[1]} exploded\n"
        return ("".join(self._chance.choices(self._pool, k=lines)) + own).encode()


# Queries.


def query_ms(bench: Bench, store: TaskStore) -> Iterator[tuple[str, list[float]]]:
    """How long each kind of query takes, with the index caught up, from the words to the lines."""
    words = Texts().words
    rare = RARE.format(bench.scale.tasks // 2)
    every = bench.scale.tasks
    queries = {
        "a word that one task has": ([rare], 1),
        "a number that one task has": ([NUMBER.format(bench.scale.tasks // 2)], 1),
        "a word that every task has": (["loss"], every),
        "three words that nearly every task has": ([words[0], words[5], "model"], every),
        "a word that no task has": (["nowhere"], 0),
        "a phrase that every task has": ([f"{words[0]} checkpoint"], every),
        "a phrase that one task in a hundred has": ([f"{words[1]} exploded"], every // 100),
        "the beginning of a word": (["check*"], every),
    }
    for what, (typed, tasks) in queries.items():
        bench.say(f"searching for {what}")
        hits = min(tasks, Scope().limit)
        yield what, [_query_ms(store, typed, hits) for _ in range(bench.scale.tails // 2)]


def _query_ms(store: TaskStore, typed: Sequence[str], hits: int) -> float:
    found: list[Found] = []

    def run() -> None:
        archives = Archives(store)
        found.append(search(store, archives, parse(typed), Scope(), lambda done, total: None))

    taken = milliseconds(run)
    if len(found[0].hits) != hits or not all(hit.snippets for hit in found[0].hits):
        raise BenchmarkError(f"{typed} was found in {len(found[0].hits)} tasks, not in {hits}")
    return taken


# Writing.


def writing(bench: Bench) -> list[Row]:
    """How long a task prints without an index, and while another process keeps one up to date."""
    bench.say("printing without an index, and while one catches up")
    alone, beside = [], []
    for _ in range(PRINT_ROUNDS):
        alone.append(print_s(bench, is_indexed=False))
        beside.append(print_s(bench, is_indexed=True))
    what = f"a task that prints {PRINTED_LINES * PASSES:,} lines"
    without = Row("search", f"{what}, without an index", "s", tuple(alone))
    with_one = Row("search", f"{what}, while it is indexed", "s", tuple(beside))
    return [with_one.at_most_times(1.2, without, "without"), without]


def print_s(bench: Bench, *, is_indexed: bool) -> float:
    """How long a task of a kernel takes to print, until the last byte is stored."""
    state = bench.new_state()
    with bench.loaded_kernel(state) as kernel:
        kernel.run(PREPARE)
        with catching_up(state) if is_indexed else nullcontext():
            os.sync()
            kernel.settle()
            begun = time.perf_counter()
            kernel.run(PRINT_TASK)
            kernel.run("%bg_wait printing", timeout_s=600)
            taken = time.perf_counter() - begun
    if is_indexed:
        check_index(state)
    elif StateDirectory(state).search_index.exists():
        raise BenchmarkError("there is an index where none was to be")
    shutil.rmtree(state)
    return taken


def check_index(state: Path) -> None:
    """Raise `BenchmarkError` unless much was indexed by then, and what was printed is found."""
    size = StateDirectory(state).search_index.stat().st_size
    if size < LEAST_INDEX_BYTES:
        raise BenchmarkError(f"only {size:,} bytes of the index were made while a task printed")
    with stores.opened(state) as store:
        _query_ms(store, [RARE.format(0)], 1)


@contextmanager
def catching_up(state: Path) -> Iterator[None]:
    """Another process that brings the index up to date again and again, as the upkeep does."""
    command = [sys.executable, "-c", CATCHER, str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchmarkError("the process that indexes did not begin")
            yield
        finally:
            process.kill()
