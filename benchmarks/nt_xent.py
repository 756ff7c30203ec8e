"""NT-Xent beside lightly's and a plain masked cross-entropy: time and peak extra memory, as ratios.

    python benchmarks/nt_xent.py [--quick] [--threads 2]

One forward and backward, D = 128, float32, on the CPU. Times are medians of runs that take turns in
one process; peak memory is that of a process of its own, above what it held before the loss.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WIDTH = 128  # D
TEMPERATURE = 0.5
REPEATS = {256: 31, 1024: 11, 4096: 3, 8192: 3}


def losses() -> dict[str, Callable[[Any], Any]]:
    import torch
    from lightly.loss import NTXentLoss
    from torch.nn.functional import cross_entropy, normalize

    from trainer.losses import build_objective
    from trainer.spec import LossSpec

    theirs = NTXentLoss(TEMPERATURE)
    objective = build_objective(LossSpec(temperature=TEMPERATURE), group=None)

    def plain(z: Any) -> Any:
        unit = normalize(z, dim=1)
        logits = (unit @ unit.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return cross_entropy(logits, torch.arange(len(z)).roll(len(z) // 2))

    return {
        "ours": objective.loss,
        "ours, measured": lambda z: objective(z).loss,
        "plain": plain,
        "lightly": lambda z: theirs(*z.chunk(2)),
    }


def projections(num_images: int) -> Any:
    import torch

    return torch.randn(2 * num_images, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)


def measure_times(num_images: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of each loss; the first round is not counted."""
    import torch

    z = projections(num_images)
    seconds: dict[str, list[float]] = {name: [] for name in losses()}
    for turn in range(repeats + 1):
        for name, loss in losses().items():
            start = time.perf_counter()
            torch.autograd.grad(loss(z), z)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_memory(num_images: int, name: str) -> float:
    """Return the peak of this process's memory in MiB, above what it was after a small loss."""
    import torch

    loss, small, z = losses()[name], projections(8), projections(num_images)
    torch.autograd.grad(loss(small), small)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.autograd.grad(loss(z), z)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def in_own_process(threads: int, *words: object) -> Any:
    command = [sys.executable, __file__, "--threads", threads, "--only", *words]
    return json.loads(subprocess.run([str(word) for word in command], check=True, capture_output=True).stdout)


def report(*, is_quick: bool, threads: int) -> None:
    print(f"forward and backward, D = {WIDTH}, float32, {threads} threads")
    for num_images in (256, 1024) if is_quick else (256, 1024, 8192):
        repeats = max(3, REPEATS[num_images] // (3 if is_quick else 1))
        seconds = in_own_process(threads, "times", num_images, repeats)
        ours = seconds["ours"]
        print(
            f"N = {num_images:>6}: {1e3 * ours:9.1f} ms = {ours / seconds['lightly']:.3f} of lightly, "
            f"{ours / seconds['plain']:.3f} of plain; with accuracy and entropy "
            f"{seconds['ours, measured'] / ours:.2f} of without"
        )
    at = 2048 if is_quick else 8192
    peak = {name: in_own_process(threads, "memory", at, name) for name in ("ours", "plain", "lightly")}
    print(
        f"N = {at:>6}: {peak['ours']:9.1f} MiB = 1/{peak['lightly'] / peak['ours']:.0f} of lightly, "
        f"1/{peak['plain'] / peak['ours']:.0f} of plain"
    )
    previous = None
    for num_images in (4096, 8192) if is_quick else (4096, 8192, 16384, 32768, 65536):
        mebibytes = in_own_process(threads, "memory", num_images, "ours")
        growth = "" if previous is None else f" = {mebibytes / previous:.2f} times that of half as many"
        print(f"N = {num_images:>6}: {mebibytes:9.1f} MiB{growth}", flush=True)
        previous = mebibytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller N and fewer turns: about half a minute")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is None:
        report(is_quick=arguments.quick, threads=arguments.threads)
        return
    import torch

    torch.set_num_threads(arguments.threads)
    what, num_images, detail = arguments.only
    result = measure_times(int(num_images), int(detail)) if what == "times" else measure_memory(int(num_images), detail)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
