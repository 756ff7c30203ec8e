"""Memory that one more worker takes for a data set of 1 GB, beyond what a worker takes at all.

    python benchmarks/worker_memory.py [--quick]

Workers of a node share the decoded images through the page cache. Each one here opens the data set
and reads a whole epoch, as in training; then the proportional set sizes (PSS: a page that n
processes map counts 1/n) of one and of three such workers are summed. The floor is the same with a
data set of 3 MB: the process with torch. USS, what a process shares with none, is shown beside it.
There is no peer: a worker with a copy of its own would take 1 GB. Images are of 32 px, so that
what is kept for each (number, label, place in the order) weighs most.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.noise_run import BATCH_SIZE, SIDE, noise_spec, write_noise
from benchmarks.harness.turns import Contender, Turns, contender, verdict
from service.dispatch.job import JOB_ENVIRONMENT
from trainer.data.dataset import Dataset

MEGABYTE: Final = 10**6
BYTES_A_STEP: Final = BATCH_SIZE * SIDE * SIDE * 3
NUM_EXTRA: Final = 2
GOAL_MB: Final = 60


def open_dataset(folder: Path) -> Dataset:
    from trainer.data.prepare import prepare

    data = noise_spec().data
    return prepare(
        data.dataset,
        image_size=data.image_size,
        cache_dir=folder / "cache",
        datasets_dir=folder / "datasets",
        validation_ratio=data.validation_ratio,
    )


def work(folder: Path) -> None:
    """Read an epoch as a worker's loop does, and stay until told to end."""
    import torch  # a worker has it, and the floor with it

    from trainer.data.order import epoch_batches
    from trainer.data.reader import BatchReader

    torch.set_num_threads(1)
    turns, subset = Turns(), open_dataset(folder).pretrain
    order = epoch_batches(seed=0, epoch=0, num_images=len(subset), batch_size=BATCH_SIZE)
    turns.over(sum(len(batch.images) for batch in BatchReader(subset).read(order)))


def bytes_of(worker: Contender, *fields: str) -> int:
    lines = Path(f"/proc/{worker.process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.split(":")[0] in fields)


def measure(folder: Path) -> tuple[float, float]:
    """Return what each extra worker adds to the sum of PSS, and the USS of one, in megabytes; means."""
    open_dataset(folder)  # decoded once a node, by whoever is first
    with ExitStack() as stack:

        def start() -> Contender:
            return stack.enter_context(contender("--folder", folder, environment=JOB_ENVIRONMENT))

        first = start()
        alone = bytes_of(first, "Pss")
        extra = [start() for _ in range(NUM_EXTRA)]
        pss = sum(bytes_of(worker, "Pss") for worker in (first, *extra)) - alone
        uss = sum(bytes_of(worker, "Private_Clean", "Private_Dirty") for worker in extra)
        return pss / NUM_EXTRA / MEGABYTE, uss / NUM_EXTRA / MEGABYTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 MB instead of 1 GB")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        work(arguments.folder)
        return
    size_mb = 100 if arguments.quick else 1000
    sizes: dict[int, tuple[float, float]] = {}
    for megabytes in (3, size_mb):
        with tempfile.TemporaryDirectory() as folder:
            write_noise(Path(folder), num_steps=megabytes * MEGABYTE // BYTES_A_STEP)
            sizes[megabytes] = measure(Path(folder))
        pss, uss = sizes[megabytes]
        print(f"{megabytes:>5} MB of images: an extra worker takes {pss:.0f} MB (PSS; USS {uss:.0f} MB)", flush=True)
    beyond, beyond_uss = (large - floor for large, floor in zip(sizes[size_mb], sizes[3], strict=True))
    print(
        f"for {size_mb} MB of images an extra worker takes {beyond:.1f} MB beyond the floor (USS {beyond_uss:.1f} MB), "
        f"goal <= {GOAL_MB}: {verdict(is_reached=beyond <= GOAL_MB)}"
    )


if __name__ == "__main__":
    main()
