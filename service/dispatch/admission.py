"""Which queued experiments may start now: a pure function of the queue and of what runs.

Priority first; at equal priority the owner with the fewest running experiments; then age. One
that does not fit lets smaller ones pass, until it has waited for `PATIENCE_S`: then nothing
younger of the same or lower priority passes it any more, so that it cannot starve. One that a
cluster which cannot grow will never have room for holds up nobody.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Final

from service.dispatch.job import scaling_of
from service.ports import Capacity, ExperimentRecord
from service.settings import Settings
from trainer.spec import ScalingSpec
from tune_spaces.plan import possible_specs
from tune_spaces.spec import SweepSpec

__all__ = ["PATIENCE_S", "Admission", "Demand", "Limits", "admit", "least_demand", "most_demand"]

PATIENCE_S: Final = 300.0


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Logical CPUs and GPUs of workers; drivers and controllers ask for none."""

    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: Demand) -> Demand:
        return Demand(cpus=self.cpus + other.cpus, gpus=self.gpus + other.gpus)

    def fits(self, room: Demand) -> bool:
        """Return whether `room` holds this."""
        return self.cpus <= room.cpus and self.gpus <= room.gpus

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the operator allows at once; None: no limit."""

    max_running: int | None = None
    max_running_per_owner: int | None = None
    is_fixed: bool = True  # whether the cluster has all the nodes it can ever have

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings name."""
        return cls(
            max_running=settings.max_running,
            max_running_per_owner=settings.max_running_per_owner,
            is_fixed=settings.cpus is not None,
        )


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Who may start, in this order, and why the others wait (a text that stays the same meanwhile)."""

    admitted: Sequence[ExperimentRecord]
    waiting: Mapping[str, str]


def least_demand(record: ExperimentRecord) -> Demand:
    """Return what the experiment needs to begin: one trial with its smallest number of workers."""
    scaling = scaling_of(record)
    workers = scaling.min_workers()
    return Demand(cpus=float(workers * scaling.cpus_per_worker), gpus=float(workers * scaling.gpus_per_worker))


def most_demand(record: ExperimentRecord) -> Demand:
    """Return what the experiment takes where it can: all its workers, of all trials at once.

    A sweep that set no limit runs as many trials as fit the cluster: what it was planned with, or
    all of its trials where the cluster did not answer then.
    """
    if record.kind == "pretrain":
        return _of_workers(scaling_of(record))
    asked, plan = record.spec.get("max_concurrent_trials"), record.plan
    trials = int(asked or plan.get("trials_at_once") or plan.get("trials") or 1)
    per_trial = _largest_trial(record)
    return Demand(cpus=trials * per_trial.cpus, gpus=trials * per_trial.gpus)


def _largest_trial(record: ExperimentRecord) -> Demand:
    """Return what the largest trial of a sweep takes, whose axes may be of its workers too."""
    space = record.spec.get("space") or {}
    if not any(path.split(".")[0] == "scaling" for path in space):
        return _of_workers(scaling_of(record))
    return _largest_of_space(json.dumps(record.spec))


@lru_cache(maxsize=256)  # its points are many, and asked about in each step
def _largest_of_space(sweep: str) -> Demand:
    demands = [_of_workers(spec.scaling) for spec in possible_specs(SweepSpec.model_validate_json(sweep))]
    return Demand(cpus=max(each.cpus for each in demands), gpus=max(each.gpus for each in demands))


def _of_workers(scaling: ScalingSpec) -> Demand:
    workers = scaling.max_workers()
    return Demand(cpus=float(workers * scaling.cpus_per_worker), gpus=float(workers * scaling.gpus_per_worker))


def admit(
    queued: Sequence[ExperimentRecord],
    running: Sequence[ExperimentRecord],
    *,
    capacity: Capacity,
    limits: Limits,
    now: datetime,
) -> Admission:
    """Return which of `queued` start beside `running` (all that hold or will hold workers)."""
    total = Demand(cpus=capacity.cpus_total, gpus=capacity.gpus_total)
    held = sum((most_demand(record) for record in running), Demand())
    hall = _Hall(
        limits=limits,
        total=total,
        room=Demand(cpus=total.cpus - held.cpus, gpus=total.gpus - held.gpus),
        num_running=len(running),
        by_owner=Counter(r.owner for r in running),
    )
    due = [record for record in queued if record.not_before is None or record.not_before <= now]
    impatient = timedelta(seconds=PATIENCE_S)
    for record in due:
        if now - record.created_at >= impatient and hall.lacks_room_for(record) and not hall.is_too_small_for(record):
            hall.barriers.append(record)
    by_priority = sorted(due, key=lambda record: (-record.priority, record.created_at, record.id))
    for _, equals in groupby(by_priority, key=lambda record: record.priority):
        _admit_equals(list(equals), hall)
    due_ids = {record.id for record in due}
    later = "it failed to start and is tried again later"
    backing_off = {record.id: later for record in queued if record.id not in due_ids}
    return Admission(admitted=hall.admitted, waiting=hall.waiting | backing_off)


def _admit_equals(records: Sequence[ExperimentRecord], hall: _Hall) -> None:
    """Let in experiments of one priority (oldest first), always of the owner who has the fewest."""
    lines: dict[str, deque[ExperimentRecord]] = {}
    for record in records:
        lines.setdefault(record.owner, deque()).append(record)
    turns = [(hall.by_owner[owner], line[0].created_at, owner) for owner, line in lines.items()]
    heapq.heapify(turns)
    while turns:
        _, _, owner = heapq.heappop(turns)
        hall.judge(lines[owner].popleft())
        if lines[owner]:
            heapq.heappush(turns, (hall.by_owner[owner], lines[owner][0].created_at, owner))


@dataclass(kw_only=True)
class _Hall:
    """Who is in, and what room is left."""

    limits: Limits
    total: Demand  # what it has
    room: Demand  # what is free of it
    num_running: int
    by_owner: Counter[str]
    barriers: list[ExperimentRecord] = field(default_factory=list)  # waited too long to be passed
    admitted: list[ExperimentRecord] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)

    def judge(self, record: ExperimentRecord) -> None:
        why = self._obstacle(record)
        if why is not None:
            self.waiting[record.id] = why
            return
        taken = most_demand(record)
        self.room = Demand(cpus=self.room.cpus - taken.cpus, gpus=self.room.gpus - taken.gpus)
        self.num_running += 1
        self.by_owner[record.owner] += 1
        self.admitted.append(record)

    def is_too_small_for(self, record: ExperimentRecord) -> bool:
        """Return whether it could not hold the record were nobody else in, and does not grow."""
        return self.limits.is_fixed and not least_demand(record).fits(self.total)

    def lacks_room_for(self, record: ExperimentRecord) -> bool:
        if least_demand(record).fits(self.room):
            return False
        # A cluster that can grow does so on demand. Without an operator's limit, one at a time makes it.
        is_growing = not self.limits.is_fixed and (self.limits.max_running is not None or self.num_running == 0)
        return not is_growing

    def _obstacle(self, record: ExperimentRecord) -> str | None:
        limits = self.limits
        if self.is_too_small_for(record):
            return f"{least_demand(record)} are needed, and the cluster has {self.total}"
        if limits.max_running is not None and self.num_running >= limits.max_running:
            return f"{limits.max_running} experiments run at once, and they do"
        if limits.max_running_per_owner is not None and self.by_owner[record.owner] >= limits.max_running_per_owner:
            return f"{limits.max_running_per_owner} experiments of one owner run at once, and they do"
        if any(_is_before(barrier, record) for barrier in self.barriers):
            return "an older experiment has waited long for enough free workers and goes first"
        if self.lacks_room_for(record):
            return f"{least_demand(record)} are needed and not free"
        return None


def _is_before(barrier: ExperimentRecord, record: ExperimentRecord) -> bool:
    key = (barrier.created_at, barrier.id)
    return barrier.priority >= record.priority and key < (record.created_at, record.id)
