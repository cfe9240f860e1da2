"""Play rounds: ``python -m faults --rounds 1000``. The exit status says whether all has held."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.points import CANCEL, POINTS
from faults.rounds import INTERRUPTED, Round

AT_ONCE = 4
"""Rounds: one waits most of the time."""
TOLD_EACH = 50


@dataclass(frozen=True)
class Wanted:
    """Which faults there are to be; empty for any."""

    point: str = ""
    signal: str = ""


def play(seed: str, wanted: Wanted) -> tuple[str, list[str], str]:
    """One round: its seed, the faults that happened, and what went wrong."""
    game = Round(seed, wanted.point, wanted.signal)
    try:
        return seed, game.run(), ""
    except Exception:  # whatever it is, it is what this looks for
        return seed, [], "\n".join([traceback.format_exc(), *game.story])


def play_all(
    seeds: Iterable[str], wanted: Wanted = Wanted(), at_once: int = AT_ONCE
) -> tuple[Counter[str], list[str]]:
    """Play rounds, several at once. Returns what happened how often, and what went wrong."""
    happened: Counter[str] = Counter()
    failures = []
    with ThreadPoolExecutor(at_once) as pool:
        played = [pool.submit(play, seed, wanted) for seed in seeds]
        for count, done in enumerate(as_completed(played), 1):
            seed, faults, failure = done.result()
            if count % TOLD_EACH == 0:
                print(f"{count} rounds, {len(failures)} failed", file=sys.stderr, flush=True)
            happened.update(faults or ["nothing"])
            if failure:
                failures.append(f"round {seed}\n{failure}")
                print(failures[-1], file=sys.stderr, flush=True)
    return happened, failures


def main() -> None:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, metavar="N")
    parser.add_argument("--seed", help="default: another one each time")
    parser.add_argument("--round", type=int, metavar="K", help="only this round of the seed")
    parser.add_argument("--point", default="", help="hit only this point", choices=["", *POINTS])
    parser.add_argument(
        "--signal", default="", help="send only this",
        choices=["", *dict.fromkeys(INTERRUPTED), CANCEL],
    )  # fmt: skip
    parser.add_argument("--at-once", type=int, default=AT_ONCE, metavar="N")
    arguments = parser.parse_args()
    seed = arguments.seed or f"{random.SystemRandom().getrandbits(32):08x}"
    places = range(arguments.rounds) if arguments.round is None else [arguments.round]
    print(f"seed {seed}: {len(places)} rounds", flush=True)
    begun = time.monotonic()
    wanted = Wanted(arguments.point, arguments.signal)
    seeds = [f"{seed}:{place}" for place in places]
    happened, failures = play_all(seeds, wanted, arguments.at_once)
    for fault, count in sorted(happened.items()):
        print(f"{count:5}  {fault}")
    took_s = time.monotonic() - begun
    print(f"seed {seed}: {len(places)} rounds, {len(failures)} failed, {took_s:.0f} s")
    for failure in failures:
        number = failure.split("\n", 1)[0].rpartition(":")[2]
        print(f"  again: make chaos SEED={seed} ROUND={number}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
