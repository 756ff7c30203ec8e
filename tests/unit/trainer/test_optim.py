from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from safetensors.torch import load, save
from timm.optim.lars import Lars as TimmLars
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.optim import Lars, build_optimizer, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from trainer.spec import OptimSpec

Kind = Literal["lars", "sgd", "adamw"]
KINDS: list[Kind] = ["lars", "sgd", "adamw"]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 5))
    return net.double().to(memory_format=torch.channels_last)


def _train(net: nn.Module, optimizer: Optimizer, *, steps: range, lr: float | None = None) -> None:
    for step in steps:
        x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        torch.autograd.backward(net(x).square().mean())
        set_learning_rate(optimizer, lr if lr is not None else 0.1 * (step + 1))
        optimizer.step()


def _plain_lars(w: list[float], g: list[float], v: list[float], *, lr: float, wd: float) -> None:
    g = [gi + wd * wi for gi, wi in zip(g, w, strict=True)]
    w_length, g_length = math.hypot(*w), math.hypot(*g)
    trust = 0.001 * w_length / g_length if w_length > 0 and g_length > 0 else 1.0
    for i in range(len(w)):
        v[i] = 0.9 * v[i] + lr * trust * g[i]
        w[i] -= v[i]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_steps_as_written_out_in_plain_python(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
    optimizer = Lars([parameter], lr=0.0, weight_decay=weight_decay)
    w, v = parameter.detach().flatten().tolist(), [0.0] * 12
    for lr in (1.0, 0.3, 2.0):
        gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        parameter.grad = gradient.clone()
        set_learning_rate(optimizer, lr)
        optimizer.step()
        _plain_lars(w, gradient.flatten().tolist(), v, lr=lr, wd=weight_decay)
        assert torch.equal(parameter.grad, gradient)
        assert parameter.detach().flatten().tolist() == pytest.approx(w, rel=1e-13)


def test_lars_agrees_with_timm_at_a_constant_rate_without_decay() -> None:
    ours, theirs = _net(), _net()
    matrices = [[p for p in net.parameters() if p.dim() > 1] for net in (ours, theirs)]
    optimizers = (
        Lars(matrices[0], lr=0.5),
        TimmLars(matrices[1], lr=0.5, momentum=0.9, weight_decay=0.0, always_adapt=True),
    )
    for net, optimizer in zip((ours, theirs), optimizers, strict=True):
        _train(net, optimizer, steps=range(4), lr=0.5)
    for our, their in zip(*matrices, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("w", "g"), [(0.0, 2.0), (3.0, 0.0)])
def test_a_length_of_zero_is_not_adapted(w: float, g: float) -> None:
    parameter = nn.Parameter(torch.full((1, 1), w))
    parameter.grad = torch.full((1, 1), g)
    Lars([parameter], lr=0.5).step()
    assert parameter.item() == w - 0.5 * g


def test_without_weight_decay_lars_still_adapts() -> None:
    net = _net()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = build_optimizer(OptimSpec(weight_decay=0.0), net)
    _train(net, optimizer, steps=range(1), lr=1.0)
    for parameter, old in zip(net.parameters(), before, strict=True):
        if parameter.dim() > 1:
            assert ((parameter - old).norm() / old.norm()).item() == pytest.approx(0.001)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_neither_decayed_nor_adapted(kind: Kind) -> None:
    net = _net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer(OptimSpec(kind=kind, weight_decay=0.5), net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.dim() <= 1), name


def test_lars_moves_vectors_as_sgd_does() -> None:
    net, other = _net(), _net()
    for each, spec in ((net, OptimSpec(kind="lars")), (other, OptimSpec(kind="sgd"))):
        _train(each, build_optimizer(spec, each), steps=range(1), lr=0.3)
    for parameter, same in zip(net.parameters(), other.parameters(), strict=True):
        if parameter.dim() <= 1:
            torch.testing.assert_close(parameter, same, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimizer_goes_on_bit_for_bit(kind: Kind) -> None:
    net = _net()
    optimizer = build_optimizer(OptimSpec(kind=kind, weight_decay=0.01), net)
    _train(net, optimizer, steps=range(3))
    contiguous = {key: value.contiguous() for key, value in optimizer_tensors(optimizer, net).items()}
    state, weights = load(save(contiguous)), {key: value.clone() for key, value in net.state_dict().items()}
    _train(net, optimizer, steps=range(3, 6))

    resumed = _net()
    resumed.load_state_dict(weights)
    fresh = build_optimizer(OptimSpec(kind=kind, weight_decay=0.01), resumed)
    load_optimizer_tensors(fresh, resumed, state)
    _train(resumed, fresh, steps=range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))
    _assert_same_state(optimizer_tensors(fresh, resumed), optimizer_tensors(optimizer, net))


def _assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype is value.dtype
        assert found[key].stride() == value.stride()
        assert torch.equal(found[key], value)


def test_state_is_named_by_parameter_and_key() -> None:
    net = _net()
    optimizer = build_optimizer(OptimSpec(kind="adamw"), net)
    assert optimizer_tensors(optimizer, net) == {}
    _train(net, optimizer, steps=range(2))
    tensors = optimizer_tensors(optimizer, net)
    assert {key for key in tensors if key.startswith("0.weight/")} == {
        "0.weight/step",
        "0.weight/exp_avg",
        "0.weight/exp_avg_sq",
    }
    assert tensors["0.weight/step"].item() == 2


def test_loading_copies() -> None:
    net = _net()
    optimizer = build_optimizer(OptimSpec(kind="sgd"), net)
    state = {"3.bias/momentum_buffer": torch.ones(5, dtype=torch.float64)}
    load_optimizer_tensors(optimizer, net, state)
    _train(net, optimizer, steps=range(1))
    assert torch.equal(state["3.bias/momentum_buffer"], torch.ones(5, dtype=torch.float64))


def test_state_of_an_unknown_parameter_is_refused() -> None:
    net = _net()
    with pytest.raises(ValueError, match="gone"):
        load_optimizer_tensors(build_optimizer(OptimSpec(), net), net, {"gone/momentum_buffer": torch.ones(1)})


def test_nothing_moves_before_a_rate_is_set() -> None:
    for kind in KINDS:
        net = _net()
        assert {group["lr"] for group in build_optimizer(OptimSpec(kind=kind), net).param_groups} == {0.0}


def test_frozen_parameters_are_left_out() -> None:
    net = _net()
    net[0].requires_grad_(False)
    held = {id(p) for group in build_optimizer(OptimSpec(), net).param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters() if p.requires_grad}


def test_lars_reevaluates_a_closure_with_gradients() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))

    def closure() -> float:
        loss = parameter.square().sum()
        torch.autograd.backward(loss)
        return loss.item()

    assert Lars([parameter], lr=1.0).step(closure) == 4.0
    assert parameter.grad is not None
