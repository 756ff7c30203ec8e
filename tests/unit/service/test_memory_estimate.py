"""The estimate of a step's memory follows the architecture's arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from service.intake.memory_estimate import _convolutions, step_memory_bytes
from trainer.spec import EncoderSpec, PretrainSpec


def spec(**changes: Any) -> PretrainSpec:
    return PretrainSpec.model_validate({"data": {"dataset": "shapes"}, **changes})


@pytest.mark.parametrize(("name", "num_weights"), [("resnet18", 10_994_880), ("resnet50", 20_686_016)])
def test_convolutions_are_those_of_the_paper(name: Any, num_weights: int) -> None:
    """Weights of torchvision's models without the shortcuts, norms and classifier."""
    convs = _convolutions(EncoderSpec(name=name, stem="imagenet"), 224)

    assert sum(conv.kernel**2 * conv.channels_in * conv.channels_out for conv in convs) == num_weights


def test_memory_grows_with_images_and_falls_with_workers_and_micro_batches() -> None:
    whole = step_memory_bytes(spec(batch_size=256))

    assert step_memory_bytes(spec(batch_size=512)) > whole
    assert step_memory_bytes(spec(batch_size=256, scaling={"num_workers": 4})) < whole
    assert step_memory_bytes(spec(batch_size=256, memory={"micro_batch": 32})) < whole
    assert step_memory_bytes(spec(batch_size=256, memory={"activation_checkpointing": True})) < whole
    assert step_memory_bytes(spec(batch_size=256, precision="bfloat16")) < whole
