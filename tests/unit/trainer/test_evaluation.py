"""The evaluation of a run: all that was asked for, from a frozen encoder, the test split last and without a say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.harness.teams import train_trial, trial_context
from tests.harness.trajectories import series
from trainer.data.dataset import Dataset, Subset
from trainer.data.prepare import prepare
from trainer.evaluation import Evaluation, FinalEvaluation
from trainer.export import weights_digest
from trainer.learner import SimclrLearner, SupervisedLearner, prepare_learner
from trainer.metric_names import TRANSFORMATION_TASKS
from trainer.precision import Precision
from trainer.probe import linear
from trainer.spec import PretrainSpec
from trainer.team import Team

SPEC: dict[str, Any] = {"data": {"dataset": "shapes", "image_size": 16}, "encoder": {"name": "resnet8"}}
ALL: dict[str, Any] = {"evaluation": {"probe_z": True, "label_fractions": True, "transformation_prediction": True}}

Parts = tuple[SimclrLearner | SupervisedLearner, Evaluation]
Evaluated = Callable[..., Parts]


@pytest.fixture(scope="module")
def shapes(datasets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    cache = tmp_path_factory.mktemp("cache")
    return prepare("shapes", image_size=16, cache_dir=cache, datasets_dir=datasets_dir, validation_ratio=0.1)


@pytest.fixture
def evaluated(shapes: Dataset) -> Evaluated:
    """Return what makes a learner at its first weights and the evaluation of it."""

    def make(test: Callable[[], Subset] | None = None, **changes: Any) -> Parts:
        spec = PretrainSpec.model_validate(SPEC | changes)
        dataset = replace(shapes, _test=test) if test else shapes
        learner = prepare_learner(spec, num_classes=shapes.num_classes, team=Team(), dtype=torch.float32)
        return learner, Evaluation(spec, dataset, Team(), Precision(name="float32", device_type="cpu"))

    return make


def final(parts: Parts) -> FinalEvaluation:
    learner, evaluation = parts
    result = evaluation.final(learner)
    assert result is not None
    return result


def test_all_that_was_asked_for_is_measured_on_an_encoder_that_stays_as_it_was(evaluated: Evaluated) -> None:
    learner, evaluation = evaluated(**ALL)
    before = weights_digest(learner.encoder)
    result = final((learner, evaluation))
    assert result.encoder_digest == before == weights_digest(learner.encoder)
    asked = {"linear_accuracy_z", "linear_accuracy_1pct", "linear_accuracy_10pct"}
    asked |= {f"transformation_{task}_{source}" for task in TRANSFORMATION_TASKS for source in "hz"}
    always = {
        "knn_accuracy",
        "knn_accuracy_k200",
        "linear_accuracy",
        "raw_pixel_knn_accuracy",
        "random_encoder_knn_accuracy",
        "test_knn_accuracy",
        "test_linear_accuracy",
        "h_collapsed",
    }
    assert result.metrics.keys() == asked | always
    assert all(0 <= value <= 1 for value in result.metrics.values())
    plain = final(evaluated())
    assert plain.metrics.keys() == always
    assert plain.metrics == {name: result.metrics[name] for name in always}


def test_an_encoder_that_evaluation_changed_is_refused(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, evaluation = evaluated()
    fit = linear.fit_linear_probe

    def fine_tuned(*arguments: Any, **options: Any) -> Any:
        with torch.no_grad():
            learner.encoder.conv1.weight[0, 0, 0, 0] += 1e-3
        return fit(*arguments, **options)

    monkeypatch.setattr("trainer.evaluation.fit_linear_probe", fine_tuned)
    with pytest.raises(RuntimeError, match="evaluation changed the encoder"):
        evaluation.final(learner)


def test_the_test_split_is_read_once_at_the_end_and_selects_nothing(shapes: Dataset, evaluated: Evaluated) -> None:
    test = shapes.read_test()
    assert test is not None
    assert test.labels is not None
    labels = test.labels
    read: list[str] = []

    def results(shown: Subset) -> FinalEvaluation:
        def read_test() -> Subset:
            read.append("test split")
            return shown

        learner, evaluation = evaluated(read_test, **ALL)
        evaluation.online(learner)
        assert read == []
        result = final((learner, evaluation))
        assert read == ["test split"]
        read.clear()
        return result

    as_it_is, shuffled = results(test), results(replace(test, labels=np.roll(labels, 1)))
    of_test = {"test_knn_accuracy", "test_linear_accuracy"}
    assert all(as_it_is.metrics[name] > shuffled.metrics[name] for name in of_test)
    others = as_it_is.metrics.keys() - of_test
    assert {name: as_it_is.metrics[name] for name in others} == {name: shuffled.metrics[name] for name in others}
    assert as_it_is.predictions is not None
    np.testing.assert_array_equal(as_it_is.predictions, shuffled.predictions)
    assert as_it_is.verdict == shuffled.verdict


def test_an_encoder_that_learned_nothing_is_said_not_to_beat_the_untrained_one(evaluated: Evaluated) -> None:
    result = final(evaluated())
    assert result.metrics["knn_accuracy"] == result.metrics["random_encoder_knn_accuracy"]
    assert "does not beat the untrained encoder (paired p = 1)" in result.verdict
    assert result.paired_p["random_encoder_knn_accuracy"] == 1
    assert f"raw pixels (paired p = {result.paired_p['raw_pixel_knn_accuracy']:.2g})" in result.verdict
    assert result.verdict.endswith(" on 240 images (k = 20, temperature 0.1, each told by the others)")


def test_a_supervised_encoder_is_judged_by_images_whose_labels_it_has_not_seen(
    shapes: Dataset, evaluated: Evaluated
) -> None:
    result = final(evaluated(method="supervised"))
    count, bank = len(shapes.validation), len(shapes.pretrain)
    assert result.verdict.endswith(f" on {count} images (k = 20, temperature 0.1, told by the {bank} pretrained on)")


@pytest.mark.slow
def test_a_supervised_run_is_trained_and_evaluated_as_another(tmp_path: Path, datasets_dir: Path) -> None:
    context = trial_context(tmp_path, datasets_dir)
    optim = {"kind": "adamw", "base_lr": 0.02}
    train_trial(Team(), SPEC | {"method": "supervised", "batch_size": 48, "epochs": 10, "optim": optim}, context)
    losses = series(context, "loss")
    assert list(losses) == list(range(1, 41))  # the steps that any method makes
    assert losses[1] == pytest.approx(np.log(4), abs=0.05)
    assert losses[40] < 0.8 * losses[1]
    assert list(series(context, "knn_accuracy"))[-1] == 40
    assert series(context, "contrastive_accuracy") == series(context, "alignment") == {}
    assert list(tmp_path.rglob("encoder-*.zip"))


def test_one_validation_image_has_no_pair_to_spread(tmp_path: Path) -> None:
    np.savez(tmp_path / "four.npz", train_images=np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8))
    four = prepare("four", image_size=16, cache_dir=tmp_path / "c", datasets_dir=tmp_path, validation_ratio=0.1)
    assert len(four.validation) == 1
    spec = PretrainSpec.model_validate(SPEC | {"data": {"dataset": "four", "image_size": 16}, "batch_size": 2})
    learner = prepare_learner(spec, num_classes=None, team=Team(), dtype=torch.float32)
    metrics = Evaluation(spec, four, Team(), Precision(name="float32", device_type="cpu")).online(learner)
    assert "alignment" in metrics
    assert "uniformity" not in metrics
    assert np.isfinite(list(metrics.values())).all()
