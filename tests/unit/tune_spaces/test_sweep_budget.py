"""The limits of a sweep while it runs: what is counted, when it ends, and what it says of itself."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.clock import Clock
from trainer.context import JobDocument, ParentTrial, TrialContext, experiment_key, trial_key
from trainer.epoch_report import EpochReport
from trainer.storage import DirectoryStorage
from trainer.trial_table import read_trial_table
from tune_spaces.driver.budget import Budget, EpochWatch
from tune_spaces.driver.outcome import Outcome
from tune_spaces.driver.supply import TrialSupply
from tune_spaces.driver.sweep import SweepDriver, run_sweep
from tune_spaces.spec import SweepLimits, SweepSpec, resolve

BASE = {"data": {"dataset": "digits"}, "batch_size": 64, "epochs": 4}
STEPS_AN_EPOCH = 10
IMAGES_AN_EPOCH = STEPS_AN_EPOCH * 64


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    return DirectoryStorage(tmp_path / "storage")


def document(tmp_path: Path, *, attempt: int = 1, **limits: int) -> JobDocument:
    sweep = SweepSpec.model_validate(
        {"base": BASE, "space": {"loss.temperature": {"choice": [0.1, 0.2, 0.5, 1.0]}}, "limits": limits}
    )
    return JobDocument(
        experiment_id="exp_1",
        name="tau",
        kind="sweep",
        attempt=attempt,
        spec=resolve(sweep),
        storage=str(tmp_path / "storage"),
        cache_dir=str(tmp_path / "cache"),
    )


def train(context: TrialContext, storage: DirectoryStorage, *, look: Callable[[], None]) -> None:
    """Report epochs as the loop does, all but the last, and leave the marker of how it ended."""
    watch = EpochWatch(context=context, batch_size=64, counts_images=True, referee=None)
    state, step = "succeeded", 4 * STEPS_AN_EPOCH
    for epoch in (1, 2, 3):
        is_stopped = watch(EpochReport(epoch=epoch, step=epoch * STEPS_AN_EPOCH, metrics={}))
        look()
        if is_stopped:
            state, step = "stopped_early", epoch * STEPS_AN_EPOCH
            break
    marker = {"state": state, "step": step, "attempt": context.attempt, "metrics": {"knn_accuracy": 0.5}}
    storage.write(context.key("complete.json"), json.dumps(marker).encode())


def one_by_one(
    sweep: SweepSpec,
    document: JobDocument,
    supply: TrialSupply,
    *,
    num_trials: int,
    contexts: Callable[[str], TrialContext],
    on_start: Callable[[str], None],
    on_end: Callable[[Outcome], None],
    should_end: Callable[[], bool],
) -> None:
    look = should_end.__self__.budget.look  # type: ignore[attr-defined] # no waiting for its thread
    while not should_end() and (trial := supply.take()) is not None:
        on_start(trial.id)
        train(contexts(trial.id), DirectoryStorage(Path(document.storage)), look=look)
        on_end(Outcome(trial=trial.id, state="ended"))
        look()


def states(storage: DirectoryStorage) -> list[str]:
    return [row.state for row in read_trial_table(storage, "exp_1")]


def report(storage: DirectoryStorage, form: str = "json") -> str:
    return storage.read(experiment_key("exp_1", f"report.{form}")).decode()


def test_images_are_counted_and_end_the_sweep_in_the_middle_of_a_trial(
    tmp_path: Path, storage: DirectoryStorage
) -> None:
    limit = 4 * IMAGES_AN_EPOCH + IMAGES_AN_EPOCH  # one trial and an epoch of the next
    end = run_sweep(document(tmp_path, max_images=limit), storage, run_trials=one_by_one)
    assert states(storage) == ["succeeded", "stopped_early", "cancelled", "cancelled"]
    assert end.best is not None
    assert end.best["trial"] == "t0000"
    assert end.reason is not None
    assert end.reason["code"] == "limit_reached"
    words = f"limits.max_images = {limit} was reached with {limit} images: 2 of 4 trials were left out"
    assert end.reason["message"] == words
    assert json.loads(report(storage))["limit"] == words
    assert "It ended before its trials" in report(storage, "md")
    assert words in report(storage, "html")


def test_a_trial_that_is_stopped_between_two_looks_is_counted(tmp_path: Path, storage: DirectoryStorage) -> None:
    def stopped_at_once(sweep: SweepSpec, document: JobDocument, supply: TrialSupply, **calls: Any) -> None:
        del sweep
        while not calls["should_end"]() and (trial := supply.take()) is not None:
            calls["on_start"](trial.id)
            context = calls["contexts"](trial.id)
            EpochWatch(context=context, batch_size=64, counts_images=True, referee=None)(
                EpochReport(epoch=1, step=STEPS_AN_EPOCH, metrics={})
            )
            marker = {"state": "stopped_early", "step": STEPS_AN_EPOCH, "attempt": 1}
            DirectoryStorage(Path(document.storage)).write(context.key("complete.json"), json.dumps(marker).encode())
            calls["on_end"](Outcome(trial=trial.id, state="ended"))
            calls["should_end"].__self__.budget.look()  # no waiting for its thread

    run_sweep(document(tmp_path, max_images=2 * IMAGES_AN_EPOCH), storage, run_trials=stopped_at_once)
    assert states(storage) == ["stopped_early", "stopped_early", "cancelled", "cancelled"]
    spent = json.loads(storage.read(experiment_key("exp_1", "spent.json")))
    assert spent["images"] == {"t0000": IMAGES_AN_EPOCH, "t0001": IMAGES_AN_EPOCH}


def test_a_sweep_within_its_limits_says_nothing_of_them(tmp_path: Path, storage: DirectoryStorage) -> None:
    end = run_sweep(document(tmp_path, max_images=100 * IMAGES_AN_EPOCH), storage, run_trials=one_by_one)
    assert set(states(storage)) == {"succeeded"}
    assert end.reason is None
    assert json.loads(report(storage))["limit"] is None
    assert "It ended before" not in report(storage, "html")


def test_no_more_trials_start_than_allowed(tmp_path: Path, storage: DirectoryStorage) -> None:
    end = run_sweep(document(tmp_path, max_trials=3), storage, run_trials=one_by_one)
    assert states(storage) == ["succeeded"] * 3 + ["cancelled"]
    assert end.reason is not None
    assert "limits.max_trials = 3" in end.reason["message"]


def test_a_limit_that_was_reached_holds_for_the_attempts_behind(tmp_path: Path, storage: DirectoryStorage) -> None:
    run_sweep(document(tmp_path, max_images=1), storage, run_trials=one_by_one)
    before = states(storage)
    end = run_sweep(document(tmp_path, attempt=2, max_images=1), storage, run_trials=must_not_run)
    assert states(storage) == before == ["stopped_early", "cancelled", "cancelled", "cancelled"]
    assert (end.state, end.best) == ("failed", None)
    assert end.reason is not None
    assert end.reason["code"] == "limit_reached"


@pytest.mark.parametrize("scheduler", ["fifo", "asha"])
def test_a_continuation_finishes_what_a_limit_ended_and_keeps_what_the_scheduler_ended(
    tmp_path: Path, storage: DirectoryStorage, scheduler: str
) -> None:
    cut = document(tmp_path, max_images=1)
    cut = cut.model_copy(update={"spec": {**cut.spec, "scheduler": scheduler}})
    run_sweep(cut, storage, run_trials=one_by_one)
    row = read_trial_table(storage, "exp_1")[0]
    assert row.state == "stopped_early"
    assert row.reason is not None
    assert row.reason["code"] == "limit_reached"
    longer = document(tmp_path).model_copy(
        update={"experiment_id": "exp_2", "parent": ParentTrial(experiment_id="exp_1", trial_id="t0000")}
    )
    longer.spec["scheduler"] = scheduler
    run_sweep(longer, storage, run_trials=one_by_one)
    assert [row.state for row in read_trial_table(storage, "exp_2")] == ["succeeded"] * 4


def test_a_continuation_keeps_what_the_scheduler_stopped(tmp_path: Path, storage: DirectoryStorage) -> None:
    first = document(tmp_path)
    first.spec["scheduler"] = "asha"
    SweepDriver(SweepSpec.model_validate(first.spec), first, storage)
    storage.write(trial_key("exp_1", "t0000", "epochs.json"), b"[[1, 0.1, true]]")
    marker = {"state": "stopped_early", "step": 9, "attempt": 1, "metrics": {}}
    storage.write(trial_key("exp_1", "t0000", "complete.json"), json.dumps(marker).encode())
    run_sweep(first, storage, run_trials=one_by_one)
    assert read_trial_table(storage, "exp_1")[0].reason is None
    parent = ParentTrial(experiment_id="exp_1", trial_id="t0000")
    run_sweep(first.model_copy(update={"experiment_id": "exp_2", "parent": parent}), storage, run_trials=must_not_run)
    assert [row.state for row in read_trial_table(storage, "exp_2")] == ["stopped_early"] + ["succeeded"] * 3


def must_not_run(*_: Any, **__: Any) -> None:
    raise AssertionError("the budget is spent")


def budget(storage: DirectoryStorage, clock: Clock, **limits: int) -> Budget:
    return Budget(
        SweepLimits(**limits),
        storage,
        "exp_1",
        running=lambda: ["t0000"],
        is_owner=lambda: True,
        clock=lambda: clock().timestamp(),
    )


def test_wall_time_adds_up_over_attempts_and_leaves_room_for_the_report(storage: DirectoryStorage) -> None:
    clock = Clock()
    first = budget(storage, clock, wall_time_s=1000)
    clock.advance(700)
    first.look()
    assert first.reached is None
    second = budget(storage, clock, wall_time_s=1000)  # the driver was killed here
    clock.advance(249)
    second.look()
    assert second.reached is None
    clock.advance(1)
    second.look()
    assert second.reached == "limits.wall_time_s = 1000 was used up"


def test_wall_time_ends_the_sweep_while_it_runs_and_is_told(tmp_path: Path, storage: DirectoryStorage) -> None:
    spent = {"wall_time_s": 960.0, "images": {}, "reached": None}  # by the attempts before this one
    storage.write(experiment_key("exp_1", "spent.json"), json.dumps(spent).encode())
    end = run_sweep(document(tmp_path, wall_time_s=1000), storage, run_trials=one_by_one)
    assert states(storage) == ["stopped_early", "cancelled", "cancelled", "cancelled"]
    assert end.reason is not None
    assert end.reason["code"] == "limit_reached"
    assert "limits.wall_time_s = 1000 was used up: 3 of 4 trials were left out" in end.reason["message"]
    assert json.loads(report(storage))["limit"] == end.reason["message"].partition(", and none")[0]


def test_repeated_epochs_are_counted_again(tmp_path: Path, storage: DirectoryStorage) -> None:
    counted = budget(storage, Clock(), max_images=3 * IMAGES_AN_EPOCH)
    context = document(tmp_path).trial_context("t0000")
    watch = EpochWatch(context=context, batch_size=64, counts_images=True, referee=None)
    for epoch in (1, 2, 2):
        assert not watch(EpochReport(epoch=epoch, step=epoch * STEPS_AN_EPOCH, metrics={}))
    counted.look()
    assert counted.images == 3 * IMAGES_AN_EPOCH
    assert counted.reached
    assert watch(EpochReport(epoch=3, step=3 * STEPS_AN_EPOCH, metrics={}))


def test_a_driver_that_was_replaced_writes_no_more(storage: DirectoryStorage) -> None:
    old = Budget(SweepLimits(), storage, "exp_1", running=list, is_owner=lambda: False)
    old.look()
    assert storage.list("experiments/") == []


def test_the_scheduler_is_asked_too(tmp_path: Path) -> None:
    context = document(tmp_path).trial_context("t0000")
    watch = EpochWatch(context=context, batch_size=64, counts_images=False, referee=always)
    assert pickle.loads(pickle.dumps(watch))(EpochReport(epoch=1, step=10, metrics={}))  # noqa: S301 - as Ray does


def always(report: EpochReport) -> bool:
    del report
    return True
