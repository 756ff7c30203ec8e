"""The driver's books: what it settles, adopts and says at the end, with no cluster at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.context import JobDocument, ParentTrial, TrialContext, bundle_key, experiment_key, trial_key
from trainer.errors import Stopped, Superseded
from trainer.storage import DirectoryStorage
from trainer.trial_table import TrialRow, read_trial_table, write_trial_table
from trainer.unrecorded import unrecorded_runs
from tune_spaces.driver.ending import best_trial, end_of
from tune_spaces.driver.outcome import Outcome
from tune_spaces.driver.referee import Referee
from tune_spaces.driver.supply import TrialSupply
from tune_spaces.driver.sweep import SweepDriver, run_sweep
from tune_spaces.errors import SweepInterrupted
from tune_spaces.spec import SweepSpec, complete, resolve

SPACE = {"loss.temperature": {"choice": [0.1, 0.5]}, "epochs": {"choice": [1, 2]}}
SWEEP = SweepSpec.model_validate({"base": {"data": {"dataset": "digits"}}, "space": SPACE})


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    return DirectoryStorage(tmp_path / "storage")


def document(tmp_path: Path, **changes: Any) -> JobDocument:
    return JobDocument(
        **{
            "experiment_id": "exp_1",
            "name": "tau",
            "kind": "sweep",
            "attempt": 1,
            "spec": resolve(SWEEP),
            "storage": str(tmp_path / "storage"),
            "cache_dir": str(tmp_path / "cache"),
            **changes,
        }
    )


def leave_marker(job: JobDocument, storage: DirectoryStorage, trial: str, **marker: Any) -> None:
    context = job.trial_context(trial)
    record = {"state": "succeeded", "step": 9, "attempt": 1, "mlflow_run_id": f"run-{trial}", **marker}
    storage.write(context.key("complete.json"), json.dumps(record).encode())
    points = [["loss", 9, 2.5, 0], ["epoch", 9, 1.0, 0], ["knn_accuracy", 9, 0.1, 0]]
    storage.write(context.key("metrics/entry-00000001.json"), json.dumps({"points": points}).encode())


def interrupted(*_: Any, should_end: Callable[[], bool], **__: Any) -> None:
    """Run nothing, as Tune does when it is told to end."""


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
    """Run trials one after the other: those of 2 epochs fail, the others leave their markers."""
    storage = DirectoryStorage(Path(document.storage))
    while not should_end() and (trial := supply.take()) is not None:
        on_start(trial.id)
        assert read_trial_table(storage, document.experiment_id)[-1].state in ("running", "pending")
        if trial.spec.epochs == 2:
            reason = {"code": "non_finite_loss", "message": "nan at step 3", "retryable": False}
            on_end(Outcome(trial=trial.id, state="failed", reason=reason))
            continue
        leave_marker(document, storage, trial.id, metrics={"knn_accuracy": trial.spec.loss.temperature})
        on_end(Outcome(trial=trial.id, state="ended"))


def test_trials_that_run_are_entered_as_they_go(tmp_path: Path, storage: DirectoryStorage) -> None:
    end = run_sweep(document(tmp_path), storage, run_trials=one_by_one)
    assert end.best == {"trial": "t0002", "metric": "knn_accuracy", "value": 0.5}
    assert [row.state for row in table(storage).values()] == ["succeeded", "failed", "succeeded", "failed"]
    assert table(storage)["t0001"].reason == {"code": "non_finite_loss", "message": "nan at step 3", "retryable": False}


def test_suggested_trials_are_in_the_table_before_they_start(tmp_path: Path, storage: DirectoryStorage) -> None:
    sweep = SWEEP.model_copy(update={"search": "optuna", "num_samples": 5})
    job = document(tmp_path, spec=resolve(sweep))
    run_sweep(job, storage, run_trials=one_by_one)
    assert list(table(storage)) == [f"t{index:04d}" for index in range(5)]
    assert all(set(row.params) == {"loss.temperature", "epochs"} for row in table(storage).values())


def test_an_interruption_that_no_one_asked_for_is_retried(tmp_path: Path, storage: DirectoryStorage) -> None:
    with pytest.raises(SweepInterrupted) as error:
        run_sweep(document(tmp_path), storage, run_trials=interrupted)
    assert error.value.retryable
    assert error.value.context == {"trials_left": 4}


def table(storage: DirectoryStorage, experiment_id: str = "exp_1") -> dict[str, TrialRow]:
    return {row.id: row for row in read_trial_table(storage, experiment_id)}


def test_a_sweep_whose_trials_have_markers_is_settled_without_a_cluster(
    tmp_path: Path, storage: DirectoryStorage
) -> None:
    job = document(tmp_path, attempt=2)
    SweepDriver(complete(SWEEP), document(tmp_path), storage)
    for index in range(4):
        leave_marker(job, storage, f"t{index:04d}", metrics={"knn_accuracy": 0.5 + index / 10})
    end = run_sweep(job, storage)
    assert (end.state, end.best) == ("succeeded", {"trial": "t0003", "metric": "knn_accuracy", "value": 0.8})
    row = table(storage)["t0003"]
    assert row.params == {"loss.temperature": 0.5, "epochs": 2}
    assert row.metrics == {"knn_accuracy": 0.8, "loss": 2.5, "epoch": 1.0}
    assert (row.state, row.mlflow_run_id) == ("succeeded", "run-t0003")
    for form in ("json", "md", "html"):
        assert storage.read(experiment_key("exp_1", f"report.{form}"))


def test_a_new_attempt_runs_what_has_no_marker_and_no_final_failure(tmp_path: Path, storage: DirectoryStorage) -> None:
    first = SweepDriver(complete(SWEEP), document(tmp_path), storage)
    leave_marker(document(tmp_path), storage, "t0000", metrics={"knn_accuracy": 0.5})
    first.ledger.start("t0001")
    first.ledger.fail("t0002", {"code": "non_finite_loss", "message": "nan", "retryable": False})
    first.ledger.fail("t0003", {"code": "trial_crashed", "message": "killed", "retryable": True})
    second = SweepDriver(complete(SWEEP), document(tmp_path, attempt=2), storage)
    assert {trial_id: row.state for trial_id, row in table(storage).items()} == {
        "t0000": "succeeded",
        "t0001": "pending",
        "t0002": "failed",
        "t0003": "pending",
    }
    taken = [second.supply.take(), second.supply.take(), second.supply.take()]
    assert [trial.id if trial else None for trial in taken] == ["t0001", "t0003", None]


def test_an_older_driver_writes_no_more(tmp_path: Path, storage: DirectoryStorage) -> None:
    old = SweepDriver(complete(SWEEP), document(tmp_path), storage)
    SweepDriver(complete(SWEEP), document(tmp_path, attempt=2), storage)
    before = table(storage)
    old.ledger.start("t0000")
    assert table(storage) == before
    assert old.ledger.superseded is not None
    with pytest.raises(Superseded):
        old.ledger.write(is_last=True)


@pytest.mark.parametrize(("kind", "state"), [("pause", "pending"), ("cancel", "cancelled")])
def test_a_stop_before_the_end_leaves_the_rest_as_asked(
    tmp_path: Path, storage: DirectoryStorage, kind: str, state: str
) -> None:
    job = document(tmp_path)
    leave_marker(job, storage, "t0000", metrics={"knn_accuracy": 0.5})
    write_trial_table(storage, "exp_1", [TrialRow(id="t0000", params={"loss.temperature": 0.1, "epochs": 1})])
    storage.write(experiment_key("exp_1", "stop.json"), json.dumps({"attempt": 1, "kind": kind}).encode())
    with pytest.raises(Stopped) as stopped:
        run_sweep(job, storage, run_trials=interrupted)
    assert stopped.value.context["kind"] == kind
    assert [row.state for row in table(storage).values()] == ["succeeded", state, state, state]


def test_a_continued_sweep_takes_over_what_is_the_same_trial(tmp_path: Path, storage: DirectoryStorage) -> None:
    parent = document(tmp_path)
    driver = SweepDriver(complete(SWEEP), parent, storage)
    for trial in ("t0000", "t0001"):
        bundle = parent.trial_context(trial).key("encoder-00000002.zip")
        leave_marker(parent, storage, trial, metrics={"knn_accuracy": 0.5}, bundle=bundle)
        storage.write(bundle, b"bundle")
    SweepDriver(complete(SWEEP), document(tmp_path, attempt=2), storage)
    assert driver.sweep == complete(SWEEP)
    changed = {"loss.temperature": {"choice": [0.1, 0.5]}, "epochs": {"choice": [1, 3]}}
    other = SweepSpec.model_validate({"base": {"data": {"dataset": "digits"}}, "space": changed})
    child = document(
        tmp_path,
        experiment_id="exp_2",
        spec=resolve(other),
        parent=ParentTrial(experiment_id="exp_1", trial_id="t0000"),
    )
    continued = SweepDriver(complete(other), child, storage)
    assert [row.state for row in continued.ledger.rows.values()] == ["succeeded", "pending", "pending", "pending"]
    marker = json.loads(storage.read(child.trial_context("t0000").key("complete.json")))
    assert storage.read(bundle_key("exp_2", "t0000", marker)) == b"bundle"
    assert continued.context("t0000").parent == ParentTrial(experiment_id="exp_1", trial_id="t0000")
    assert continued.context("t0001").parent == ParentTrial(experiment_id="exp_1", trial_id=None), "of another trial"


@pytest.mark.parametrize(
    ("seeds", "adopted"),
    [([0, 1, 2], {"t0000", "t0001", "t0002"}), ([5, 6, 7], set()), ([0, 6, 7], {"t0000"}), ([0], set())],
)
def test_a_suggested_trial_of_another_seed_is_another_trial(
    tmp_path: Path, storage: DirectoryStorage, seeds: list[int], adopted: set[str]
) -> None:
    base = {"data": {"dataset": "digits"}, "seed": 5}
    space = {"loss.temperature": {"uniform": [0.1, 1.0]}}
    asked = {"base": base, "space": space, "search": "optuna", "num_samples": 1, "seeds": [0, 1, 2]}
    parent = document(tmp_path, spec=resolve(SweepSpec.model_validate(asked)))
    run_sweep(parent, storage, run_trials=one_by_one)
    sweep = complete(SweepSpec.model_validate({**asked, "seeds": seeds, "num_samples": 2}))
    link = ParentTrial(experiment_id="exp_1", trial_id="t0000")
    for attempt in (1, 2):
        child = document(tmp_path, experiment_id="exp_2", attempt=attempt, spec=resolve(sweep), parent=link)
        driver = SweepDriver(sweep, child, storage)
        rows = driver.ledger.rows
        assert {trial for trial, one in rows.items() if one.state == "succeeded"} == adopted
        assert all(one.params == trial.params for trial in driver.supply.known() if (one := rows[trial.id]))
        parents = [driver.context(trial).parent for trial in ("t0000", "t0001", "t0002")]
        assert {one.trial_id for one in parents if one and one.trial_id} == adopted, (
            "no trial starts from the checkpoint of another"
        )


class CountingStorage(DirectoryStorage):
    """A directory that keeps count of what it was asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.listed: list[str] = []
        self.was_read: list[str] = []

    def list(self, prefix: str) -> list[str]:
        self.listed.append(prefix)
        return super().list(prefix)

    def read(self, key: str) -> bytes:
        self.was_read.append(key)
        return super().read(key)


