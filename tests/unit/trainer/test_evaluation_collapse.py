"""A run whose h has collapsed says so: in the log once, in a metric, and in its verdict."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from trainer.data.prepare import prepare
from trainer.evaluation import Evaluation
from trainer.learner import SimclrLearner, SupervisedLearner, prepare_learner
from trainer.precision import Precision
from trainer.spec import PretrainSpec
from trainer.team import Team


@pytest.fixture
def judged(datasets_dir: Path, tmp_path: Path) -> tuple[SimclrLearner | SupervisedLearner, Evaluation]:
    spec = PretrainSpec.model_validate(
        {
            "data": {"dataset": "shapes", "image_size": 16},
            "encoder": {"name": "resnet8"},
            "evaluation": {"linear_probe": False},
        }
    )
    dataset = prepare("shapes", image_size=16, cache_dir=tmp_path, datasets_dir=datasets_dir, validation_ratio=0.1)
    learner = prepare_learner(spec, num_classes=4, team=Team(), dtype=torch.float32)
    return learner, Evaluation(spec, dataset, Team(), Precision(name="float32", device_type="cpu"))


def test_an_untrained_encoder_has_not_collapsed(
    judged: tuple[SimclrLearner | SupervisedLearner, Evaluation], caplog: pytest.LogCaptureFixture
) -> None:
    learner, evaluation = judged
    assert evaluation.online(learner)["h_collapsed"] == 0
    assert "collapsed" not in caplog.text


def test_a_constant_h_is_warned_of_once_and_named_in_the_verdict(
    judged: tuple[SimclrLearner | SupervisedLearner, Evaluation], caplog: pytest.LogCaptureFixture
) -> None:
    learner, evaluation = judged
    with torch.no_grad():
        for name, parameter in learner.encoder.named_parameters():
            if parameter.ndim == 1:  # scales and biases of batch norm: nothing of the image gets through
                parameter.fill_(1.0 if name.endswith("bias") else 0.0)
    with caplog.at_level(logging.WARNING):
        assert evaluation.online(learner)["h_collapsed"] == 1
        assert evaluation.online(learner)["h_collapsed"] == 1
        final = evaluation.final(learner)
    assert caplog.text.count("h has collapsed") == 1
    assert final is not None
    assert final.metrics["h_collapsed"] == 1
    assert final.verdict.startswith("h has collapsed; kNN of h ")
