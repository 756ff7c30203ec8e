from __future__ import annotations

import copy
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from tests.unit.trainer.gloo_ranks import NUM_IMAGES, NormedNet, images, ranks, share, trained, whole
from trainer.batch_norm import BLOCK_IMAGES, GlobalBatchNorm, globalize_batch_norm, running_statistics_frozen
from trainer.small_messages import SmallMessages


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


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_light_path_gives_the_bits_of_the_group(num_ranks: int) -> None:
    for found in ranks(num_ranks):
        assert all(torch.equal(found["light"]["net"][name], value) for name, value in found["net"].items())


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_put_together_of_the_kernels_of_a_device_it_computes_the_same(num_ranks: int) -> None:
    alone = trained(images(), group=None)
    found = [found["device net"] for found in ranks(num_ranks)]
    for name in alone:
        if name.startswith(("z ", "x.grad")):
            _assert_same(whole([part[name] for part in found]), alone[name], name)
        else:
            for part in found:
                _assert_same(part[name], alone[name], name)


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


CASES = [
    ((70, 5, 6, 7), torch.channels_last),  # the last block is not full
    ((130, 3, 16, 16), torch.channels_last),
    ((130, 3, 16, 16), torch.contiguous_format),
    ((2, 3, 100, 100), torch.channels_last),  # an image is more than a block's worth
    ((70, 4, 5), torch.contiguous_format),
    ((70, 4), torch.contiguous_format),
]


def _normed(norm: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    leaf = x.detach().requires_grad_()
    y = norm(leaf)
    gradients = torch.autograd.grad(y, (leaf, *norm.parameters()), dy)
    return {"y": y.detach(), **dict(zip(("dx", "dweight", "dbias"), gradients, strict=True)), **norm.state_dict()}


@pytest.mark.parametrize(("shape", "layout"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_alone_it_computes_what_torch_does_in_float64(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    generator = torch.Generator().manual_seed(0)
    x, dy = ((torch.randn(shape, generator=generator) * 2 + at).to(dtype) for at in (5.0, 0.0))
    x = x.contiguous(memory_format=layout)
    norm = kind(shape[1], dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    oracle = copy.deepcopy(norm).double()
    found = _normed(globalize_batch_norm(norm, group=None), x, dy)
    expected = _normed(oracle, x.double(), dy.double())
    assert found["y"].dtype is found["dx"].dtype is dtype
    assert found["y"].stride() == found["dx"].stride() == x.stride()
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    for name, value in expected.items():
        assert (found[name].double() - value).norm() <= bound * value.double().norm(), name


def test_many_values_do_not_wear_the_sums_out() -> None:
    x = torch.randn(128, 2, 64, 64, generator=torch.Generator().manual_seed(0)) + 3.0
    found = globalize_batch_norm(nn.BatchNorm2d(2, momentum=1.0), group=None)
    found(x.contiguous(memory_format=torch.channels_last))
    expected = x.double().var(dim=(0, 2, 3))
    torch.testing.assert_close(found.running_var, expected.float(), rtol=2e-6, atol=0)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


def test_shares_of_whole_blocks_leave_every_bit_as_it_is(pair: tuple[socket.socket, socket.socket]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(4 * BLOCK_IMAGES, 3, 8, 8, generator=generator) + at for at in (5.0, 0.1))
    x = x.contiguous(memory_format=torch.channels_last)
    alone = _normed(globalize_batch_norm(nn.BatchNorm2d(3), group=None), x, dy)

    def work(r: int) -> dict[str, Tensor]:
        norm = globalize_batch_norm(
            nn.BatchNorm2d(3), group=None, messages=SmallMessages(rank=r, peers={1 - r: pair[r]})
        )
        return _normed(norm, x.chunk(2)[r], dy.chunk(2)[r])

    with ThreadPoolExecutor(2) as threads:
        shares = list(threads.map(work, range(2)))
    for name in ("running_mean", "running_var"):
        assert torch.equal(shares[0][name], alone[name])
    for name in ("y", "dx"):
        assert torch.equal(torch.cat([part[name] for part in shares]), alone[name])


def test_gradients_are_those_of_finite_differences() -> None:
    norm = globalize_batch_norm(nn.BatchNorm2d(3).double(), group=None)
    x = images()[:6].contiguous(memory_format=torch.channels_last).requires_grad_()
    assert isinstance(norm, GlobalBatchNorm)

    def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = functional_call(norm, {"weight": weight, "bias": bias}, (x,))
        return y

    assert torch.autograd.gradcheck(normed, (x, norm.weight, norm.bias), fast_mode=True)


def test_in_eval_mode_it_does_what_torch_does() -> None:
    norm, x = nn.BatchNorm2d(3), images(dtype=torch.float32)
    norm(x)
    expected = norm.eval()(x)
    found = globalize_batch_norm(norm, group=None)
    assert isinstance(found, GlobalBatchNorm)
    assert torch.equal(found(x), expected)


def test_one_value_a_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        globalize_batch_norm(nn.BatchNorm1d(3), group=None)(torch.ones(1, 3))


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
        block = globalize_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), group=None)
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
