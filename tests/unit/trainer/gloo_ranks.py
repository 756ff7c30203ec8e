"""What W gloo processes compute, made once a test session and judged by the tests of each module."""

from __future__ import annotations

import copy
import functools
import io
import logging
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import start_processes

from tests.harness.stand_in import CudaKernels
from tests.unit.trainer.objective_oracles import OBJECTIVES, projections
from trainer.batch_norm import GlobalBatchNorm, globalize_batch_norm, running_statistics_frozen
from trainer.collectives import all_gather, mean_flat_, rank, world_size
from trainer.losses import build_objective, similarity
from trainer.small_messages import MAX_BYTES, SmallMessages, connected

NUM_IMAGES = 12  # N; divided by every W in use


@functools.cache
def ranks(num_ranks: int) -> list[dict[str, Any]]:
    """Return what each of W ranks computed, in rank order."""
    # the server imports torch once, and each rank is a fork of it
    get_context("forkserver").set_forkserver_preload(["torch", "torch.distributed"])
    with tempfile.TemporaryDirectory() as directory:
        start_processes(  # type: ignore[no-untyped-call]
            _work, args=(num_ranks, directory), nprocs=num_ranks, start_method="forkserver"
        )
        return [torch.load(Path(directory) / f"{r}.pt") for r in range(num_ranks)]


def share(views_2N: Tensor, *, r: int, num_ranks: int) -> Tensor:
    """Return rank r's rows: its first views, then its second."""
    return torch.cat([half.chunk(num_ranks)[r] for half in views_2N.chunk(2)])


def whole(shares: list[Tensor]) -> Tensor:
    """Return the rows of one process: undo `share`."""
    return torch.cat([torch.cat([part.chunk(2)[view] for part in shares]) for view in range(2)])


class NormedNet(nn.Module):
    """Batch norm before, between and after convolutions, with and without scales, and on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm2d(3, affine=False)
        self.conv1 = nn.Conv2d(3, 5, 3)
        self.block = nn.Sequential(nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Conv2d(5, 6, 3, bias=False))
        self.norm_cumulative = nn.BatchNorm2d(6, momentum=None)
        self.head = nn.Sequential(nn.Linear(6 * 4, 7), nn.BatchNorm1d(7), nn.Linear(7, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return z."""
        h = self.norm_cumulative(self.block(self.conv1(self.norm_in(x)))).relu()
        z: Tensor = self.head(h.flatten(1))
        return z


