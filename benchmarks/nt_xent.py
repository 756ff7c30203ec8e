"""NT-Xent beside lightly's and a plain masked cross-entropy: time and extra memory, as ratios.

    python benchmarks/nt_xent.py [--quick | --long] [--threads 2]

One forward and backward, D = 128, float32, on the CPU. The losses take turns in one process, every
other round in reverse; the ratios are of medians, and of the fastest turns in brackets. That process has
the allocator settings of a job, which save all of them page faults. On one thread
the clock is that of CPU time, which a busy machine disturbs less. Extra memory is how far the resident
set of a fresh process rises above what it held before the loss, the median of three processes; the
projections are not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from service.dispatch.job import JOB_ENVIRONMENT

WIDTH = 128  # D
TEMPERATURE = 0.5
NAMES = ("ours", "ours, measured", "plain", "lightly")
ROUNDS = {256: 60, 1024: 24, 4096: 6, 8192: 4}
TIME_GOALS = {256: 0.5, 1024: 0.2, 4096: None, 8192: 0.12}  # of lightly's
MEMORY_AT = 8192  # images, where peers still fit
DOUBLINGS = (4096, 8192, 16384)
LONG_DOUBLINGS = (32768, 65536)  # one process each: what varies, a few MiB, is nothing there


def loss_named(name: str) -> Callable[[Any], Any]:
    """Return a loss of the projections; nothing but what it needs is imported."""
    if name == "plain":
        return plain
    if name == "lightly":
        from lightly.loss import NTXentLoss

        theirs = NTXentLoss(TEMPERATURE)
        return lambda z: theirs(*z.chunk(2))
    from trainer.losses import build_objective
    from trainer.spec import LossSpec

    objective = build_objective(LossSpec(temperature=TEMPERATURE), group=None)
    return objective.loss if name == "ours" else lambda z: objective(z).loss


def plain(z: Any) -> Any:
    import torch
    from torch.nn.functional import cross_entropy, normalize

    unit = normalize(z, dim=1)
    logits = (unit @ unit.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return cross_entropy(logits, torch.arange(len(z)).roll(len(z) // 2))


def projections(num_images: int) -> Any:
    import torch

    return torch.randn(2 * num_images, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)


def measure_times(num_images: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each loss, round by round, after one that is not counted."""
    import torch

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    z, contenders = projections(num_images), [(name, loss_named(name)) for name in NAMES]
    seconds: dict[str, list[float]] = {name: [] for name, _ in contenders}
    for turn in range(rounds + 1):
        for name, loss in contenders if turn % 2 else reversed(contenders):
            start = clock()
            torch.autograd.grad(loss(z), z)
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def measure_memory(num_images: int, name: str) -> dict[str, float]:
    """Return in MiB the peak of this process, and how far it is above what was held before the loss."""
    import torch

    loss, small, z = loss_named(name), projections(640), projections(num_images)
    torch.autograd.grad(loss(small), small)
    ctypes.CDLL(None).malloc_trim(0)  # free memory that is still resident would hide a rise
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = resident("VmRSS")
    torch.autograd.grad(loss(z), z)
    peak = resident("VmHWM")
    return {"peak": peak, "extra": peak - before}


def resident(field: str) -> float:
    """Return a size in MiB from what Linux says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def in_own_process(threads: int, *words: object) -> Any:
    command = [sys.executable, __file__, "--threads", threads, "--only", *words]
    environment = {**os.environ, **(JOB_ENVIRONMENT if words[0] == "times" else {})}
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, env=environment)
    return json.loads(done.stdout)


def report_times(num_images: int, *, rounds: int, threads: int) -> None:
    seconds = in_own_process(threads, "times", num_images, rounds)

    def ratio(name: str, other: str) -> str:
        median, fastest = (of(seconds[name]) / of(seconds[other]) for of in (statistics.median, min))
        return f"{median:.3f} ({fastest:.3f})"

    goal = TIME_GOALS[num_images]
    print(
        f"N = {num_images:>6}: {1e3 * statistics.median(seconds['ours']):8.1f} ms = {ratio('ours', 'lightly')} of "
        f"lightly{'' if goal is None else f' [goal {goal}]'}, {ratio('ours', 'plain')} of plain [goal 1]; with "
        f"accuracy and entropy {ratio('ours, measured', 'ours')} of without [goal 1.5]",
        flush=True,
    )


def memory_of(name: str, num_images: int, *, threads: int) -> dict[str, float]:
    """Return `measure_memory` of the median process."""
    processes = 1 if num_images in LONG_DOUBLINGS else 3
    found: list[dict[str, float]] = [in_own_process(threads, "memory", num_images, name) for _ in range(processes)]
    return sorted(found, key=lambda of: of["extra"])[processes // 2]


def report_memory(num_images: int, *, threads: int) -> None:
    ours, masked, lightly = (
        memory_of(name, num_images, threads=threads)["extra"] for name in ("ours", "plain", "lightly")
    )
    print(
        f"N = {num_images:>6}: {ours:8.1f} MiB extra = 1/{lightly / ours:.0f} of lightly [goal 1/60], "
        f"1/{masked / ours:.0f} of plain",
        flush=True,
    )


def report_growth(sizes: tuple[int, ...], *, threads: int) -> None:
    previous = None
    for num_images in sizes:
        found = memory_of("ours", num_images, threads=threads)
        growth = "" if previous is None else f" = {found['extra'] / previous:.2f} times half as many [goal 2.2]"
        print(
            f"N = {num_images:>6}: {found['extra']:8.1f} MiB extra{growth}; whole process {found['peak']:.0f} MiB",
            flush=True,
        )
        previous = found["extra"]


def report(*, is_quick: bool, is_long: bool, threads: int) -> None:
    clock = "CPU time" if threads == 1 else "wall time"
    print(f"forward and backward, D = {WIDTH}, float32, {threads} threads, {clock}")
    for num_images in (256, 1024) if is_quick else ROUNDS:
        report_times(num_images, rounds=ROUNDS[num_images] // (3 if is_quick else 1), threads=threads)
    report_memory(2048 if is_quick else MEMORY_AT, threads=threads)
    sizes = DOUBLINGS[:2] if is_quick else DOUBLINGS
    report_growth(sizes + LONG_DOUBLINGS if is_long else sizes, threads=threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="smaller N and fewer rounds: about half a minute")
    extent.add_argument("--long", action="store_true", help="memory up to 65,536 images too: minutes more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is None:
        report(is_quick=arguments.quick, is_long=arguments.long, threads=arguments.threads)
        return
    import torch

    torch.set_num_threads(arguments.threads)
    what, num_images, detail = arguments.only
    result = measure_times(int(num_images), int(detail)) if what == "times" else measure_memory(int(num_images), detail)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
