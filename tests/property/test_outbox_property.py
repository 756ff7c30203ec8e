"""Whatever crashes, repeats and overlaps: MLflow gets each point once, none is missing, none twice.

The machine plays starts of one trial that may be killed at any moment, a storage that tears
nothing, and an MLflow that keeps one of two equal points, as the real one does.
"""

from __future__ import annotations

import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trainer.context import TrialContext
from trainer.errors import Superseded
from trainer.fence import take_fence
from trainer.outbox import Outbox, Point, merged
from trainer.storage import open_storage


class Start:
    """One start of the trial: trains on from a checkpoint, records, sends."""

    def __init__(self, folder: str, attempt: int, clock_ms: int, *, snapshot_every: int) -> None:
        self.storage = open_storage(folder)
        self.context = TrialContext(
            experiment_id="e", experiment_name="n", trial_id="t", attempt=attempt, storage=folder, cache_dir="c"
        )
        self.fence = take_fence(self.storage, self.context)
        self.outbox = Outbox(self.storage, "metrics/", self.fence, snapshot_every=snapshot_every)
        self.step = 0
        self.clock_ms = clock_ms
        self.buffer: list[Point] = []


class Trials(RuleBasedStateMachine):
    """Starts overlap: a zombie goes on until it meets the fence."""

    @initialize(snapshot_every=st.sampled_from([1, 3]))
    def begin(self, snapshot_every: int) -> None:
        self.snapshot_every = snapshot_every
        self.folder = tempfile.mkdtemp()
        self.checkpoint = 0
        self.clock_ms = 0
        self.attempt = 0
        self.starts: list[Start] = []
        self.logged: set[Point] = set()  # the run's history, equal points kept once
        self.start()

    def start(self) -> None:
        self.attempt += 1
        start = Start(self.folder, self.attempt, self.clock_ms, snapshot_every=self.snapshot_every)
        start.step = self.checkpoint
        self.starts.append(start)

    def pick(self, index: int) -> Start:
        return self.starts[index % len(self.starts)]

    @rule(index=st.integers(0, 9), steps=st.integers(1, 4))
    def train(self, index: int, steps: int) -> None:
        start = self.pick(index)
        for _ in range(steps):
            start.step += 1
            self.clock_ms += 7
            # another number of workers computes the same value but for rounding
            value = start.step + start.context.attempt * 1e-9
            start.buffer.append(Point("loss", start.step, value, self.clock_ms))

    @rule(index=st.integers(0, 9))
    def persist(self, index: int) -> None:
        start = self.pick(index)
        try:
            start.outbox.append_points(start.buffer)
        except Superseded:
            self.starts.remove(start)  # it stops when it sees the newer fence
            if not self.starts:
                self.start()
            return
        start.buffer = []

    @rule(index=st.integers(0, 9))
    def commit_checkpoint(self, index: int) -> None:
        start = self.pick(index)
        try:
            start.outbox.append_points(start.buffer)
            start.fence.check()
        except Superseded:
            return
        start.buffer = []
        self.checkpoint = max(self.checkpoint, start.step)

    @rule(index=st.integers(0, 9), most_points=st.integers(1, 12), is_acknowledged=st.booleans())
    def send_one(self, *, index: int, most_points: int, is_acknowledged: bool) -> None:
        start = self.pick(index)
        for entry in merged(start.outbox.unsent(), most_points=most_points):
            self.logged |= set(entry.points)
            if is_acknowledged:
                start.outbox.mark_sent(entry.number)
            break

    @precondition(lambda self: len(self.starts) < 4)
    @rule(is_old_killed=st.booleans())
    def restart(self, *, is_old_killed: bool) -> None:
        if is_old_killed:
            self.starts.pop()
        self.start()

    @invariant()
    def each_step_once_without_gaps(self) -> None:
        steps = sorted(point.step for point in self.logged)
        assert steps == sorted(set(steps)), "a step was logged twice"
        assert steps == list(range(1, len(steps) + 1)), "a step is missing below one that is there"

    def teardown(self) -> None:
        if not getattr(self, "starts", None):
            return
        self.start()
        last = self.starts[-1]
        while entries := last.outbox.unsent():
            for entry in merged(entries, most_points=5):
                self.logged |= set(entry.points)
                last.outbox.mark_sent(entry.number)
        assert {point.step for point in self.logged} >= set(range(1, self.checkpoint + 1))
        self.each_step_once_without_gaps()


Trials.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestOutbox = Trials.TestCase
