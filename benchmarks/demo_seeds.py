"""Does the demo's encoder beat raw pixels and the untrained encoder, for more than one seed?

Runs the demo's spec in this process, a seed after another, and prints both paired comparisons.
The number of workers does not matter for the result, so one process does.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from pathlib import Path

import torch

from service.cli.demo import DEMO
from trainer import metric_names as names
from trainer.context import TrialContext
from trainer.launch import run_trial_in_process
from trainer.spec import PretrainSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="two epochs: only shows that it runs")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print("| seed | kNN of h | raw pixels | untrained | linear | verdict | s |\n|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        document = copy.deepcopy(DEMO["spec"]) | {"seed": seed}
        if options.quick:
            document["epochs"] = 2
        with tempfile.TemporaryDirectory() as folder:
            context = TrialContext(
                experiment_id="exp_bench",
                experiment_name="bench",
                trial_id="t0000",
                attempt=1,
                storage=folder,
                cache_dir=str(Path(tempfile.gettempdir()) / "simclr-bench-cache"),
            )
            started_s = time.perf_counter()
            result = run_trial_in_process(PretrainSpec.model_validate(document), context)
        values = [
            f"{result.metrics[name]:.3f}"
            for name in (
                names.KNN_ACCURACY,
                names.RAW_PIXEL_KNN_ACCURACY,
                names.RANDOM_ENCODER_KNN_ACCURACY,
                names.LINEAR_ACCURACY,
            )
        ]
        seconds = time.perf_counter() - started_s
        print(f"| {seed} | {' | '.join(values)} | {result.marker['verdict']} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
