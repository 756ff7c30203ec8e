from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.losses import LossOutput, build_objective
from trainer.spec import LossSpec

specs = st.one_of(
    st.builds(LossSpec, kind=st.just("nt_xent"), temperature=st.floats(0.05, 5), normalize=st.booleans()),
    st.builds(
        LossSpec,
        kind=st.sampled_from(["nt_logistic", "margin"]),
        temperature=st.floats(0.05, 5),
        normalize=st.booleans(),
        semi_hard=st.booleans(),
        margin=st.floats(0.1, 2),
    ),
)
cases = {"spec": specs, "num_images": st.integers(1, 12), "width": st.integers(2, 9), "seed": st.integers(0, 2**32)}


def _projections(num_images: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * num_images, width, generator=generator, dtype=torch.float64)


def _output_and_gradient(spec: LossSpec, z: Tensor) -> tuple[LossOutput, Tensor]:
    leaf = z.clone().requires_grad_()
    output = build_objective(spec, group=None)(leaf)
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    return output, gradient


def _assert_same(found: LossOutput, expected: LossOutput) -> None:
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-9, atol=1e-10)
    assert found.contrastive_accuracy.item() == pytest.approx(expected.contrastive_accuracy.item())


@settings(max_examples=40, deadline=None)
@given(**cases)
def test_the_order_of_images_and_of_views_does_not_matter(
    spec: LossSpec, num_images: int, width: int, seed: int
) -> None:
    z = _projections(num_images, width, seed)
    output, gradient = _output_and_gradient(spec, z)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([num_images + order, order])  # images reordered, views swapped
    moved, moved_gradient = _output_and_gradient(spec, z[rows])
    _assert_same(moved, output)
    torch.testing.assert_close(moved_gradient, gradient[rows], rtol=1e-8, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(**cases)
def test_turning_all_projections_changes_nothing(spec: LossSpec, num_images: int, width: int, seed: int) -> None:
    z = _projections(num_images, width, seed)
    rotation, _ = torch.linalg.qr(_projections(width, width, seed + 1)[:width])
    output, gradient = _output_and_gradient(spec, z)
    turned, turned_gradient = _output_and_gradient(spec, z @ rotation)
    _assert_same(turned, output)
    torch.testing.assert_close(turned_gradient, gradient @ rotation, rtol=1e-8, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(**cases, length=st.floats(1e-3, 1e3))
def test_with_l2_the_length_of_rows_does_not_matter_and_gradients_are_tangent(
    spec: LossSpec, num_images: int, width: int, seed: int, length: float
) -> None:
    spec = spec.model_copy(update={"normalize": True})
    z = _projections(num_images, width, seed)
    output, gradient = _output_and_gradient(spec, z)
    _assert_same(_output_and_gradient(spec, z * length)[0], output)
    assert (gradient * z).sum(dim=1).abs().max().item() < 1e-9


@settings(max_examples=40, deadline=None)
@given(**cases)
def test_measures_stay_in_their_ranges(spec: LossSpec, num_images: int, width: int, seed: int) -> None:
    output, _ = _output_and_gradient(spec, _projections(num_images, width, seed))
    assert output.loss.item() >= -1e-12
    assert 0 <= output.contrastive_accuracy.item() <= 1
    assert -1e-9 <= output.entropy.item() <= torch.tensor(float(num_images)).log().item() + 1e-6
