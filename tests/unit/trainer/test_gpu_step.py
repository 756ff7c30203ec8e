"""Steps on an accelerator: the oracle's loss, one process or a team, no waiting, and the same bits again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.multiprocessing.spawn import spawn

from tests.harness.devices import DEVICES, needs_gpus, waiting_refused
from tests.unit.trainer.objective_oracles import OBJECTIVES, oracle_loss, projections
from trainer.batch_norm import globalize_batch_norm
from trainer.checkpoint import Checkpoint, capture, restore
from trainer.determinism import compute_repeatably
from trainer.learner import prepare_learner
from trainer.losses import build_objective
from trainer.memory import step_memory_bytes
from trainer.optim import build_optimizer
from trainer.precision import resolve_precision
from trainer.spec import PretrainSpec
from trainer.step import Stepper
from trainer.team import BACKENDS, Team
from trainer.transfer import to_device

SIDE = 16
NUM_IMAGES = 8


def a_spec(**changes: Any) -> PretrainSpec:
    base = {
        "data": {"dataset": "shapes", "image_size": SIDE},
        "encoder": {"name": "resnet8"},
        "projection_head": {"dim": 8},
        "precision": "float32",
        "batch_size": NUM_IMAGES,
    }
    return PretrainSpec.model_validate(base | changes)


class Trainee:
    """A learner on its device, with what updates it."""

    def __init__(self, spec: PretrainSpec, team: Team) -> None:
        self.team = team
        precision = resolve_precision(spec.precision, team.device)
        self.dtype = precision.dtype
        self.learner = prepare_learner(spec, num_classes=None, team=team, dtype=precision.dtype)
        self.optimizer = build_optimizer(spec.optim, self.learner)
        self.stepper = Stepper(
            self.learner, self.optimizer, team=team, precision=precision, micro_batch=spec.memory.micro_batch
        )

    def views(self, step: int) -> Tensor:
        """Return this rank's views of a step's batch."""
        generator = torch.Generator().manual_seed(step)
        views = torch.rand(2, NUM_IMAGES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64).to(self.dtype)
        own = views[:, self.team.share(NUM_IMAGES)].flatten(0, 1)
        return own.to(self.team.device, memory_format=torch.channels_last)

    def train(self, first: int, stop: int) -> list[float]:
        return [
            self.stepper(self.views(step), None, learning_rate=0.5, wishes_stop=False).metrics()["loss"]
            for step in range(first, stop)
        ]

    def state(self) -> dict[str, Tensor]:
        return {name: value.cpu().clone() for name, value in self.learner.state_dict().items()}


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], *, rtol: float) -> None:
    torch.testing.assert_close(second, first, rtol=rtol, atol=rtol)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_objectives_are_those_of_brute_force(name: str, device: torch.device) -> None:
    leaf = projections(9).to(device).requires_grad_()
    loss = build_objective(OBJECTIVES[name], group=None).loss(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    oracle_leaf = projections(9).requires_grad_()
    expected = oracle_loss(OBJECTIVES[name], oracle_leaf)
    (expected_gradient,) = torch.autograd.grad(expected, oracle_leaf)
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_low_temperature_overflows_nothing(dtype: torch.dtype, device: torch.device) -> None:
    z = projections(33, dtype=dtype)
    leaf = z.to(device).requires_grad_()
    loss = build_objective(OBJECTIVES["nt_xent cold"], group=None).loss(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.isfinite().all()
    # products of a device may be rounded to 10 bits; over a temperature of 0.01 that is 0.1 in an exponent
    torch.testing.assert_close(
        loss.cpu().double(), oracle_loss(OBJECTIVES["nt_xent cold"], z.double()), rtol=0.01, atol=0.05
    )


# --- the step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_makes_the_host_wait_for_nothing(precision: str, kind: str, device: torch.device) -> None:
    trainee = Trainee(a_spec(precision=precision, optim={"kind": kind}), Team(device=device))
    trainee.train(0, 1)  # kernels are loaded
    views = trainee.views(1)
    with waiting_refused(device):
        outcome = trainee.stepper(views, None, learning_rate=0.5, wishes_stop=True)
    assert outcome.should_stop
    assert outcome.local_loss.isfinite()


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_transfer_makes_the_host_wait_for_nothing(device: torch.device) -> None:
    host = torch.arange(100_000)
    with waiting_refused(device):
        moved = to_device(host, device)
    assert moved.device.type == device.type
    assert torch.equal(moved.cpu(), host)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_float64_steps_are_those_of_the_cpu(device: torch.device) -> None:
    spec = a_spec(precision="float64")
    there, here = Trainee(spec, Team(device=device)), Trainee(spec, Team())
    assert there.train(0, 3) == pytest.approx(here.train(0, 3), rel=1e-9)
    assert_close(here.state(), there.state(), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_bfloat16_steps_follow_those_of_float32(device: torch.device) -> None:
    half, single = (Trainee(a_spec(precision=name), Team(device=device)) for name in ("bfloat16", "float32"))
    assert half.train(0, 2) == pytest.approx(single.train(0, 2), rel=0.05)  # they part faster with every step
    assert all(parameter.dtype == torch.float32 for parameter in half.learner.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_resumed_run_has_the_bits_of_the_unbroken_one(device: torch.device) -> None:
    compute_repeatably(device)  # as the loop does
    unbroken = Trainee(a_spec(), Team(device=device))
    losses = unbroken.train(0, 4)
    broken = Trainee(a_spec(), Team(device=device))
    first = broken.train(0, 2)
    kept: Checkpoint = capture(2, broken.learner, broken.optimizer)
    resumed = Trainee(a_spec(seed=1), Team(device=device))  # nothing of its own start may stay
    restore(kept, resumed.learner, resumed.optimizer)
    assert first + resumed.train(2, 4) == losses
    for name, value in unbroken.state().items():
        assert torch.equal(value, resumed.state()[name]), name


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_what_a_step_needs_is_estimated(device: torch.device) -> None:
    spec = a_spec(batch_size=64)
    assert step_memory_bytes(spec, num_workers=1, device=device) == pytest.approx(
        step_memory_bytes(spec, num_workers=1, device=torch.device("cpu")), rel=0.2
    )


# --- teams ----------------------------------------------------------------------------------------


@contextmanager
def joined(folder: Path, device: torch.device, *, rank: int = 0, world_size: int = 1) -> Iterator[ProcessGroup]:
    dist.init_process_group(
        BACKENDS[device.type], init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        group = dist.group.WORLD
        assert group is not None
        yield group
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_team_of_one_is_the_same_as_no_team(tmp_path: Path, device: torch.device) -> None:
    alone = Trainee(a_spec(precision="float64"), Team(device=device))
    losses = alone.train(0, 2)
    with joined(tmp_path, device) as group:
        member = Trainee(a_spec(precision="float64"), Team(group=group, device=device))
        assert member.train(0, 2) == pytest.approx(losses, rel=1e-12)
    assert_close(alone.state(), member.state(), rtol=1e-11)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_global_batch_norm_of_one_rank_is_torchs(tmp_path: Path, device: torch.device) -> None:
    x = (torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5).to(device)
    plain = nn.BatchNorm2d(3).double().to(device)
    expected = plain(x)
    with joined(tmp_path, device) as group:
        norm = globalize_batch_norm(nn.BatchNorm2d(3).double().to(device), group=group)
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-12, atol=1e-12)


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("device_type", ["cpu", pytest.param("cuda", marks=needs_gpus(2))])
def test_two_workers_make_the_steps_of_one(tmp_path: Path, device_type: str) -> None:
    alone = Trainee(a_spec(precision="float64"), Team(device=torch.device(device_type)))
    losses = alone.train(0, 3)
    spawn(_work, args=(str(tmp_path), device_type), nprocs=2)  # type: ignore[no-untyped-call] # torch gives it no types
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["losses"] == pytest.approx(losses, rel=1e-10)
        assert_close(alone.state(), found["state"], rtol=1e-9)


def _work(rank: int, folder: str, device_type: str) -> None:
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    with joined(Path(folder), device, rank=rank, world_size=2) as group:
        member = Trainee(a_spec(precision="float64"), Team(rank=rank, world_size=2, group=group, device=device))
        losses = member.train(0, 3)
    torch.save({"losses": losses, "state": member.state()}, Path(folder, f"{rank}.pt"))
