"""Two workers of one thread beside one worker of two threads: images a second, as a ratio.

    python benchmarks/workers.py [--quick]

The whole loop through Ray Train, as a job runs it: resnet8, random images of 32 px, N = 256, float32,
channels_last, batch norm over the global batch. Both runs are there all the time and take turns of
an epoch each, so that what the machine does beside them falls on both. Rank 0 also counts what it
says to the others: in each kind of message it either works (copies, adds up) or waits, mostly until
the others have got as far.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.called_turns import Caller, TurnTable
from benchmarks.harness.conversation import in_words
from benchmarks.harness.epoch_turns import EpochTurns, middle_epoch, take_epochs_in_turn
from benchmarks.harness.local_ray import LocalRay, local_ray
from benchmarks.harness.noise_run import BATCH_SIZE, SIDE, noise_spec, trial_context, write_noise
from benchmarks.harness.turns import verdict
from service.dispatch.job import JOB_ENVIRONMENT

STEPS: Final = 6  # an epoch
THREADS: Final = 2  # of each contender
GOAL: Final = 0.8


def train(folder: Path, *, num_workers: int, address: tuple[str, int]) -> None:
    """Train as a job does, a driver of Ray Train; the driver is this process."""
    import ray

    from trainer.launch import run_trial

    ray.init(log_to_driver=False, runtime_env={"env_vars": {**JOB_ENVIRONMENT, "PYTHONPATH": sys.path[0]}})
    name = f"w{num_workers}"
    spec = noise_spec(
        precision="float32",
        channels_last=True,
        scaling={"num_workers": num_workers, "cpus_per_worker": THREADS // num_workers},
    )
    turns = EpochTurns(caller=Caller(address=address, name=name), images_an_epoch=STEPS * BATCH_SIZE)
    run_trial(spec, trial_context(folder, name), on_epoch=turns)


def compare(ray: LocalRay, *, rounds: int) -> None:
    names = ("w1", "w2")
    with ThreadPoolExecutor(len(names)) as drivers:
        with TurnTable() as table:  # closed first: that ends the runs
            words = ("--folder", str(ray.folder), "--address", *map(str, table.address))
            runs = [drivers.submit(ray.run, __file__, "--only", name[1:], *words) for name in names]
            epochs = take_epochs_in_turn(table, names, rounds=rounds)
        for run in runs:
            run.result()
    pairs = zip(epochs["w1"], epochs["w2"], strict=True)
    ratio = median(two["images_per_second"] / one["images_per_second"] for one, two in pairs)
    print(f"W = 2, shares of its middle epoch: {in_words(middle_epoch(epochs['w2'])['shares'], steps=STEPS)}")
    print(f"W = 2 makes {ratio:.3f} of W = 1, goal >= {GOAL}: {verdict(is_reached=ratio >= GOAL)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 turns each instead of 9")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        host, port = arguments.address
        train(arguments.folder, num_workers=arguments.only, address=(host, int(port)))
        return
    print(f"resnet8, {SIDE} px, N = {BATCH_SIZE}, float32, {THREADS} threads each", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder), num_steps=STEPS)
        with local_ray(Path(folder), num_cpus=2 * THREADS) as ray:
            compare(ray, rounds=3 if arguments.quick else 9)


if __name__ == "__main__":
    main()
