"""The outbox: what a trial has to tell MLflow, kept in storage until MLflow has it.

An append-only log of numbered entries, each created by a conditional write, and one mark of how
far they were sent. It makes metrics exact across crashes:

- A point is in the log before it is sent, with the time it first got; an entry that is sent again
  is the same to the bit, and MLflow keeps one of two equal points.
- A later start reads the log first and drops each point it computes again: the log, not MLflow,
  says how far each metric got.
- Two starts cannot append the same number; the loser reads what the winner wrote and goes on
  behind it.

A start does not read the whole log: a snapshot, replaced now and then, says how far each metric
got in the entries up to a number. Entries never change, so that any snapshot stays true.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from trainer.fence import Fence
from trainer.storage import BlobMissing, Storage

__all__ = ["Entry", "Outbox", "Point", "merged"]

READERS = 16  # threads: an object store answers one reader slowly, many as fast
READ_AT_ONCE = 100  # entries behind the sent mark, at most
SNAPSHOT_EVERY = 1000  # entries


class Point(NamedTuple):
    """One value of one metric at one global step."""

    key: str
    step: int
    value: float
    timestamp_ms: int


class Entry(NamedTuple):
    """One entry: points to log, one artifact (a storage key and its path in MLflow), or an encoder to register."""

    number: int
    points: tuple[Point, ...] = ()
    artifact: Mapping[str, str] | None = None
    bundle_sha256: str | None = None  # of the encoder


def merged(entries: Iterable[Entry], *, most_points: int) -> Iterator[Entry]:
    """Yield the entries in order, neighbours of at most `most_points` points together as one.

    Such a one has the number of its last: MLflow has all of them once it has that.
    """
    held: Entry | None = None
    for entry in entries:
        if held and held.points and entry.points and len(held.points) + len(entry.points) <= most_points:
            held = Entry(entry.number, held.points + entry.points)
            continue
        if held:
            yield held
        held = entry
    if held:
        yield held


class Outbox:
    """The log of one trial. Not thread safe: its owner holds a lock."""

    def __init__(self, storage: Storage, prefix: str, fence: Fence, *, snapshot_every: int = SNAPSHOT_EVERY) -> None:
        self._storage = storage
        self._prefix = prefix
        self._fence = fence
        self._snapshot_every = snapshot_every
        snapshot = self._read_document("snapshot.json") or {"number": 0, "last_step": {}}
        self._snapshot_number = int(snapshot["number"])
        self._next = self._snapshot_number + 1
        self._last_step: dict[str, int] = snapshot["last_step"]
        self._catch_up()

    @property
    def generation(self) -> int:
        """Return which start of the trial this is."""
        return self._fence.generation

    @property
    def sent(self) -> int:
        """Return the number of the last entry that MLflow has."""
        return int((self._read_document("sent.json") or {"number": 0})["number"])

    @property
    def last_number(self) -> int:
        """Return the number of the last entry in the log."""
        return self._next - 1

    def free_step(self, first: int, keys: Iterable[str]) -> int:
        """Return the first step, from `first` on, behind which the log has no point of these metrics."""
        return max([first, *(self._last_step.get(key, 0) + 1 for key in keys)])

    def append_points(self, points: list[Point]) -> None:
        """Put the points that are not in the log yet behind its end.

        Raises:
            Superseded: If a later start owns the trial.
        """
        while fresh := [point for point in points if point.step > self._last_step.get(point.key, 0)]:
            if self._append({"points": fresh}):
                self._remember(fresh)
                self._snapshot_now_and_then()
                return
            self._catch_up()

    def append_artifact(self, *, key: str, path: str) -> None:
        """Put the storage blob `key` in line to become the MLflow artifact `path`."""
        while not self._append({"artifact": {"key": key, "path": path}}):
            self._catch_up()

    def append_encoder(self, bundle_sha256: str) -> None:
        """Put the encoder of this bundle in line to be registered."""
        while not self._append({"bundle_sha256": bundle_sha256}):
            self._catch_up()

    def unsent(self) -> list[Entry]:
        """Return the first entries behind the sent mark, in order, as they are in storage; [] behind the last."""
        first = self.sent + 1
        return list(self._read_many(first, min(self._next, first + READ_AT_ONCE)))

    def series(self, *keys: str) -> dict[str, list[tuple[int, float]]]:
        """Return (step, value) of each key over the whole log, for pictures."""
        series: dict[str, list[tuple[int, float]]] = {key: [] for key in keys}
        for entry in self._read_many(1, self._next):
            for point in entry.points:
                if point.key in series:
                    series[point.key].append((point.step, point.value))
        return series

    def mark_sent(self, number: int) -> None:
        """Record that MLflow has every entry up to `number`."""
        self._storage.write(f"{self._prefix}sent.json", json.dumps({"number": number}).encode())

    def _append(self, document: dict[str, Any]) -> bool:
        self._fence.check()
        is_mine = self._storage.create(self._key(self._next), json.dumps(document).encode())
        if is_mine:
            self._next += 1
        return is_mine

    def _catch_up(self) -> None:
        entry_keys = self._storage.list(f"{self._prefix}entry-")
        for entry in self._read_many(self._next, len(entry_keys) + 1):
            self._remember(entry.points)
            self._next = entry.number + 1

    def _remember(self, points: list[Point] | tuple[Point, ...]) -> None:
        for point in points:
            self._last_step[point.key] = max(point.step, self._last_step.get(point.key, 0))

    def _snapshot_now_and_then(self) -> None:
        if self.last_number - self._snapshot_number < self._snapshot_every:
            return
        snapshot = {"number": self.last_number, "last_step": self._last_step}
        self._storage.write(f"{self._prefix}snapshot.json", json.dumps(snapshot).encode())
        self._snapshot_number = self.last_number

    def _read_document(self, name: str) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads(self._storage.read(f"{self._prefix}{name}"))
        except BlobMissing:
            return None
        return document

    def _read_many(self, first: int, end: int) -> Iterator[Entry]:
        """Yield the entries first..end-1 in order."""
        with ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="outbox-reader") as readers:
            yield from readers.map(self._read, range(first, end))

    def _read(self, number: int) -> Entry:
        document = json.loads(self._storage.read(self._key(number)))
        points = tuple(Point(*values) for values in document.get("points", ()))
        return Entry(number, points, document.get("artifact"), document.get("bundle_sha256"))

    def _key(self, number: int) -> str:
        return f"{self._prefix}entry-{number:08d}.json"
