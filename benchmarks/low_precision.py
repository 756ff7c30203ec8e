"""Does kNN suffer in bfloat16? The same run in float32 and in bfloat16, a seed after another.

    python benchmarks/low_precision.py [--quick] [--dataset digits]

resnet8 on small images through this project's own loop, one process. The encoders of one seed are
compared on the same images; over seeds, the mean loss of accuracy stands
beside the standard deviation that float32 alone has. Where the processor has no bfloat16 units the
arithmetic is the same, rounded by software, and only slower.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.harness.turns import verdict
from trainer.context import PRETRAIN_TRIAL_ID, TrialContext
from trainer.launch import run_trial_in_process
from trainer.metric_names import KNN_ACCURACY
from trainer.spec import PretrainSpec

SEEDS: Final = (0, 1, 2)
PRECISIONS: Final = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 epochs: a check that it runs")
    parser.add_argument("--dataset", default="digits")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    found: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for precision in PRECISIONS:
                spec = spec_of(arguments.dataset, seed=seed, precision=precision, epochs=2 if arguments.quick else 10)
                found[precision].append(accuracy(spec, Path(folder), name=f"{precision}_{seed}"))
            print(
                f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in found.items()), flush=True
            )
    wide, narrow = (found[precision] for precision in PRECISIONS)
    lost, spread = fmean(wide) - fmean(narrow), stdev(wide)
    print(f"kNN accuracy lost to bfloat16: {lost:+.4f}; standard deviation over seeds of float32 {spread:.4f}")
    print(f"(goal: no more than that: {verdict(is_reached=lost <= spread)})")


def spec_of(dataset: str, *, seed: int, precision: str, epochs: int) -> PretrainSpec:
    return PretrainSpec.model_validate(
        {
            "data": {"dataset": dataset, "image_size": 16},
            "encoder": {"name": "resnet8"},
            "batch_size": 128,
            "epochs": epochs,
            "seed": seed,
            "precision": precision,
            "evaluation": {"linear_probe": False},
        }
    )


def accuracy(spec: PretrainSpec, folder: Path, *, name: str) -> float:
    context = TrialContext(
        experiment_id=f"exp_{name}",
        experiment_name=name,
        trial_id=PRETRAIN_TRIAL_ID,
        attempt=1,
        storage=str(folder / "storage"),
        cache_dir=str(folder / "cache"),
    )
    return run_trial_in_process(spec, context).metrics[KNN_ACCURACY]


if __name__ == "__main__":
    main()
