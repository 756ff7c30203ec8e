"""Contenders that take turns: each in a process of its own, one working at a time.

What a machine does beside them falls on all alike, turn by turn, so the ratio of a turn to its
neighbour holds where seconds do not. A contender starts, warms up, says so, and waits to be told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

__all__ = [
    "Contender",
    "Turn",
    "Turns",
    "contender",
    "share_of_cost",
    "take_turns",
    "times",
    "times_cpu",
    "verdict",
]

_GRACE_S: Final = 15.0


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn took, for each unit of its work."""

    wall_s: float
    cpu_s: float  # of the contender's own process, all its threads


class Turns:
    """A contender's side: work, report, and wait to be told again."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def over(self, amount: float) -> None:
        """Report the turn that ends here, in which `amount` was done; return when the next begins.

        The first turn is the warm-up. Raises SystemExit when no other will follow.
        """
        wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
        print(json.dumps({"wall_s": wall_s / amount, "cpu_s": cpu_s / amount}), flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()


class Contender:
    """The other side of it. `words` are arguments for the script that is running."""

    def __init__(self, words: Sequence[object], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        self._report()

    def take_turn(self) -> Turn:
        """Let it work once."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self._report()

    def _report(self) -> Turn:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended with status {self.process.wait()}")
        document: dict[str, Any] = json.loads(line)
        return Turn(**document)


@contextmanager
def contender(*words: object, environment: Mapping[str, str] | None = None) -> Iterator[Contender]:
    """Yield a warm contender; it is told to end, and ended if it does not."""
    player = Contender(words, environment or {})
    try:
        yield player
    finally:
        assert player.process.stdin is not None
        player.process.stdin.close()
        try:
            player.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            player.process.kill()
            player.process.wait()


def take_turns(*contenders: Contender, rounds: int) -> list[list[Turn]]:
    """Return the turns of each; every other round goes the other way, so that none always follows the same one."""
    turns: list[list[Turn]] = [[] for _ in contenders]
    for index in range(rounds):
        order = range(len(contenders))
        for number in order if index % 2 == 0 else reversed(order):
            turns[number].append(contenders[number].take_turn())
    return turns


def times(theirs: Sequence[Turn], ours: Sequence[Turn]) -> float:
    """Return how many times as long theirs took, the median over rounds."""
    return median(their.wall_s / our.wall_s for their, our in zip(theirs, ours, strict=True))


def times_cpu(theirs: Sequence[Turn], ours: Sequence[Turn]) -> float:
    """Return the same in CPU time, for processes that do all their work themselves."""
    return median(their.cpu_s / our.cpu_s for their, our in zip(theirs, ours, strict=True))


def share_of_cost(ours: Sequence[Turn], bare: Sequence[Turn]) -> tuple[float, float]:
    """Return what ours cost beyond bare, as a share of bare, in wall time and in CPU time.

    Over all turns together: what comes seldom, such as a checkpoint, is no part of a median.
    """
    wall = sum(turn.wall_s for turn in ours) / sum(turn.wall_s for turn in bare)
    cpu = sum(turn.cpu_s for turn in ours) / sum(turn.cpu_s for turn in bare)
    return wall - 1, cpu - 1


def verdict(*, is_reached: bool) -> str:
    return "reached" if is_reached else "missed"