def test_a_continued_sweep_copies_the_encoder_that_the_marker_names_and_no_other(
    tmp_path: Path, storage: DirectoryStorage
) -> None:
    parent = document(tmp_path)
    SweepDriver(complete(SWEEP), parent, storage)
    bundles = {
        trial: [parent.trial_context(trial).key(f"encoder-{start:08d}.zip") for start in (1, 2)]
        for trial in ("t0000", "t0001")
    }
    for keys in bundles.values():
        for key in keys:
            storage.write(key, key.encode())
    leave_marker(parent, storage, "t0000", bundle=bundles["t0000"][1])
    leave_marker(parent, storage, "t0002")  # of an early version
    storage.write(parent.trial_context("t0002").key("encoder.zip"), b"early")
    SweepDriver(complete(SWEEP), document(tmp_path, attempt=2), storage)
    counting = CountingStorage(tmp_path / "storage")
    child = document(tmp_path, experiment_id="exp_2", parent=ParentTrial(experiment_id="exp_1", trial_id="t0000"))
    SweepDriver(complete(SWEEP), child, counting)
    copied = {key for key in storage.list("experiments/exp_2/trials/") if "/encoder" in key}
    assert copied == {
        child.trial_context("t0000").key("encoder-00000002.zip"),
        child.trial_context("t0002").key("encoder.zip"),
    }
    assert storage.read(child.trial_context("t0000").key("encoder-00000002.zip")) == bundles["t0000"][1].encode()
    assert [key for key in counting.was_read if key in {*bundles["t0000"], *bundles["t0001"]}] == bundles["t0000"][1:]
    assert [prefix for prefix in counting.listed if "exp_1" in prefix and "encoder" in prefix] == []


