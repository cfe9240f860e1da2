"""What the user says that a task needs of the machine, and whether it can ever have that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.requests import PlaceInQueue
from ipytaskpersist.text.formatting import counted, short_size
from ipytaskpersist.text.sizes import parse_size

AUTO = "auto"
MARGIN = 1.25
"""Factor of the peak memory of the last run, for ``--memory auto``."""
ROUNDED_TO_BYTES = 10**6


def demanded(place: PlaceInQueue, last_peak: Callable[[], int | None]) -> Demands:
    """Return what a new task needs. Raise `InvalidRequest` for what it can never have.

    `last_peak` returns the peak memory of the last run of the same name, in bytes.
    """
    gpu_memory_bytes = None
    if place.gpu_memory:
        gpu_memory_bytes = parse_size(place.gpu_memory, "--gpu-memory")
    gpus = 1 if place.gpus is None and gpu_memory_bytes is not None else place.gpus
    memory_bytes = _memory(place.memory, last_peak) if place.memory else None
    demands = Demands(place.cpus, memory_bytes, gpus, gpu_memory_bytes)
    require_possible(demands)
    return demands


def _memory(typed: str, last_peak: Callable[[], int | None]) -> int:
    if typed.strip().lower() != AUTO:
        return parse_size(typed, "--memory")
    peak_bytes = last_peak()
    if peak_bytes is None:
        raise InvalidRequest(
            "--memory auto takes what the last run of the same name has used, and no process or "
            "shell task of this name has ended in this notebook; give a size once: --memory 8G"
        )
    return math.ceil(peak_bytes * MARGIN / ROUNDED_TO_BYTES) * ROUNDED_TO_BYTES


def require_possible(demands: Demands) -> None:
    """Raise `InvalidRequest` if this machine can never have what a task needs."""
    if demands.cpus is not None:
        _require_cpus(demands.cpus)
    if demands.memory_bytes is not None:
        _require_memory(demands.memory_bytes)
    if demands.gpus is not None:
        _require_gpus(demands.gpus, demands.gpu_memory_bytes)


def within_machine(retries: Retries | None, demands: Demands) -> Retries | None:
    """Return the rule of a new task's tries, none of which gets more memory than there is."""
    if retries is None or retries.memory_factor is None:
        return retries
    if demands.memory_bytes is None:
        raise InvalidRequest("--memory-factor needs --memory SIZE, of which a next try gets more")
    from ipytaskpersist.runners.machine import memory

    return replace(retries, most_memory_bytes=memory()[0])


def _require_cpus(cpus: float) -> None:
    from ipytaskpersist.runners.machine import cpu_count

    if not 0 < cpus < math.inf:
        raise InvalidRequest(f"--cpus is a number greater than 0, such as 4 or 0.5, not {cpus:g}")
    total = cpu_count()
    if cpus > total:
        raise InvalidRequest(
            f"--cpus {cpus:g} is more than the {total:g} CPUs that tasks may use on this machine"
        )


def _require_memory(size_bytes: int) -> None:
    from ipytaskpersist.runners.machine import memory

    total_bytes, _free = memory()
    if size_bytes > total_bytes:
        raise InvalidRequest(
            f"--memory {short_size(size_bytes)} is more than the {short_size(total_bytes)} that "
            "tasks may use on this machine"
        )


def _require_gpus(count: int, size_bytes: int | None) -> None:
    from ipytaskpersist.runners.gpus import NoGpus, find

    if count < 1:
        raise InvalidRequest(f"--gpus is a number of GPUs, 1 or more, not {count}")
    try:
        found = find()
    except NoGpus as error:
        raise InvalidRequest(f"--gpus cannot be had: {error}") from None
    if count > len(found):
        has = counted(len(found), "GPU")
        raise InvalidRequest(f"--gpus {count} is more than this machine has: {has}")
    if size_bytes is None:
        return
    large = [gpu for gpu in found if gpu.memory_bytes >= size_bytes]
    if len(large) < count:
        most = max(found, key=lambda gpu: gpu.memory_bytes)
        has = f"{short_size(most.memory_bytes)} ({legible(most.name)})"
        enough = "no GPU here has" if not large else f"only {len(large)} here have"
        raise InvalidRequest(
            f"--gpu-memory {short_size(size_bytes)}: {enough} so much; the largest has {has}"
        )
