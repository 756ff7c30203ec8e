"""The outbox stays quick when a log is long: a start, a retry and a picture do not read it one by one."""

from __future__ import annotations

import threading
from pathlib import Path

from trainer.context import TrialContext
from trainer.fence import take_fence
from trainer.outbox import READ_AT_ONCE, Entry, Outbox, Point, merged
from trainer.storage import DirectoryStorage, Storage


class WatchedStorage(DirectoryStorage):
    """A directory that notes which entries are read, and may hold readers until others read beside them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.entries_read: list[str] = []
        self.gate: threading.Barrier | None = None

    def read(self, key: str) -> bytes:
        if "/entry-" in key:
            self.entries_read.append(key)
            if self.gate is not None:
                self.gate.wait(timeout=10)  # one alone breaks it
        return super().read(key)


def start(storage: Storage, **options: int) -> Outbox:
    context = TrialContext(
        experiment_id="e", experiment_name="n", trial_id="t", attempt=1, storage="unused", cache_dir="c"
    )
    return Outbox(storage, "metrics/", take_fence(storage, context), **options)


def loss(step: int) -> Point:
    return Point("loss", step, 1.0 / step, 1000 * step)


def filled(storage: Storage, num_entries: int, **options: int) -> Outbox:
    outbox = start(storage, **options)
    for step in range(1, num_entries + 1):
        outbox.append_points([loss(step)])
    return outbox


def test_entries_are_read_side_by_side_and_keep_their_order(tmp_path: Path) -> None:
    storage = WatchedStorage(tmp_path)
    filled(storage, 16)
    storage.gate = threading.Barrier(4)
    outbox = start(storage)
    assert outbox.last_number == 16
    assert [entry.number for entry in outbox.unsent()] == list(range(1, 17))
    assert outbox.series("loss") == {"loss": [(step, 1.0 / step) for step in range(1, 17)]}


def test_a_start_reads_only_what_was_written_behind_the_snapshot(tmp_path: Path) -> None:
    storage = WatchedStorage(tmp_path)
    filled(storage, 23, snapshot_every=10)
    outbox = start(storage, snapshot_every=10)
    assert sorted(storage.entries_read) == [f"metrics/entry-{number:08d}.json" for number in (21, 22, 23)]
    outbox.append_points([loss(step) for step in range(5, 25)])  # all but the last are known
    assert [point.step for point in outbox.unsent()[-1].points] == [24]


def test_a_retry_reads_a_bounded_part_of_the_backlog(tmp_path: Path) -> None:
    outbox = filled(DirectoryStorage(tmp_path), READ_AT_ONCE + 1)
    assert [entry.number for entry in outbox.unsent()] == list(range(1, READ_AT_ONCE + 1))
    outbox.mark_sent(READ_AT_ONCE)
    assert [entry.number for entry in outbox.unsent()] == [READ_AT_ONCE + 1]
    outbox.mark_sent(READ_AT_ONCE + 1)
    assert outbox.unsent() == []


def test_neighbours_are_merged_up_to_the_limit_and_nothing_changes_places() -> None:
    picture = Entry(4, artifact={"key": "k", "path": "p"})
    long = Entry(6, tuple(loss(step) for step in range(5, 12)))
    entries = [*(Entry(number, (loss(number),)) for number in (1, 2, 3)), picture, Entry(5, (loss(4),)), long]
    assert list(merged(entries, most_points=2)) == [
        Entry(2, (loss(1), loss(2))),
        Entry(3, (loss(3),)),
        picture,
        Entry(5, (loss(4),)),
        long,  # more than the limit by itself: whoever logs it splits it
    ]
    assert list(merged([], most_points=2)) == []
