"""When a task that has ended badly is tried again: for which causes, how often, and how soon."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

OUT_OF_MEMORY, REBOOT, TIMEOUT, SIGNAL, ERROR, SUPERVISOR, PLACE = CAUSES = (
    *("oom", "reboot", "timeout", "signal", "error", "supervisor", "place"),
)
"""The out-of-memory killer ended it; the machine was rebooted; its time was over; another signal
ended it; it ended by itself with an error; its supervisor died; its place lost it."""
REBOOTED = "machine rebooted"
SUPERVISOR_STOPPED = "supervisor stopped"
"""It was told to end, as it is when the machine shuts down in order."""
LOST_AT = "lost at "
"""How the reason begins of a task that its place has lost, with a node, a job or its keeper."""
TIMED_OUT = "timed out after "
WAS_OUT_OF_MEMORY = "(out of memory)"
USED = "used "
"""How the reason begins of a task that was ended because it used more memory than it may."""
TRIES_AGAIN = " tries again"
"""How the reason ends of a task that another try has followed."""
MAX_DELAY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a task is tried again, and when."""

    count: int
    """How many tries may follow the first one."""
    causes: Sequence[str] = CAUSES
    """Those of `CAUSES` after which another try follows."""
    delay_s: float = 0.0
    """Seconds before the second try. The delay doubles with each further one."""
    max_delay_s: float = MAX_DELAY_S
    memory_factor: float | None = None
    """How much more memory the next try may use after one that was out of it; None for no more."""
    most_memory_bytes: int | None = None
    """The memory that no try may exceed: what the machine had at the launch."""
    environment_of: str | None = None
    """Id of the first try, in whose name the environment is kept; None in the first try itself."""

    def follow(self, try_number: int, causes: Sequence[str]) -> bool:
        """Return whether another try follows this one, which ended for any of these causes."""
        return try_number <= self.count and not {*self.causes}.isdisjoint(causes)

    def delay_after(self, try_number: int) -> float:
        """Return the seconds between the end of a try and the next one."""
        # 2.0**1024 would be too large for a float.
        return float(min(self.delay_s * 2 ** min(try_number - 1, 100), self.max_delay_s))

    def memory_after(self, causes: Sequence[str], size_bytes: int | None) -> int | None:
        """Return how much memory the next try may use, if this one may use so much, in bytes."""
        if size_bytes is None or self.memory_factor is None or OUT_OF_MEMORY not in causes:
            return size_bytes
        limits = () if self.most_memory_bytes is None else (self.most_memory_bytes,)
        return min(int(size_bytes * self.memory_factor), *limits, 2**62)

    def as_json(self) -> str:
        """Return this as the store keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Retries | None:
        """Return what `as_json` wrote; None for None."""
        return None if text is None else cls(**json.loads(text))


def causes_of(state: str, reason: str | None, exit_code: int | None) -> tuple[str, ...]:
    """Return the causes of a task's end: none if it completed or was cancelled."""
    said = reason or ""
    if state == "interrupted":
        if said == REBOOTED:
            return (REBOOT,)
        if said.startswith(LOST_AT):
            return (PLACE,)
        return (SUPERVISOR, REBOOT) if said == SUPERVISOR_STOPPED else (SUPERVISOR,)
    if state != "failed":
        return ()
    if said.startswith(TIMED_OUT):
        return (TIMEOUT,)
    if said.startswith(USED):
        return (OUT_OF_MEMORY,)
    if exit_code is not None and exit_code < 0:
        return (OUT_OF_MEMORY if said.endswith(WAS_OUT_OF_MEMORY) else SIGNAL,)
    return (ERROR,)
