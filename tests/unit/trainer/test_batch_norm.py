from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.unit.trainer.gloo_ranks import NUM_IMAGES, NormedNet, images, ranks, share, trained, whole
from trainer.batch_norm import globalize_batch_norm, running_statistics_frozen


def _assert_same(found: Tensor, expected: Tensor, name: str) -> None:
    error = (found.double() - expected.double()).norm().item()
    # a bias right before a batch norm has gradient 0, of which only the rounding can be compared
    assert error <= 1e-12 * expected.double().norm().item() + 1e-14, name


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_parameter_gradients_and_statistics_are_those_of_one_process(num_ranks: int) -> None:
    alone = trained(images(), group=None)
    names = [name for name in alone if "z " not in name and "x.grad" not in name]
    assert len(names) > 30
    for found in ranks(num_ranks):
        for name in names:
            _assert_same(found["net"][name], alone[name], name)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", [*(f"{kind} {batch}" for kind in ("z", "x.grad") for batch in range(3)), "z in eval"])
def test_outputs_and_input_gradients_are_those_of_one_process(num_ranks: int, name: str) -> None:
    alone = trained(images(), group=None)
    found = whole([found["net"][name] for found in ranks(num_ranks)])
    _assert_same(found, alone[name], name)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_second_pass_with_frozen_statistics_gives_the_same_output(num_ranks: int) -> None:
    for found in ranks(num_ranks):
        for batch in range(3):
            assert torch.equal(found["net"][f"z {batch} again"], found["net"][f"z {batch}"])


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_hold_the_same_bits(num_ranks: int) -> None:
    first, *others = ranks(num_ranks)
    for name in (name for name in first["net"] if name.startswith("state")):
        assert all(torch.equal(other["net"][name], first["net"][name]) for other in others)


def test_half_precision_input_keeps_its_type_and_float32_statistics() -> None:
    norm, x = nn.BatchNorm2d(3), images(dtype=torch.float32).bfloat16().requires_grad_()
    y = norm(x)
    torch.autograd.backward((y.float() * torch.linspace(-1, 1, y[0].numel()).view(y.shape[1:])).sum())
    assert x.grad is not None
    found = [rank["half"] for rank in ranks(2)]
    assert found[0]["y"].dtype is torch.bfloat16
    assert found[0]["running_var"].dtype is torch.float32
    torch.testing.assert_close(found[0]["running_var"], norm.running_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(whole([part["y"] for part in found]), y.detach(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(whole([part["x.grad"] for part in found]), x.grad, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(sum(part["weight.grad"] for part in found), norm.weight.grad, rtol=1e-2, atol=1e-1)


def test_alone_torchs_own_layers_stay() -> None:
    net = NormedNet()
    before = list(net.modules())
    assert globalize_batch_norm(net, group=None) is net
    assert list(net.modules()) == before


@pytest.mark.parametrize("num_ranks", [2])
def test_names_of_the_state_do_not_change(num_ranks: int) -> None:
    found = ranks(num_ranks)[0]["net"]
    assert [f"state {name}" for name in NormedNet().state_dict()] == [
        name for name in found if name.startswith("state")
    ]


def test_frozen_statistics_do_not_move_and_move_again_afterwards() -> None:
    net = NormedNet()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with running_statistics_frozen(net):
        net(images(dtype=torch.float32))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    net(images(dtype=torch.float32))
    assert not any(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())


def test_statistics_are_thawed_after_an_error() -> None:
    norm = nn.BatchNorm1d(2)
    mean = norm.running_mean
    with pytest.raises(ZeroDivisionError), running_statistics_frozen(norm):
        1 / 0  # noqa: B018
    assert norm.running_mean is mean


@pytest.mark.slow  # the first checkpoint of a process imports torch's compiler
def test_a_checkpointed_block_moves_its_statistics_once() -> None:
    states: list[dict[str, Any]] = []
    gradients: list[Tensor] = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        x = share(images(dtype=torch.float32), r=0, num_ranks=1).requires_grad_()
        contexts = lambda block=block: (nullcontext(), running_statistics_frozen(block))  # noqa: E731
        y = checkpoint(block, x, use_reentrant=False, context_fn=contexts) if is_checkpointed else block(x)
        torch.autograd.backward(y.square().sum())
        assert x.grad is not None
        states.append(block.state_dict())
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_shares_make_up_the_whole() -> None:
    rows = torch.arange(2 * NUM_IMAGES)
    assert torch.equal(whole([share(rows, r=r, num_ranks=4) for r in range(4)]), rows)
