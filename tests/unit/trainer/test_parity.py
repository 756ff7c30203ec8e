"""The gradient of W workers is that of one, with batch norm in encoder and head."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.parity import gradient_error
from trainer.spec import PretrainSpec

pytestmark = pytest.mark.slow

BASE: dict[str, Any] = {"data": {"dataset": "any", "image_size": 16}, "batch_size": 16, "precision": "float64"}


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        (2, {"encoder": {"name": "resnet8"}}),
        (4, {"encoder": {"name": "resnet8"}}),
        (2, {"encoder": {"name": "resnet18"}, "loss": {"temperature": 0.1}}),
        (2, {"encoder": {"name": "resnet8"}, "loss": {"kind": "nt_logistic", "semi_hard": True}}),
    ],
)
def test_gradient_parity_in_float64(workers: int, changes: dict[str, Any]) -> None:
    assert gradient_error(PretrainSpec.model_validate(BASE | changes), workers=workers) <= 1e-12


def test_gradient_parity_in_float32() -> None:
    # Not channels_last: there torch's own one-process batch norm sums naively on one thread and is off by 1e-4.
    changes = {"encoder": {"name": "resnet8"}, "precision": "float32", "channels_last": False}
    spec = PretrainSpec.model_validate(BASE | changes)
    assert gradient_error(spec, workers=2) <= 1e-5