def test_an_adopted_trial_owes_mlflow_nothing_of_its_own(tmp_path: Path, storage: DirectoryStorage) -> None:
    parent = document(tmp_path)
    SweepDriver(complete(SWEEP), parent, storage)
    leave_marker(parent, storage, "t0000", is_recorded=False)
    leave_marker(parent, storage, "t0001", is_recorded=True)
    SweepDriver(complete(SWEEP), document(tmp_path, attempt=2), storage)
    child = document(tmp_path, experiment_id="exp_2", parent=ParentTrial(experiment_id="exp_1", trial_id="t0000"))
    SweepDriver(complete(SWEEP), child, storage)
    assert unrecorded_runs(storage, "exp_1") == ["t0000"]
    assert unrecorded_runs(storage, "exp_2") == []
    assert json.loads(storage.read(child.trial_context("t0001").key("complete.json")))["is_recorded"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("failed", ["t0000", "t0001", "t0003"])
def test_a_continued_suggested_sweep_keeps_each_result_with_its_trial(
    tmp_path: Path, storage: DirectoryStorage, seeds: tuple[int, ...], failed: str
) -> None:
    space = {"optim.base_lr": {"loguniform": [0.01, 10.0]}}
    asked = {"base": {"data": {"dataset": "digits"}}, "search": "optuna", "seeds": seeds, "space": space}
    sweep = SweepSpec.model_validate({**asked, "num_samples": 4})
    longer = SweepSpec.model_validate({**asked, "num_samples": 6})
    told: list[tuple[str, dict[str, Any]]] = []

    def run(
        sweep: SweepSpec,
        document: JobDocument,
        supply: TrialSupply,
        *,
        on_start: Callable[[str], None],
        on_end: Callable[[Outcome], None],
        **_: Any,
    ) -> None:
        while (trial := supply.take()) is not None:
            on_start(trial.id)
            told.append((trial.id, trial.params))
            if trial.id == failed and document.experiment_id == "exp_1":
                reason = {"code": "non_finite_loss", "message": "nan", "retryable": False}
                on_end(Outcome(trial=trial.id, state="failed", reason=reason))
                continue
            leave_marker(document, storage, trial.id, metrics={"knn_accuracy": trial.spec.optim.base_lr})
            on_end(Outcome(trial=trial.id, state="ended"))

    run_sweep(document(tmp_path, spec=resolve(sweep)), storage, run_trials=run)
    before = dict(told)
    told.clear()
    parent = ParentTrial(experiment_id="exp_1", trial_id="t0000")
    run_sweep(document(tmp_path, experiment_id="exp_2", spec=resolve(longer), parent=parent), storage, run_trials=run)
    after = table(storage, "exp_2")
    ids = [f"t{index:04d}" for index in range(6 * len(seeds))]
    assert list(after) == ids
    assert [trial for trial, _ in told] == [failed, *ids[4 * len(seeds) :]], "what failed is tried again, and the rest"
    assert {trial: after[trial].params for trial in before} == before
    assert all(one.best is not None and one.best["value"] == one.params["optim.base_lr"] for one in after.values())


def row(trial: str, state: Any, value: float | None = None, message: str = "") -> TrialRow:
    metrics = {} if value is None else {"knn_accuracy": value}
    return TrialRow(id=trial, state=state, metrics=metrics, reason={"message": message} if message else None)


def test_the_best_is_of_those_that_ran_to_their_ends() -> None:
    rows = [row("a", "succeeded", 0.5), row("b", "stopped_early", 0.9), row("c", "succeeded", float("nan"))]
    assert best_trial(complete(SWEEP), rows) == {"trial": "a", "metric": "knn_accuracy", "value": 0.5}
    less = complete(SWEEP.model_copy(update={"mode": "min"}))
    assert best_trial(less, [row("a", "succeeded", 0.5), row("b", "succeeded", 0.4)])["trial"] == "b"  # type: ignore[index]


def test_all_failed_is_a_failure_with_the_first_cause() -> None:
    end = end_of(complete(SWEEP), [row("a", "failed", message="nan at step 3"), row("b", "failed", message="other")])
    assert end.state == "failed"
    assert end.reason is not None
    assert end.reason["code"] == "all_trials_failed"
    assert "nan at step 3" in end.reason["message"]


def test_a_metric_that_no_trial_has_at_its_end_is_a_failure_that_names_it() -> None:
    """What could not be known at POST: the metric came out as no number."""
    end = end_of(complete(SWEEP), [row("a", "succeeded", math.nan), row("b", "succeeded"), row("c", "stopped_early")])
    assert (end.state, end.best) == ("failed", None)
    assert end.reason is not None
    assert end.reason["code"] == "no_best_trial"
    assert "knn_accuracy" in end.reason["message"]


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (
            {"state": "failed", "reason": {"code": "bad_data", "message": "torn", "retryable": False}},
            "torn",
        ),
        ({"state": "failed", "reason": {"code": "trial_crashed", "message": "killed", "retryable": True}}, "killed"),
        ({"state": "ended"}, "without a marker"),
    ],
    ids=["refused by training", "its process died", "it said nothing"],
)
def test_trials_that_all_fail_in_any_way_leave_a_reason_with_its_cause(
    tmp_path: Path, storage: DirectoryStorage, outcome: dict[str, Any], cause: str
) -> None:
    def fail_all(*arguments: Any, on_start: Any, on_end: Any, **_: Any) -> None:
        supply = arguments[2]
        while (trial := supply.take()) is not None:
            on_start(trial.id)
            on_end(Outcome(trial=trial.id, **outcome))

    end = run_sweep(document(tmp_path), storage, run_trials=fail_all)
    assert (end.state, end.best) == ("failed", None)
    assert end.reason is not None
    assert end.reason["code"] == "all_trials_failed"
    assert "all 4 trials failed; t0000: " in end.reason["message"]
    assert cause in end.reason["message"]
    assert cause in end.reason["cause"]["message"]
    assert {row.state for row in table(storage).values()} == {"failed"}
    assert all(cause in str((row.reason or {}).get("message")) for row in table(storage).values())
    assert cause in storage.read(experiment_key("exp_1", "report.md")).decode(), "the report lists the failures"


