"""A packed data set that memory does not hold, read at random, against the rate that a step needs.

    python benchmarks/streaming.py [--quick]

The shards are dropped from the page cache after they are written, and no image is read twice, so all
that is read comes from the disk, as it would from a data set many times the size of memory. Where
control groups can be made, the processes that only read may besides take no more than half as much
memory as the shards have, page cache included. What is compared, in turns:

- reading alone, as BatchReader does it, with the same over plain memory maps (numpy's, which the
  kernel reads ahead of);
- training on the shards with training on images in memory, whose rate at N = 256 on resnet8 is what a
  step needs.

Images are of 32 px: the smallest reads, which suit a disk least. Each reader has a copy of the shards.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.memory_group import MemoryGroup, memory_group
from benchmarks.harness.noise_run import BATCH_SIZE, SIDE, build_parts, noise_spec
from benchmarks.harness.packed_noise import Noise, drop_from_page_cache
from benchmarks.harness.turns import Contender, Turns, contender, take_turns, times, times_cpu, verdict
from trainer.data.dataset import Dataset, StoredImages, Subset

MEGABYTE: Final = 10**6
READS_A_TURN: Final = 12  # batches
STEPS_A_TURN: Final = 4
READING: Final = ("packed", "plain")
TRAINING: Final = ("from-shards", "from-memory")
GOAL_READING: Final = 2.0  # times the rate of a step
GOAL_TRAINING: Final = 0.95  # of the rate in memory


class PlainMaps:
    """The shards as numpy maps them, rows taken by its own indexing."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("train-*.raw"))
        self._maps = [np.memmap(path, np.uint8, "r").view(np.ndarray).reshape(-1, SIDE, SIDE, 3) for path in paths]
        self._starts = np.cumsum([0, *map(len, self._maps)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            mine = shards == shard
            images[mine] = self._maps[shard][rows[mine] - self._starts[shard]]
        return images


def pack_noise(folder: Path, *, size_bytes: int) -> None:
    from trainer.data.packing import pack

    pack(Noise(size_bytes // (SIDE * SIDE * 3)), folder / READING[0] / "noise", image_size=SIDE)
    for name in (READING[1], TRAINING[0]):
        shutil.copytree(folder / READING[0], folder / name)
    drop_from_page_cache(folder.glob("*/noise/*.raw"))


def open_dataset(folder: Path) -> Dataset:
    from trainer.data.prepare import prepare

    return prepare("noise", image_size=SIDE, cache_dir=folder / "cache", datasets_dir=folder, validation_ratio=0.01)


def positions(num_images: int) -> Iterator[NDArray[np.int64]]:
    """Yield batches of which no image comes twice."""
    order = np.random.default_rng(1).permutation(num_images)
    return (order[start : start + BATCH_SIZE] for start in range(0, num_images - BATCH_SIZE, BATCH_SIZE))


def read_in_turns(folder: Path, name: str) -> None:
    """Gather batches and nothing else."""
    from trainer.data.reader import BatchReader

    turns, subset = Turns(), open_dataset(folder / name).pretrain
    if name == READING[1]:
        subset = of_all(PlainMaps(folder / name / "noise"))
    for step, _ in enumerate(BatchReader(subset).read(positions(len(subset))), start=1):
        if step % READS_A_TURN == 0:
            turns.over(READS_A_TURN * BATCH_SIZE)


def of_all(images: StoredImages) -> Subset:
    return Subset(array=images, sample_ids=np.arange(len(images)), labels=None)


def train_in_turns(folder: Path, name: str) -> None:
    """Draw views and make updates, as a run does, the next batch being read meanwhile."""
    import torch

    from trainer.data.reader import BatchReader

    torch.set_num_threads(os.cpu_count() or 1)
    drawer, stepper = build_parts(noise_spec())
    if name == TRAINING[0]:
        subset = open_dataset(folder / name).pretrain
    else:
        generator = np.random.default_rng(2)
        subset = of_all(generator.integers(0, 256, (40 * BATCH_SIZE, SIDE, SIDE, 3), np.uint8))
    turns, step = Turns(), 0
    while True:
        for batch in BatchReader(subset).read(positions(len(subset))):
            ids_B = torch.from_numpy(batch.sample_ids)
            views_2BCHW = drawer.draw_pair(torch.from_numpy(batch.images), sample_ids_B=ids_B, epoch=0)
            stepper(views_2BCHW, None, learning_rate=0.1, wishes_stop=False)
            step += 1
            if step % STEPS_A_TURN == 0:
                turns.over(STEPS_A_TURN * BATCH_SIZE)


def measure(folder: Path, group: MemoryGroup | None, *, rounds: int) -> None:
    def turns_of(stack: ExitStack, names: Sequence[str]) -> list[Contender]:
        words = ("--folder", folder, *(("--group", group.folder) if group else ()))
        return [stack.enter_context(contender(*words, "--contender", name)) for name in names]

    # Those who read end before the others begin: a batch ahead over plain maps keeps the disk for a turn of training.
    with ExitStack() as stack:
        packed, plain = take_turns(*turns_of(stack, READING), rounds=rounds)
    with ExitStack() as stack:
        shards, memory = take_turns(*turns_of(stack, TRAINING), rounds=rounds)
    reading, needed = (1 / median(turn.wall_s for turn in turns) for turns in (packed, memory))
    faster = reading / needed
    print(f"a step takes {needed:.0f} images/s from memory (resnet8, N = {BATCH_SIZE})")
    print(f"reading alone: {reading:.0f} images/s, {reading * SIDE * SIDE * 3 / MEGABYTE:.0f} MB/s from the disk")
    print(f"reading / step: {faster:.1f}, goal >= {GOAL_READING}: {verdict(is_reached=faster >= GOAL_READING)}")
    print(f"reading / reading over plain memory maps: {times(plain, packed):.2f}")
    share = times(memory, shards)
    cpu = times_cpu(memory, shards)
    print(f"training on shards / in memory: {share:.3f} (in CPU time {cpu:.3f}), goal >= {GOAL_TRAINING}: ", end="")
    print(verdict(is_reached=share >= GOAL_TRAINING))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.5 GB and few rounds instead of 2 GB")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=(*READING, *TRAINING), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        if arguments.group and arguments.contender in READING:
            MemoryGroup(arguments.group).join()
        work = read_in_turns if arguments.contender in READING else train_in_turns
        work(arguments.folder, arguments.contender)
        return
    size_bytes = (500 if arguments.quick else 2000) * MEGABYTE
    with tempfile.TemporaryDirectory() as folder, memory_group(size_bytes // 2) as group:
        pack_noise(Path(folder), size_bytes=size_bytes)
        limit = f"{size_bytes // 2 // MEGABYTE} MB in all" if group else "not limited: no control group can be made"
        print(
            f"{size_bytes // MEGABYTE} MB of images, dropped from the page cache; memory of readers: {limit}",
            flush=True,
        )
        measure(Path(folder), group, rounds=3 if arguments.quick else 12)


if __name__ == "__main__":
    main()
