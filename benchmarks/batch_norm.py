"""Global batch norm on CPU and gloo beside torch's local one: the price of exactness.

    python benchmarks/batch_norm.py [--quick] [--ranks 2]

Each rank has one thread and normalises [2B, C, H, W] in channels_last, forward and backward. Local
batch norm computes another function, so its time is the floor. Medians of runs that take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHAPES = ((256, 16, 32, 32), (256, 32, 16, 16), (256, 64, 8, 8), (256, 128, 1, 1))


def measure(rank: int, num_ranks: int, repeats: int, directory: str) -> None:
    import torch
    from torch import distributed as dist
    from torch import nn

    from trainer.batch_norm import globalize_batch_norm

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=num_ranks)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            norms: dict[str, nn.Module] = {
                "local": nn.BatchNorm2d(shape[1]),
                "global": globalize_batch_norm(nn.BatchNorm2d(shape[1]), group=dist.group.WORLD),
            }
            seconds: dict[str, list[float]] = {name: [] for name in norms}
            for turn in range(repeats + 3):
                for name, norm in norms.items():
                    leaf = x.detach().requires_grad_()
                    dist.barrier()
                    start = time.perf_counter()
                    y = norm(leaf)
                    torch.autograd.grad(y, (leaf, *norm.parameters()), x)
                    if turn >= 3:
                        seconds[name].append(time.perf_counter() - start)
            if rank == 0:
                local, over_ranks = (statistics.median(seconds[name]) for name in ("local", "global"))
                print(
                    f"{dtype!s:>15} {list(shape)!s:>20}: global {1e3 * over_ranks:7.2f} ms, "
                    f"{over_ranks / local:.2f} of local, {1e3 * (over_ranks - local):+.2f} ms",
                    flush=True,
                )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as directory:
        words = (11 if arguments.quick else 51, directory)
        spawn(measure, args=(arguments.ranks, *words), nprocs=arguments.ranks)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