def test_the_referee_knows_after_a_restart_what_it_heard_before(tmp_path: Path) -> None:
    asked = {"base": {"data": {"dataset": "digits"}}, "space": {"loss.temperature": {"choice": [0.1, 0.5]}}}
    sweep = resolve(SweepSpec.model_validate({**asked, "scheduler": "asha"}))
    places: dict[str, Any] = {
        "sweep": sweep,
        "storage": str(tmp_path),
        "experiment_id": "exp_1",
        "epochs": {"a": 9, "b": 9},
    }
    first = Referee(**places)
    assert not first.report("a", 9, 1, {"knn_accuracy": 0.5})
    assert not first.report("a", 9, 2, {"loss": 1.0}), "an epoch without the metric is not judged"
    second = Referee(**places)
    assert second.report("b", 9, 1, {"knn_accuracy": 0.4})
    assert second.report("b", 9, 1, {"knn_accuracy": 0.9}), "an epoch heard again counts as it was first"
    assert not second.report("c", 27, 1, {"knn_accuracy": 0.1}), "another schedule is another cohort"


def asha_referee(tmp_path: Path, trials: str = "abcde") -> Referee:
    asked = {"base": {"data": {"dataset": "digits"}, "epochs": 9}, "space": SPACE, "scheduler": "asha"}
    sweep = resolve(SweepSpec.model_validate(asked))
    return Referee(
        sweep=sweep, storage=str(tmp_path / "storage"), experiment_id="exp_1", epochs=dict.fromkeys(trials, 9)
    )


