"""The projection head: its three kinds, and where its first values come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainer.projection_head import build_projection_head
from trainer.spec import ProjectionHeadSpec


def a_head(*, seed: int = 0, **spec: Any) -> nn.Module:
    return build_projection_head(ProjectionHeadSpec(**spec), width_of_h=48, seed=seed)


def parameter_shapes(head: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}


def test_no_head_leaves_h_as_it_is() -> None:
    h_BR = torch.randn(4, 48)
    assert a_head(kind="none")(h_BR) is h_BR


def test_a_linear_head_is_one_matrix() -> None:
    head = a_head(kind="linear", dim=7)
    assert parameter_shapes(head) == {"0.weight": (7, 48)}
    assert head(torch.randn(4, 48)).shape == (4, 7)


def test_the_default_head_is_the_reference_code_s() -> None:
    head = a_head()
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [type(module) for module in head.children()] == kinds
    assert parameter_shapes(head) == {
        "0.weight": (48, 48),
        "1.weight": (48,),
        "1.bias": (48,),
        "3.weight": (128, 48),
        "4.weight": (128,),
    }


def test_without_batch_norm_all_layers_but_the_last_have_a_bias() -> None:
    head = a_head(batch_norm=False, num_layers=3, hidden_dim=20, dim=5)
    assert parameter_shapes(head) == {
        "0.weight": (20, 48),
        "0.bias": (20,),
        "2.weight": (20, 20),
        "2.bias": (20,),
        "4.weight": (5, 20),
    }
    assert not [module for module in head.modules() if isinstance(module, nn.BatchNorm1d)]


@pytest.mark.parametrize("spec", [{"kind": "linear"}, {}, {"num_layers": 4, "batch_norm": False}])
def test_first_values_depend_on_the_seed_alone(spec: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    one, again, other = (a_head(seed=seed, **spec).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, values in one.items():
        assert torch.equal(values, again[name])
        is_matrix = values.ndim == 2
        assert torch.equal(values, other[name]) != is_matrix
        if is_matrix:
            assert values.std() == pytest.approx(0.01, rel=0.1)


def test_a_gradient_reaches_every_parameter() -> None:
    head = a_head(num_layers=3)
    head(torch.randn(16, 48)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
