"""Global batch norm on CPU beside torch's own: the price of exactness, and what the light path saves.

    python benchmarks/batch_norm.py [--quick] [--ranks 2]

First one rank alone: forward and backward of resnet8 at 32 px and N = 256 with our layers and with
torch's. Then W ranks with N images between them, our layers' messages over gloo and over the light
path; beside them torch's local batch norm, which computes another function, so that its time is the
floor. A thread a rank, float32; medians of runs that take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.noise_run import BATCH_SIZE, SIDE, noise_spec
from benchmarks.harness.turns import verdict
from service.dispatch.job import JOB_ENVIRONMENT

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup

    from trainer.small_messages import SmallMessages

GOAL_ALONE = 1.03
WARM_UP = 2


def contenders(
    group: ProcessGroup | None, messages: SmallMessages | None, *, is_channels_last: bool
) -> dict[str, nn.Module]:
    """Return nets of the same weights: torch's layers, ours, and ours with the light path."""
    import torch

    from trainer.batch_norm import globalize_batch_norm
    from trainer.learner import build_learner

    layout = torch.channels_last if is_channels_last else torch.contiguous_format

    def net() -> nn.Module:
        return build_learner(noise_spec(precision="float32"), num_classes=None, group=None).to(memory_format=layout)

    nets = {"torch": net(), "ours": globalize_batch_norm(net(), group=group)}
    if messages is not None:
        nets["light"] = globalize_batch_norm(net(), group=group, messages=messages)
    return nets


def turns_of(
    nets: Mapping[str, nn.Module], *, num_images: int, is_channels_last: bool, turns: int, meet: Callable[[], object]
) -> dict[str, list[tuple[float, float]]]:
    """Return wall and CPU seconds of each turn of each net; `meet` is called before each."""
    import torch

    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    views_2BCHW = torch.rand(2 * num_images, 3, SIDE, SIDE).contiguous(memory_format=layout)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in nets}
    for turn in range(turns + WARM_UP):
        for name, net in sorted(nets.items(), reverse=turn % 2 == 0):
            meet()
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            net.outputs(views_2BCHW).square().mean().backward()  # type: ignore[operator] # a learner's
            if turn >= WARM_UP:
                seconds[name].append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    return seconds


def ratios(over: list[tuple[float, float]], under: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the medians over turns of the quotients in wall time and in CPU time."""
    wall, cpu = ([a[kind] / b[kind] for a, b in zip(over, under, strict=True)] for kind in range(2))
    return statistics.median(wall), statistics.median(cpu)


def measure(rank: int, num_ranks: int, turns: int, directory: str) -> None:
    import torch
    from torch import distributed as dist

    from trainer.small_messages import connected

    torch.set_num_threads(1)
    is_alone = num_ranks == 1
    if not is_alone:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=num_ranks)
    group = None if is_alone else dist.group.WORLD
    with nullcontext() if group is None else connected(group, timeout=timedelta(minutes=5)) as messages:
        for is_channels_last in (True, False) if is_alone else (True,):
            seconds = turns_of(
                contenders(group, messages, is_channels_last=is_channels_last),
                num_images=BATCH_SIZE // num_ranks,
                is_channels_last=is_channels_last,
                turns=turns,
                meet=(lambda: None) if is_alone else dist.barrier,
            )
            if rank == 0:
                report(seconds, is_alone=is_alone, layout="channels_last" if is_channels_last else "contiguous")
    if not is_alone:
        dist.destroy_process_group()


def report(seconds: Mapping[str, list[tuple[float, float]]], *, is_alone: bool, layout: str) -> None:
    wall, cpu = ratios(seconds["ours"], seconds["torch"])
    if is_alone:
        goal = f"goal <= {GOAL_ALONE}: {verdict(is_reached=cpu <= GOAL_ALONE)}"
        print(f"alone, {layout}: {wall:.3f} of torch's time, {cpu:.3f} of its CPU time, {goal}", flush=True)
        return
    print(f"over gloo: {wall:.3f} of the time of local batch norm, {cpu:.3f} of its CPU time")
    wall, cpu = ratios(seconds["light"], seconds["torch"])
    print(f"over the light path: {wall:.3f} of it, CPU {cpu:.3f}")
    wall, cpu = ratios(seconds["light"], seconds["ours"])
    print(f"the light path beside gloo: {wall:.3f} of the time, {cpu:.3f} of the CPU time", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    from torch.multiprocessing.spawn import spawn

    os.environ.update(JOB_ENVIRONMENT)  # read by the allocator when a process starts
    for num_ranks in (1, arguments.ranks):
        with tempfile.TemporaryDirectory() as directory:
            words = (num_ranks, 5 if arguments.quick else 25, directory)
            spawn(measure, args=words, nprocs=num_ranks)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