def test_what_the_referee_said_once_it_says_again_after_a_restart(tmp_path: Path) -> None:
    first = asha_referee(tmp_path)
    assert not first.report("a", 9, 1, {"knn_accuracy": 0.5})
    for trial, value in (("b", 0.51), ("c", 0.52), ("d", 0.53)):
        first.report(trial, 9, 1, {"knn_accuracy": value})
    assert first.report("e", 9, 1, {"knn_accuracy": 0.1})
    second = asha_referee(tmp_path)
    assert not second.report("a", 9, 1, {"knn_accuracy": 0.5}), "it went on, and better ones behind it change nothing"
    assert second.report("e", 9, 2, {"knn_accuracy": 0.9}), "it died before it ended, and epoch 2 is no rung"
    assert second.report("e", 9, 3, {"loss": 1.0})


def test_the_referee_of_a_suggested_search_starts_again_with_all_it_heard(
    tmp_path: Path, storage: DirectoryStorage
) -> None:
    rows = [TrialRow(id="a", params={"epochs": 9}), TrialRow(id="b", params={"loss.temperature": 0.5})]
    first = asha_referee(tmp_path, trials="")
    write_trial_table(storage, "exp_1", rows)
    first.report("a", 9, 1, {"knn_accuracy": 0.9})
    first.report("a", 9, 2, {"knn_accuracy": 0.9})
    assert asha_referee(tmp_path, trials="").report("b", 9, 1, {"knn_accuracy": 0.1}), "worse than one it heard before"
    third = asha_referee(tmp_path, trials="")
    third.report("a", 9, 4, {"knn_accuracy": 0.9})
    assert [epoch for epoch, *_ in json.loads(storage.read(trial_key("exp_1", "a", "epochs.json")))] == [1, 2, 4]


