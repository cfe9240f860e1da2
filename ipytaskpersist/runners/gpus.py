"""The GPUs of this machine, as NVIDIA's driver describes them through its library NVML."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from ipytaskpersist.store.booking import Gpu

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that names the GPUs which a program sees."""
AMD = Path("/sys/module/amdgpu")
AMD_COMPUTE = Path("/dev/kfd")


class NoGpus(Exception):
    """No GPU can be lent. The message says why, and what to do."""


def find() -> list[Gpu]:
    """Return the GPUs that this process may use. Raise `NoGpus` without any."""
    try:
        import pynvml
    except ImportError:
        raise NoGpus(
            _amd()
            or "the library that asks NVIDIA's driver is missing; install it: pip install "
            "nvidia-ml-py"
        ) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpus(
            _amd()
            or f"this machine has no NVIDIA driver that answers ({error}); install the driver, "
            "and see what nvidia-smi says"
        ) from None
    try:
        found = [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise NoGpus(f"NVIDIA's driver does not say what GPUs there are ({error})") from None
    finally:
        pynvml.nvmlShutdown()
    visible = [gpu for gpu in found if is_visible(gpu, os.environ.get(VISIBLE))]
    if not visible:
        hidden = f": {VISIBLE} hides them" if found else ""
        raise NoGpus(f"NVIDIA's driver shows no GPU{hidden}")
    return visible


def memory_by_process() -> dict[int, int] | None:
    """Return how much memory of GPUs processes use, in bytes, by their ids.

    None where no driver answers.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the library is missing, or its driver
        return None
    used: Counter[int] = Counter()
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                used[int(each.pid)] += int(each.usedGpuMemory or 0)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return dict(used)


def _gpu(library: Any, index: int) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    uuid, name = library.nvmlDeviceGetUUID(handle), library.nvmlDeviceGetName(handle)
    return Gpu(str(uuid), index, str(name), int(memory.total), int(memory.free))


def is_visible(gpu: Gpu, visible: str | None) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES of this value lets a program see a GPU."""
    if visible is None:
        return True
    for each in visible.split(","):
        word = each.strip()
        if word == str(gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word)):
            return True
    return False


def _amd() -> str:
    if AMD.exists() or AMD_COMPUTE.exists():
        return (
            "this machine's GPUs are AMD's, and only NVIDIA's can be lent; to run one task at a "
            "time, %bg_group gpu --width 1 makes a group, and --group gpu puts tasks into it"
        )
    return ""
