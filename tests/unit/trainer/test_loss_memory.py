"""Objectives and the measures beside them hold no matrix of all similarities, however large the batch."""

from __future__ import annotations

import pytest
import torch

from tests.unit.trainer.objective_oracles import OBJECTIVES, projections
from trainer.losses import build_objective
from trainer.memory import _Living

NUM_IMAGES = 2048
MATRIX_BYTES = 4 * (2 * NUM_IMAGES) ** 2  # in float32


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_an_objective_holds_a_small_part_of_the_matrix(name: str) -> None:
    leaf = projections(NUM_IMAGES, 8, dtype=torch.float32).requires_grad_()
    living = _Living()
    with living:
        output = build_objective(OBJECTIVES[name], group=None)(leaf)
        torch.autograd.backward(output.loss)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert living.peak_bytes < MATRIX_BYTES / 4


def test_a_buffer_that_grows_is_counted_as_large_as_it_became() -> None:
    living = _Living()
    with living:
        grown = torch.empty(0)
        grown.resize_(1000, 1000)
        written = torch.empty(0)
        torch.add(grown, 1.0, out=written)
    assert living.peak_bytes == grown.nbytes + written.nbytes