def test_the_referee_reads_epochs_that_were_kept_without_a_decision(tmp_path: Path, storage: DirectoryStorage) -> None:
    storage.write(trial_key("exp_1", "a", "epochs.json"), b"[[1, 0.5]]")
    referee = asha_referee(tmp_path)
    assert referee.report("b", 9, 1, {"knn_accuracy": 0.4})
    assert not referee.report("a", 9, 1, {"knn_accuracy": 0.5})
    referee.report("a", 9, 2, {"knn_accuracy": 0.5})
    assert json.loads(storage.read(trial_key("exp_1", "a", "epochs.json"))) == [[1, 0.5, False], [2, 0.5, False]]


def test_the_referee_stops_by_the_median_of_what_the_others_have_shown(tmp_path: Path) -> None:
    asked = {"base": {"data": {"dataset": "digits"}}, "space": {"loss.temperature": {"choice": [0.1, 0.5]}}}
    sweep = resolve(SweepSpec.model_validate({**asked, "scheduler": "median"}))
    referee = Referee(sweep=sweep, storage=str(tmp_path), experiment_id="exp_1", epochs=dict.fromkeys("abcde", 9))
    for trial in "abc":
        assert not referee.report(trial, 9, 1, {"knn_accuracy": 0.5})
    assert referee.report("d", 9, 1, {"knn_accuracy": 0.4})
    assert not referee.report("e", 9, 1, {"knn_accuracy": 0.6})


def test_the_median_is_of_whatever_metric_the_sweep_is_judged_by(tmp_path: Path) -> None:
    asked = {"base": {"data": {"dataset": "digits"}}, "space": {"loss.temperature": {"choice": [0.1, 0.5]}}}
    sweep = resolve(SweepSpec.model_validate({**asked, "scheduler": "median", "metric": "loss", "mode": "min"}))
    referee = Referee(sweep=sweep, storage=str(tmp_path), experiment_id="exp_1", epochs=dict.fromkeys("abcde", 9))
    for trial in "abc":
        assert not referee.report(trial, 9, 1, {"loss": 2.0, "knn_accuracy": 0.1})
    assert referee.report("d", 9, 1, {"loss": 2.5, "knn_accuracy": 0.9})
    assert not referee.report("e", 9, 1, {"loss": 1.5, "knn_accuracy": 0.0})
