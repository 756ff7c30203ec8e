from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NTXentLoss

from tests.unit.trainer.objective_oracles import OBJECTIVES, oracle_loss, projections, value_and_gradient
from trainer.losses.nt_xent import nt_xent


def test_tiles_made_again_in_backward_give_the_gradient_of_kept_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    z = projections(9)
    _, kept = value_and_gradient(OBJECTIVES["nt_xent"], z)
    monkeypatch.setattr("trainer.losses.nt_xent.MAX_KEPT", 0)
    _, made_again = value_and_gradient(OBJECTIVES["nt_xent"], z)
    assert torch.equal(kept, made_again)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_it_agrees_with_lightly(temperature: float) -> None:
    z = projections(33, 16, dtype=torch.float32).requires_grad_()
    ours = nt_xent(z, temperature=temperature)
    theirs = NTXentLoss(temperature)(*z.chunk(2))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, z)[0], torch.autograd.grad(theirs, z)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_sums_are_float32_or_wider_and_the_gradient_has_the_type_of_z(
    dtype: torch.dtype, expected: torch.dtype
) -> None:
    z = projections(9, dtype=dtype)
    loss, gradient = value_and_gradient(OBJECTIVES["nt_xent"], z)
    assert loss.dtype is expected
    assert gradient.dtype is dtype
    exact = oracle_loss(OBJECTIVES["nt_xent"], z.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("temperature", [0.01, 1e-4])
def test_a_low_temperature_overflows_nothing(temperature: float, dtype: torch.dtype, normalize: bool) -> None:  # noqa: FBT001 - a case
    z = projections(9, dtype=dtype).requires_grad_()
    loss = nt_xent(z, temperature=temperature, normalize=normalize)
    torch.autograd.backward(loss)
    assert z.grad is not None
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert loss.item() >= 0


@pytest.mark.parametrize("temperature", [1 / 64, 1 / 65])
def test_the_plain_and_the_safe_sum_agree_where_they_meet(temperature: float) -> None:
    z = projections(9, dtype=torch.float32)
    exact = oracle_loss(OBJECTIVES["nt_xent"].model_copy(update={"temperature": temperature}), z.double())
    torch.testing.assert_close(nt_xent(z, temperature=temperature).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1e-9, 1e-3, 1e18, 1e30])
def test_the_length_of_rows_does_not_matter(length: float) -> None:
    z = projections(9, dtype=torch.float32)
    torch.testing.assert_close(nt_xent(z * length, temperature=0.5), nt_xent(z, temperature=0.5))


def test_rows_of_zeros_have_no_gradient_and_spoil_no_other() -> None:
    z = projections(4)
    z[[1, 5]] = 0.0
    loss, gradient = value_and_gradient(OBJECTIVES["nt_xent"], z)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[[1, 5]].abs().max() == 0
    assert gradient[[0, 4]].abs().min() > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_projections_that_are_not_finite_give_no_finite_loss(value: float) -> None:
    z = projections(4)
    z[2, 1] = value
    assert not nt_xent(z, temperature=0.5).isfinite()


def test_projections_all_alike_score_the_log_of_what_they_are_compared_with() -> None:
    assert nt_xent(torch.ones(16, 4), temperature=0.5).item() == pytest.approx(math.log(15))


def test_it_keeps_its_precision_under_autocast() -> None:
    z = projections(9, dtype=torch.float32).requires_grad_()
    expected = nt_xent(z, temperature=0.1)
    (gradient,) = torch.autograd.grad(expected, z)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z, temperature=0.1)
        (autocast_gradient,) = torch.autograd.grad(loss, z)
    assert torch.equal(loss, expected)
    assert torch.equal(autocast_gradient, gradient)


def test_the_gradient_follows_that_of_what_the_loss_becomes() -> None:
    z = projections(4).requires_grad_()
    (once,) = torch.autograd.grad(nt_xent(z, temperature=0.5), z)
    (thrice,) = torch.autograd.grad(3 * nt_xent(z, temperature=0.5), z)
    torch.testing.assert_close(thrice, 3 * once)


def test_backward_may_be_called_twice() -> None:
    z = projections(4).requires_grad_()
    loss = nt_xent(z, temperature=0.5)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(loss, z)
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (4,), (2, 2, 4)])
def test_rows_that_are_no_pairs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="projections"):
        nt_xent(torch.ones(shape), temperature=0.5)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        nt_xent(torch.ones(4, 4, dtype=torch.int64), temperature=0.5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(torch.ones(4, 4), temperature=temperature)
