"""One worker of a trial, as Ray Train starts it: it joins its team and trains."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Final

import ray.train
import ray.util
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero

from trainer.context import TrialContext
from trainer.epoch_report import OnEpoch
from trainer.loop import train
from trainer.network import free_address, interface_of
from trainer.outcome import final_errors_left, left_outcome
from trainer.small_messages import connected
from trainer.spec import PretrainSpec
from trainer.team import BACKENDS, Team, usable_workers

__all__ = ["run_worker"]

COLLECTIVE_TIMEOUT: Final = timedelta(minutes=5)  # torch's default for gloo is 30: so long a lost rank would hang


def run_worker(spec: PretrainSpec, context: TrialContext, *, on_epoch: OnEpoch | None) -> None:
    """Train as one of the workers; what another start could not mend is left as the outcome."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _joined_team(spec, context) as team:
        if team is not None:
            # inside: a peer sees this rank's connections close, and by then the outcome is there
            with final_errors_left(context):
                train(spec, context, team, on_epoch=on_epoch)


@contextmanager
def _joined_team(spec: PretrainSpec, context: TrialContext) -> Iterator[Team | None]:
    """Yield this worker's team; None for one beyond those that can share the batch, and for all once it has ended."""
    ray_context = ray.train.get_context()
    rank, available = ray_context.get_world_rank(), ray_context.get_world_size()
    workers = usable_workers(spec.batch_size, available)
    host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call] # Ray gives it no types
    is_host = rank == 0 and left_outcome(context) is None  # rank 0 decides: all train or none
    address = broadcast_from_rank_zero(free_address(host) if is_host else None)
    if address is None or rank >= workers:
        yield None
        return
    device = torch.device("cuda" if spec.scaling.gpus_per_worker else "cpu")  # Ray shows a worker its own GPU only
    if device.type == "cpu":
        torch.set_num_threads(spec.scaling.cpus_per_worker)
    if workers == 1:
        yield Team(device=device)
        return
    if interface := interface_of(host):
        # Else gloo takes the one its host name resolves to, which is loopback on many a machine.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    dist.init_process_group(
        BACKENDS[device.type], init_method=f"tcp://{address}", rank=rank, world_size=workers, timeout=COLLECTIVE_TIMEOUT
    )
    group = dist.group.WORLD
    assert group is not None  # noqa: S101 - for the type checker
    try:
        with connected(group, timeout=COLLECTIVE_TIMEOUT) if device.type == "cpu" else nullcontext() as messages:
            yield Team(rank=rank, world_size=workers, group=group, device=device, messages=messages)
    finally:
        dist.destroy_process_group()
