"""Does what rounds otherwise end elsewhere? The same runs in float32, in bfloat16, and on two workers.

    python benchmarks/rounding.py [--quick] [--dataset digits]

resnet8 on small images through this project's own loop. Two workers add float32 up in another order
than one, and bfloat16 keeps a third of the digits: weights part within some steps, and only where
they end can be compared. The encoders of one seed judge the same images; over seeds, the mean change
of kNN accuracy stands beside the standard deviation that float32 on one worker has by itself. Where
the processor has no bfloat16 units the arithmetic is the same, rounded by software, and only slower.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.harness.turns import verdict
from trainer.context import PRETRAIN_TRIAL_ID, TrialContext
from trainer.loop import train
from trainer.metric_names import KNN_ACCURACY
from trainer.small_messages import connected
from trainer.spec import PretrainSpec
from trainer.storage import open_storage
from trainer.team import Team

SEEDS: Final = (0, 1, 2)
TIMEOUT: Final = timedelta(minutes=5)


@dataclass(frozen=True)
class Way:
    """A way to compute a run."""

    precision: str
    num_workers: int

    def __str__(self) -> str:
        return f"{self.precision}, {self.num_workers} worker{'s' if self.num_workers > 1 else ''}"


PLAIN: Final = Way("float32", 1)
OTHERS: Final = (Way("bfloat16", 1), Way("float32", 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 epochs: a check that it runs")
    parser.add_argument("--dataset", default="digits")
    arguments = parser.parse_args()
    found: dict[Way, list[float]] = {way: [] for way in (PLAIN, *OTHERS)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for way, accuracies in found.items():
                spec = spec_of(arguments.dataset, seed=seed, way=way, epochs=2 if arguments.quick else 10)
                accuracies.append(accuracy(spec, Path(folder), way=way))
            print(f"seed {seed}: " + "; ".join(f"{way} {each[-1]:.4f}" for way, each in found.items()), flush=True)
    spread = stdev(found[PLAIN])
    print(f"standard deviation of {PLAIN} over seeds: {spread:.4f}")
    for way in OTHERS:
        lost = fmean(found[PLAIN]) - fmean(found[way])
        judged = verdict(is_reached=lost <= spread)
        print(f"kNN accuracy lost by {way}: {lost:+.4f} (goal: no more than that: {judged})")


def spec_of(dataset: str, *, seed: int, way: Way, epochs: int) -> PretrainSpec:
    return PretrainSpec.model_validate(
        {
            "data": {"dataset": dataset, "image_size": 16},
            "encoder": {"name": "resnet8"},
            "batch_size": 128,
            "epochs": epochs,
            "seed": seed,
            "precision": way.precision,
            "evaluation": {"linear_probe": False},
        }
    )


def accuracy(spec: PretrainSpec, folder: Path, *, way: Way) -> float:
    """Train in processes of their own and return what the final encoder scores."""
    context = TrialContext(
        experiment_id=f"exp_{way.precision}_{way.num_workers}_{spec.seed}",
        experiment_name=str(way),
        trial_id=PRETRAIN_TRIAL_ID,
        attempt=1,
        storage=str(folder / "storage"),
        cache_dir=str(folder / "cache"),
    )
    rendezvous = f"file://{folder}/{context.experiment_id}"
    spawn(be_rank, args=(spec, context, way.num_workers, rendezvous), nprocs=way.num_workers)  # type: ignore[no-untyped-call] # torch gives it no types
    marker = json.loads(open_storage(context.storage).read(context.key("complete.json")))
    return float(marker["metrics"][KNN_ACCURACY])


def be_rank(rank: int, spec: PretrainSpec, context: TrialContext, num_workers: int, rendezvous: str) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_workers))
    if num_workers == 1:
        train(spec, context, Team())
        return
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_workers)
    group = dist.group.WORLD
    assert group is not None
    with connected(group, timeout=TIMEOUT) as messages:
        train(spec, context, Team(rank=rank, world_size=num_workers, group=group, messages=messages))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
