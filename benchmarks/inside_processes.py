"""What the measured kernels call to run code in other processes, beside process tasks.

The workers of the pools import this module, so it imports no more than they need.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy
import pandas

PIECE_BYTES = 64 * 2**20
STRINGS, NUMBERS = 3, 17
"""How many columns of a frame hold text, and how many numbers."""
ROW_BYTES = 331
"""Of a frame, as `memory_usage(deep=True)` counts them."""
NAMES = 1_000
"""How many texts are in a column that repeats them."""


def make_array(size_bytes: int) -> Any:
    """An array of float64 of this size."""
    return numpy.random.default_rng(1).random(size_bytes // 8)


def make_frame(size_bytes: int) -> Any:
    """A DataFrame of about this size, with 17 columns of numbers and 3 of text."""
    rows = size_bytes // ROW_BYTES
    chance = numpy.random.default_rng(1)
    numbers = chance.random((rows, NUMBERS))
    frame = pandas.DataFrame(numbers, columns=[f"number_{each}" for each in range(NUMBERS)])
    names = numpy.array([f"station {each:05d}" for each in range(NAMES)], dtype=object)
    frame["station"] = names[chance.integers(0, NAMES, rows)]
    frame["region"] = names[chance.integers(0, 20, rows)]
    frame["key"] = [f"reading-{each:08d}" for each in range(rows)]
    return frame


def size_mb(given: Any) -> float:
    """How big an array or a frame is."""
    is_frame = isinstance(given, pandas.DataFrame)
    size = given.memory_usage(deep=True).sum() if is_frame else given.nbytes
    return float(size / 1e6)


def double(given: Any) -> Any:
    """An array or frame whose numbers are twice as large."""
    if isinstance(given, pandas.DataFrame):
        return given.assign(**(given.select_dtypes("number") * 2))
    return given * 2


def write_s(size_bytes: int, path: str) -> float:
    """How long it takes to write so many bytes into a fresh file, in pieces."""
    piece = numpy.random.default_rng(1).bytes(PIECE_BYTES)
    begun = perf_counter()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for first in range(0, size_bytes, PIECE_BYTES):
        os.write(file, piece[: size_bytes - first])
    os.close(file)
    took = perf_counter() - begun
    Path(path).unlink()
    return took


# Until the first line of other workers.


def first_line() -> float:
    """Use pandas, as the cell of a task does, and say when that was done."""
    pandas.Series([1.0, 2.0]).sum()
    return time.time()


def python_ms() -> float:
    """How long a new interpreter takes that imports pandas."""
    begun = perf_counter()
    subprocess.run([sys.executable, "-c", "import pandas"], check=True)
    return (perf_counter() - begun) * 1e3


@cache
def pool() -> ProcessPoolExecutor:
    """A pool of one process that has worked already."""
    made = ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"))
    made.submit(first_line).result()
    return made


def pooled_ms() -> float:
    """From a submission to a pool of processes until the function has used pandas."""
    executor = pool()
    launched = time.time()
    return (executor.submit(first_line).result() - launched) * 1e3


def submitted_ms() -> float:
    """The same with submitit's local executor."""
    import submitit

    launched = time.time()
    executor = submitit.AutoExecutor("submitted", cluster="local")
    begun: float = executor.submit(first_line).result()
    return (begun - launched) * 1e3


@cache
def engine() -> Any:
    """An engine of ipyparallel that has worked already."""
    import ipyparallel

    view = ipyparallel.Cluster(n=1).start_and_connect_sync()[0]
    view.apply_sync(first_line)
    return view


def engine_ms() -> float:
    """The same with an engine of ipyparallel."""
    view = engine()
    launched = time.time()
    begun: float = view.apply_sync(first_line)
    return (begun - launched) * 1e3


# There, doubled, and back.


def pool_s(given: Any) -> tuple[float, float]:
    """Seconds until a value is in a pool's process, and until it is back from there, doubled."""
    executor = pool()
    launched = time.time()
    there, _doubled = executor.submit(_doubled_there, given).result()
    return there - launched, time.time() - launched


def _doubled_there(given: Any) -> tuple[float, Any]:
    return time.time(), double(given)


def joblib_s(given: Any) -> tuple[float, float, float]:
    """The same through files that joblib maps; and first, until the value is written."""
    import joblib

    executor, path = pool(), Path("given.joblib")
    launched = time.time()
    joblib.dump(given, path)
    written = time.time()
    there, doubled = executor.submit(_doubled_in_file, str(path.absolute())).result()
    joblib.load(doubled, mmap_mode="c")
    took = written - launched, there - launched, time.time() - launched
    path.unlink()
    Path(doubled).unlink()
    return took


def _doubled_in_file(path: str) -> tuple[float, str]:
    import joblib

    given = joblib.load(path, mmap_mode="c")
    there, doubled = time.time(), f"{path}.doubled"
    joblib.dump(double(given), doubled)
    return there, doubled


def by_hand_s(given: Any) -> tuple[float, float, float]:
    """The same through plain, mapped files without a check: the least it takes."""
    executor, path = pool(), Path("given.plain")
    array = numpy.ascontiguousarray(given)
    launched = time.time()
    array.tofile(path)
    written = time.time()
    there, doubled = executor.submit(_doubled_by_hand, str(path.absolute())).result()
    numpy.memmap(doubled, mode="c")
    took = written - launched, there - launched, time.time() - launched
    path.unlink()
    Path(doubled).unlink()
    return took


def _doubled_by_hand(path: str) -> tuple[float, str]:
    given = numpy.memmap(path, mode="c")
    there, doubled = time.time(), f"{path}.doubled"
    (given.view(numpy.float64) * 2).tofile(doubled)
    return there, doubled
