"""Who may leave the queue: priority, fairness, room, patience."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.dispatch.admission import PATIENCE_S, Admission, Limits, admit, least_demand, most_demand
from service.ports import Capacity, ExperimentRecord
from tests.fakes.records import NOW, record

CAPACITY = Capacity(cpus_total=8, cpus_free=8, gpus_total=1, gpus_free=1, nodes=1)


def decide(queued: Sequence[ExperimentRecord], running: Sequence[ExperimentRecord] = (), **limits: Any) -> Admission:
    return admit(queued, running, capacity=CAPACITY, limits=Limits(**limits), now=NOW)


def names(records: Sequence[ExperimentRecord]) -> list[str]:
    return [item.id for item in records]


def test_as_many_start_as_there_is_room_for() -> None:
    decision = decide([record(name, workers=3) for name in "abc"])
    assert names(decision.admitted) == ["a", "b"]
    assert decision.waiting == {"c": "3 CPUs are needed and not free"}


def test_what_runs_takes_its_room() -> None:
    decision = decide([record("late", workers=2)], [record("running", workers=7)])
    assert decision.admitted == []


def test_higher_priority_goes_first_and_then_the_older() -> None:
    queued = [record("young"), record("old", age_s=9), record("urgent", priority=5)]
    assert names(decide(queued).admitted) == ["urgent", "old", "young"]


def test_owners_take_turns_at_equal_priority() -> None:
    queued = [record(f"ada{index}", age_s=100 - index) for index in range(3)]
    queued.append(record("bob0", age_s=1, owner="bob"))
    assert names(decide(queued).admitted) == ["ada0", "bob0", "ada1", "ada2"]


def test_an_owner_who_runs_much_waits_for_one_who_runs_nothing() -> None:
    queued = [record("ada", age_s=50), record("bob", age_s=1, owner="bob")]
    assert names(decide(queued, [record("running", workers=4)]).admitted) == ["bob", "ada"]


def test_the_number_of_running_experiments_is_limited() -> None:
    decision = decide([record("a", age_s=1), record("b")], [record("r")], max_running=2)
    assert names(decision.admitted) == ["a"]
    assert "2 experiments run at once" in decision.waiting["b"]


def test_the_number_of_an_owners_running_experiments_is_limited() -> None:
    decision = decide([record("a"), record("b", owner="bob")], [record("r")], max_running_per_owner=1)
    assert names(decision.admitted) == ["b"]
    assert "one owner" in decision.waiting["a"]


def test_one_that_backs_off_waits() -> None:
    decision = decide([record("a", not_before=NOW + timedelta(seconds=1)), record("b", not_before=NOW)])
    assert names(decision.admitted) == ["b"]
    assert "tried again later" in decision.waiting["a"]


def test_a_small_one_passes_a_big_one_that_does_not_fit_yet() -> None:
    running = [record("r", workers=2)]
    decision = decide([record("big", workers=8, age_s=PATIENCE_S - 1), record("small", workers=1)], running)
    assert names(decision.admitted) == ["small"]


def test_nothing_younger_of_the_same_priority_passes_one_that_waited_long() -> None:
    big = record("big", workers=8, age_s=PATIENCE_S + 1)
    queued = [big, record("small", workers=1, owner="bob"), record("urgent", workers=1, priority=1)]
    decision = decide(queued, [record("r", workers=2)])
    assert names(decision.admitted) == ["urgent"]
    assert "waited long" in decision.waiting["small"]


def test_one_that_can_never_fit_holds_nobody_up_and_is_told_so() -> None:
    queued = [
        record("huge", workers=16, age_s=PATIENCE_S + 1),
        record("gpus", workers=2, gpus=1, age_s=PATIENCE_S + 1),
        record("small", workers=1),
    ]
    decision = decide(queued)
    assert names(decision.admitted) == ["small"]
    assert decision.waiting["huge"] == "16 CPUs are needed, and the cluster has 8 CPUs and 1 GPUs"
    assert decision.waiting["gpus"] == "2 CPUs and 2 GPUs are needed, and the cluster has 8 CPUs and 1 GPUs"


def test_one_that_a_growing_cluster_has_no_room_for_yet_still_goes_first_when_it_waited_long() -> None:
    big = record("big", workers=64, age_s=PATIENCE_S + 1)
    decision = decide([big, record("small", workers=1)], [record("r")], is_fixed=False)
    assert decision.admitted == []
    assert decision.waiting["big"] == "64 CPUs are needed and not free"


def test_one_that_waits_for_its_owners_limit_holds_nobody_up() -> None:
    old = record("old", age_s=PATIENCE_S + 1)
    decision = decide([old, record("bob", owner="bob")], [record("r")], max_running_per_owner=1)
    assert names(decision.admitted) == ["bob"]


def test_gpus_are_counted_apart() -> None:
    decision = decide([record("a", gpus=1, workers=1, age_s=1), record("b", gpus=1, workers=1)])
    assert names(decision.admitted) == ["a"]
    assert decision.waiting["b"] == "1 CPUs and 1 GPUs are needed and not free"


def test_a_range_of_workers_begins_with_the_least_and_takes_the_most() -> None:
    elastic = record("elastic", workers={"min": 2, "max": 16})
    assert (least_demand(elastic).cpus, most_demand(elastic).cpus) == (2, 16)
    assert names(decide([elastic]).admitted) == ["elastic"]
    assert decide([record("late", workers=1)], [elastic]).admitted == []


def test_a_sweep_begins_with_one_trial_and_takes_all_it_may_run_at_once() -> None:
    base = {"scaling": {"num_workers": 2, "cpus_per_worker": 2}}
    sweep = record("sweep", kind="sweep", spec={"base": base, "max_concurrent_trials": 3})
    assert (least_demand(sweep).cpus, most_demand(sweep).cpus) == (4, 12)


@pytest.mark.parametrize(("at_once", "cpus"), [(8, 8), (None, 18)])
def test_a_sweep_without_a_limit_takes_all_that_it_was_planned_with(at_once: int | None, cpus: float) -> None:
    """Else others would start beside it, and wait for workers that its trials never give back."""
    plan = {"trials": 18, "trials_at_once": at_once}
    sweep = record("sweep", kind="sweep", spec={"base": {"scaling": {"cpus_per_worker": 1}}}, plan=plan)
    assert (least_demand(sweep).cpus, most_demand(sweep).cpus) == (1, cpus)
    decision = decide([record("late", workers=1)], [sweep])
    assert decision.waiting == {"late": "1 CPUs are needed and not free"}


def test_a_sweep_takes_what_its_largest_trials_take() -> None:
    base = {"data": {"dataset": "digits"}}
    space = {"scaling.num_workers": {"choice": [1, 4, 2]}, "loss.temperature": {"choice": [0.1, 0.5]}}
    sweep = record("sweep", kind="sweep", spec={"base": base, "space": space}, plan={"trials": 6, "trials_at_once": 2})
    assert most_demand(sweep).cpus == 8


def test_a_cluster_that_can_grow_is_given_one_that_makes_it_grow() -> None:
    big = [record("a", workers=64, age_s=1), record("b", workers=64)]
    assert decide(big).admitted == []
    assert names(decide(big, is_fixed=False).admitted) == ["a"]


def test_an_operators_limit_stands_for_the_size_of_a_cluster_that_can_grow() -> None:
    big = [record(name, workers=64) for name in "abc"]
    assert names(decide(big, is_fixed=False, max_running=2).admitted) == ["a", "b"]


QUEUES = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(1, 9), st.integers(-1, 1), st.sampled_from("xyz")),
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(QUEUES, st.integers(1, 5), st.integers(1, 5))
def test_limits_and_room_hold_for_every_queue(
    asked: list[tuple[int, int, int, str]], max_running: int, max_running_per_owner: int
) -> None:
    queued = [
        record(str(index), age_s=age_s, workers=workers, priority=priority, owner=owner)
        for index, (age_s, workers, priority, owner) in enumerate(asked)
    ]
    decision = decide(queued, max_running=max_running, max_running_per_owner=max_running_per_owner)
    admitted = decision.admitted
    assert sum(most_demand(item).cpus for item in admitted) <= CAPACITY.cpus_total
    assert len(admitted) <= max_running
    assert all(sum(item.owner == owner for item in admitted) <= max_running_per_owner for owner in "xyz")
    assert {item.id for item in admitted} | set(decision.waiting) == {item.id for item in queued}
    assert {item.id for item in admitted}.isdisjoint(decision.waiting)


@settings(max_examples=50, deadline=None)
@given(QUEUES)
def test_whoever_fits_alone_starts_when_the_cluster_is_empty_and_nobody_else_waits_for_it(
    asked: list[tuple[int, int, int, str]],
) -> None:
    queued = [
        record(str(index), age_s=age_s, workers=workers, priority=priority, owner=owner)
        for index, (age_s, workers, priority, owner) in enumerate(asked)
    ]
    fit = [item for item in queued if least_demand(item).cpus <= CAPACITY.cpus_total]
    assert bool(decide(queued).admitted) == bool(fit)