def trained(
    images_2N: Tensor, *, group: ProcessGroup | None, messages: SmallMessages | None = None
) -> dict[str, Tensor]:
    """Return state, averaged gradients and z of a net after three batches through this rank."""
    torch.manual_seed(0)
    laid_out = NormedNet().double().to(memory_format=torch.channels_last)
    net = globalize_batch_norm(laid_out, group=group, messages=messages)
    objective = build_objective(OBJECTIVES["nt_xent"], group=group)
    r, num_ranks = rank(group), world_size(group)
    found: dict[str, Tensor] = {}
    for batch in range(3):
        x = share(images_2N * (1 + batch), r=r, num_ranks=num_ranks).requires_grad_()
        layout = torch.channels_last if batch else torch.contiguous_format
        net.zero_grad()
        x_in_layout = x.contiguous(memory_format=layout)
        z = net(x_in_layout)
        with running_statistics_frozen(net):
            found[f"z {batch} again"] = net(x_in_layout).detach()
        loss = objective.loss(z)
        torch.autograd.backward(loss)
        mean_flat_([loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)], group=group)
        assert x.grad is not None
        found |= {f"z {batch}": z.detach(), f"x.grad {batch}": x.grad / num_ranks, f"loss {batch}": loss.detach()}
        found |= {f"{name}.grad {batch}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    found |= {f"state {name}": value for name, value in net.state_dict().items()}
    found["z in eval"] = net.eval()(share(images_2N, r=r, num_ranks=num_ranks)).detach()
    return found


def images(*, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return 2N small images far from zero mean, so that cancelling sums would show."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2 * NUM_IMAGES, 3, 6, 6, generator=generator, dtype=dtype) + 5.0


def _work(r: int, num_ranks: int, directory: str) -> None:
    torch.set_num_threads(1)
    similarity.CPU_TILE = (5, 7)  # so that a rank has several tiles of each kind
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=r, world_size=num_ranks)
    group = dist.group.WORLD
    assert group is not None
    with connected(group, timeout=timedelta(seconds=60)) as messages:
        assert messages is not None
        light = {
            "gathered": _light_and_heavy(r, group, messages),
            "net": trained(images(), group=group, messages=messages),
        }
    found = {
        "light": light,
        "fallback": _without_light_path(r, group),
        "collectives": _collectives(r, group),
        "objectives": {name: _objective(name, r, group) for name in OBJECTIVES},
        "net": trained(images(), group=group),
        "device net": _trained_as_on_a_device(group),
        "half": _half_precision_norm(r, group),
    }
    torch.save(copy.deepcopy(found), Path(directory) / f"{r}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _light_and_heavy(r: int, group: ProcessGroup, messages: SmallMessages) -> list[tuple[Tensor, Tensor]]:
    """Return what the light path and gloo gather of tensors of several types and sizes."""
    tensors = [
        torch.randn(3, 2, dtype=torch.float64).T + r,
        torch.full((5,), r, dtype=torch.int64),
        torch.randn(MAX_BYTES // 2).bfloat16() + r,
    ]
    return [(messages.all_gather(tensor), all_gather(tensor, group=group)) for tensor in tensors]


def _without_light_path(r: int, group: ProcessGroup) -> dict[str, Any]:
    """Return what the last rank's wrong interface leaves: no light path on any rank, and a line in the log."""
    said = io.StringIO()
    logging.getLogger("trainer.small_messages").addHandler(logging.StreamHandler(said))
    interface = os.environ["GLOO_SOCKET_IFNAME"]
    if r == world_size(group) - 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "nowhere0"
    with connected(group, timeout=timedelta(seconds=60)) as messages:
        has_light_path = messages is not None
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    return {"has_light_path": has_light_path, "log": said.getvalue()}


def _collectives(r: int, group: ProcessGroup) -> dict[str, Any]:
    tensors = [
        torch.arange(6.0).view(2, 3).T * (r + 1),
        torch.tensor(float(r), dtype=torch.float64),
        torch.full((2, 3, 2, 2), 1.0 + r).contiguous(memory_format=torch.channels_last),
    ]
    pointers = [tensor.data_ptr() for tensor in tensors]
    mean_flat_(tensors, group=group)
    return {
        "place": (rank(group), world_size(group)),
        "gathered": all_gather(torch.tensor([[r, 10 * r]]), group=group),
        "means": tensors,
        "is_in_place": pointers == [tensor.data_ptr() for tensor in tensors],
    }


def _trained_as_on_a_device(group: ProcessGroup) -> dict[str, Tensor]:
    """Return what `trained` does, batch norm being put together as it is on CUDA."""
    with CudaKernels(), patch.object(GlobalBatchNorm, "_on_host", GlobalBatchNorm._on_device):
        return trained(images(), group=group)


def _objective(name: str, r: int, group: ProcessGroup) -> dict[str, Tensor]:
    leaf = share(projections(NUM_IMAGES), r=r, num_ranks=world_size(group)).requires_grad_()
    output = build_objective(OBJECTIVES[name], group=group)(leaf)
    torch.autograd.backward(output.loss)
    assert leaf.grad is not None
    return {
        "loss": output.loss.detach(),
        "gradient": leaf.grad,
        "contrastive_accuracy": output.contrastive_accuracy,
        "entropy": output.entropy,
    }


def _half_precision_norm(r: int, group: ProcessGroup) -> dict[str, Tensor]:
    norm = globalize_batch_norm(nn.BatchNorm2d(3), group=group)
    x = share(images(dtype=torch.float32), r=r, num_ranks=world_size(group)).bfloat16().requires_grad_()
    y = norm(x)
    torch.autograd.backward((y.float() * torch.linspace(-1, 1, y[0].numel()).view(y.shape[1:])).sum())
    assert x.grad is not None
    assert norm.weight.grad is not None
    return {"y": y.detach(), "x.grad": x.grad, "running_var": norm.running_var, "weight.grad": norm.weight.grad}
