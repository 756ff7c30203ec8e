"""Fine-tuning: an option that trains a copy, the same on any number of workers, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from tests.harness.teams import run_team, train_trial, trial_context
from tests.harness.trajectories import series
from trainer.data.dataset import Dataset, Subset
from trainer.data.order import unbroken_batches
from trainer.data.prepare import prepare
from trainer.errors import Stopped
from trainer.evaluation import Evaluation, FinalEvaluation
from trainer.export import weights_digest
from trainer.fine_tuning import Interrupted, fine_tune
from trainer.learner import prepare_learner
from trainer.precision import Precision
from trainer.scribe import Scribe
from trainer.spec import PretrainSpec
from trainer.team import Team

SPEC: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "batch_size": 24,
    "epochs": 1,
    "precision": "float64",
}
TUNED: dict[str, Any] = {"fine_tune": True, "fine_tune_base_lr": 1.0, "fine_tune_epochs": 16}
WITHOUT_BATCH_NORM: dict[str, Any] = {
    "encoder": {"name": "resnet8", "norm": "group"},
    "projection_head": {"batch_norm": False},
}
CHANCE = 0.25


@pytest.fixture(scope="module")
def shapes(datasets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset_in(datasets_dir, tmp_path_factory.mktemp("cache"))


def dataset_in(datasets: Path, cache: Path) -> Dataset:
    return prepare("shapes", image_size=16, cache_dir=cache, datasets_dir=str(datasets), validation_ratio=0.1)


def evaluated(dataset: Dataset, **evaluation: Any) -> FinalEvaluation:
    """Evaluate an encoder at its first weights, and see that it keeps them."""
    spec = PretrainSpec.model_validate(SPEC | {"precision": "float32", "evaluation": evaluation})
    learner = prepare_learner(spec, num_classes=dataset.num_classes, team=Team(), dtype=torch.float32)
    before = weights_digest(learner.encoder)
    result = Evaluation(spec, dataset, Team(), Precision(name="float32", device_type="cpu")).final(learner)
    assert result is not None
    assert result.encoder_digest == before == weights_digest(learner.encoder)
    return result


def tuned(
    dataset: Dataset, *, team: Team | None = None, wishes_stop: Callable[[], bool] = lambda: False, **changes: Any
) -> nn.Module:
    """Fine-tune an encoder at its first weights on a few labels, in float64."""
    team = team or Team()
    spec = PretrainSpec.model_validate(SPEC | {"evaluation": {"fine_tune": True}} | changes)
    learner = prepare_learner(spec, num_classes=dataset.num_classes, team=team, dtype=torch.float64)
    return fine_tune(
        learner.encoder,
        dataset.pretrain.part(np.arange(0, 40)),
        spec,
        num_classes=dataset.num_classes,
        epochs=3,
        team=team,
        precision=Precision(name="float64", device_type="cpu"),
        wishes_stop=wishes_stop,
    )


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], *, within: float) -> None:
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=within, msg=name)


def test_it_beats_chance_and_nothing_else_that_is_measured_changes(shapes: Dataset) -> None:
    plain = evaluated(shapes)
    result = evaluated(shapes, **TUNED)
    added = {"fine_tuned_accuracy", "test_fine_tuned_accuracy"}
    assert result.metrics.keys() - plain.metrics.keys() == added
    assert all(result.metrics[name] >= CHANCE + 0.35 for name in added)
    assert result.metrics["fine_tuned_accuracy"] > result.metrics["linear_accuracy"] - 0.1
    assert {name: result.metrics[name] for name in plain.metrics} == plain.metrics
    assert result.encoder_digest == plain.encoder_digest


def test_label_fractions_are_fine_tuned_too(shapes: Dataset) -> None:
    result = evaluated(shapes, label_fractions=True, fine_tune=True, fine_tune_epochs=1)
    assert {"fine_tuned_accuracy_1pct", "fine_tuned_accuracy_10pct", "fine_tuned_accuracy"} <= result.metrics.keys()


def test_how_often_and_on_which_labels_it_is_trained_follows_the_paper(
    shapes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def noted(encoder: nn.Module, labelled: Subset, spec: PretrainSpec, **options: Any) -> nn.Module:
        assert spec.fine_tune_lr() == pytest.approx(0.05 * 24 / 256)
        assert not np.isin(labelled.sample_ids, shapes.validation.sample_ids).any()
        asked.append((len(labelled), options["epochs"]))
        return nn.Sequential(encoder, nn.Linear(encoder.width_of_h, options["num_classes"]))  # type: ignore[arg-type]

    monkeypatch.setattr("trainer.evaluation.fine_tune", noted)
    evaluated(shapes, label_fractions=True, fine_tune=True)
    few, some, all_ = asked
    assert (few[1], some[1], all_) == (60, 30, (len(shapes.pretrain), 30))
    assert 4 <= few[0] < some[0] < 40  # one a class at least


def test_the_test_split_is_read_once_even_without_a_linear_probe_and_selects_nothing(shapes: Dataset) -> None:
    test = shapes.read_test()
    assert test is not None
    assert test.labels is not None
    read: list[Subset] = []

    def result(shown: Subset) -> FinalEvaluation:
        read.clear()
        dataset = replace(shapes, _test=lambda: read.append(shown) or shown)  # type: ignore[func-returns-value]
        found = evaluated(dataset, **TUNED, linear_probe=False)
        assert len(read) == 1
        return found

    as_it_is, shuffled = result(test).metrics, result(replace(test, labels=np.roll(test.labels, 1))).metrics
    assert as_it_is["test_fine_tuned_accuracy"] > shuffled["test_fine_tuned_accuracy"]
    others = as_it_is.keys() - {"test_fine_tuned_accuracy", "test_knn_accuracy"}
    assert {name: as_it_is[name] for name in others} == {name: shuffled[name] for name in others}


def test_it_is_a_function_of_weights_images_and_seed(shapes: Dataset) -> None:
    torch.manual_seed(1)
    first = tuned(shapes).state_dict()
    torch.manual_seed(2)
    assert_same(first, tuned(shapes).state_dict(), within=0.0)
    other = tuned(shapes, seed=1).state_dict()
    assert not torch.equal(first["1.weight"], other["1.weight"])


def save_tuned(team: Team, datasets: str, cache: str, path: str) -> None:
    """Leave the weights that rank 0 has; a body for `run_team`."""
    network = tuned(dataset_in(Path(datasets), Path(cache)), team=team)
    if team.is_first:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


@pytest.mark.slow
def test_two_workers_make_the_network_of_one(shapes: Dataset, datasets_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    run_team(2, save_tuned, str(datasets_dir), str(tmp_path / "cache"), str(path))
    assert_same(tuned(shapes).state_dict(), load_file(path), within=1e-9)


@pytest.mark.slow
def test_a_run_of_two_workers_measures_what_that_of_one_does(datasets_dir: Path, tmp_path: Path) -> None:
    spec = SPEC | {"evaluation": TUNED | {"label_fractions": True, "fine_tune_epochs": 4}}
    alone, shared = (trial_context(tmp_path, datasets_dir, name=name) for name in ("alone", "shared"))
    train_trial(Team(), spec, alone)
    run_team(2, train_trial, spec, shared)
    names = [f"fine_tuned_accuracy{of}" for of in ("", "_1pct", "_10pct")] + ["test_fine_tuned_accuracy"]
    found = {name: series(alone, name) for name in names}
    assert all(list(points) == [9] for points in found.values())
    assert found == {name: series(shared, name) for name in names}


def test_micro_batches_make_the_same_network(shapes: Dataset) -> None:
    whole = tuned(shapes, **WITHOUT_BATCH_NORM).state_dict()
    parts = tuned(shapes, **WITHOUT_BATCH_NORM, memory={"micro_batch": 4}).state_dict()
    assert_same(whole, parts, within=1e-12)


@pytest.mark.parametrize("num_images", [10, 3])
def test_batches_run_on_across_epochs_and_ranks_share_them(num_images: int) -> None:
    batches = unbroken_batches(seed=5, first_epoch=7, num_images=num_images, batch_size=4)
    order = np.concatenate(list(islice(batches, 15)))
    epochs = order.reshape(-1, num_images)
    assert (np.sort(epochs) == np.arange(num_images)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
    shares = [
        islice(
            unbroken_batches(seed=5, first_epoch=7, num_images=num_images, batch_size=4, rank=rank, num_workers=2),
            15,
        )
        for rank in range(2)
    ]
    np.testing.assert_array_equal(order, np.concatenate([np.concatenate(pair) for pair in zip(*shares, strict=True)]))


def num_steps_before_stop(shapes: Dataset, team: Team, *, wishes_at: int | None) -> int:
    """Return how many steps were begun until all ranks were interrupted; this one wishes it at step `wishes_at`."""
    asked: list[int] = []

    def wishes_stop() -> bool:
        asked.append(1)
        return len(asked) == wishes_at

    with pytest.raises(Interrupted):
        tuned(shapes, team=team, wishes_stop=wishes_stop)
    return len(asked)


def stop_by_wish_of_the_first(team: Team, datasets: str, cache: str, folder: str) -> None:
    """Leave the number of steps that each rank began; a body for `run_team`."""
    shapes = dataset_in(Path(datasets), Path(cache))
    number = num_steps_before_stop(shapes, team, wishes_at=3 if team.is_first else None)
    (Path(folder) / f"{team.rank}").write_text(str(number))


def test_a_wish_to_stop_interrupts_it_at_that_step(shapes: Dataset) -> None:
    assert num_steps_before_stop(shapes, Team(), wishes_at=3) == 3


@pytest.mark.slow
def test_the_wish_of_one_rank_interrupts_all_at_the_same_step(datasets_dir: Path, tmp_path: Path) -> None:
    run_team(2, stop_by_wish_of_the_first, str(datasets_dir), str(tmp_path / "cache"), str(tmp_path))
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["3", "3"]


def test_a_run_paused_while_fine_tuning_evaluates_anew_when_it_goes_on(
    tmp_path: Path, datasets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPEC | {"evaluation": {"fine_tune": True, "fine_tune_epochs": 1}}
    mark = Scribe.mark

    def wish_at_evaluation(scribe: Scribe, phase: Any) -> None:
        mark(scribe, phase)
        if phase == "evaluate":
            scribe.stop_wish = "pause"

    monkeypatch.setattr(Scribe, "mark", wish_at_evaluation)
    with pytest.raises(Stopped, match="pause after step 9 of 9"):
        train_trial(Team(), spec, trial_context(tmp_path, datasets_dir))
    monkeypatch.setattr(Scribe, "mark", mark)
    context = trial_context(tmp_path, datasets_dir, attempt=2)
    train_trial(Team(), spec, context)
    assert list(series(context, "fine_tuned_accuracy")) == [9]
    assert list(tmp_path.rglob("encoder-*.zip"))


def test_a_rate_that_diverges_is_named_and_costs_no_run(shapes: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    result = evaluated(shapes, fine_tune=True, fine_tune_base_lr=1000.0, fine_tune_epochs=8)
    assert 0 <= result.metrics["fine_tuned_accuracy"] <= 1
    assert "lower evaluation.fine_tune_base_lr" in caplog.text


def test_the_digest_knows_of_it_only_where_it_is_asked_for() -> None:
    def digest(**evaluation: Any) -> str:
        return PretrainSpec.model_validate(SPEC | {"evaluation": evaluation}).digest()

    assert digest(fine_tune_epochs=5, fine_tune_base_lr=1.0) == digest()
    asked = [digest(), digest(fine_tune=True), digest(**TUNED), digest(**(TUNED | {"fine_tune_epochs": 2}))]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("field", "value"),
    [("fine_tune", "yes"), ("fine_tune_epochs", 0), ("fine_tune_base_lr", 0.0), ("fine_tune_base_lr", float("nan"))],
)
def test_a_bad_value_is_told_at_its_place(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as error:
        PretrainSpec.model_validate(SPEC | {"evaluation": {field: value}})
    assert [problem["loc"] for problem in error.value.errors()] == [("evaluation", field)]
