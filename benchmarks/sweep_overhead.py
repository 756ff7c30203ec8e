"""A sweep of four one-epoch trials, two at a time, against the documented nested pattern of Ray.

    python benchmarks/sweep_overhead.py [--rounds 1] [--reports 1]

Ours is the sweep as the service's job runs it: process start, trials in reused processes, report,
exit. The peer is Tuner over TorchTrainer as Ray's documentation nests them, at default settings,
with one worker a trial that calls this project's own training loop: what differs is who starts it.
Both get the same four trials, the same data, and two trials at a time on a Ray of four logical CPUs
(the peer's drivers need a share beside their workers). Neither has MLflow. They take turns.

The peer reports once an epoch; with `--reports N` N times, each at the pace of Ray's polling.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.harness.local_ray import LocalRay, local_ray
from benchmarks.harness.turns import verdict

GOAL_S: Final = 12.0
GOAL_RATIO: Final = 0.2
NUM_AT_ONCE: Final = 2
TEMPERATURES: Final = (0.1, 0.2, 0.5, 1.0)
BASE: Final[dict[str, Any]] = {
    "data": {"dataset": "noise", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "batch_size": 32,
    "epochs": 1,
    "precision": "float32",
    "evaluation": {"linear_probe": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one round, as without it")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--reports", type=int, default=1, help="that the peer makes of its epoch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, local_ray(Path(temporary), num_cpus=4) as ray:
        write_noise(ray.folder / "datasets")
        rounds = [measure(ray, number, arguments.reports) for number in range(arguments.rounds)]
    ours_s, ratio = median(ours for ours, _ in rounds), median(ours / nested for ours, nested in rounds)
    print(f"4 trials, 2 at a time: {ours_s:.1f} s (goal {GOAL_S:.0f}: {verdict(is_reached=ours_s <= GOAL_S)})")
    print(f"of the nested pattern: {ratio:.2f} (goal {GOAL_RATIO}: {verdict(is_reached=ratio <= GOAL_RATIO)})")


def measure(ray: LocalRay, number: int, reports: int) -> tuple[float, float]:
    """Return the seconds of ours and of the peer."""
    ours = ray.sweep(
        f"overhead{number}",
        {
            "base": BASE,
            "space": {"loss.temperature": {"choice": TEMPERATURES}},
            "max_concurrent_trials": NUM_AT_ONCE,
        },
        datasets_dir=ray.folder / "datasets",
    )
    assert ours.report["num_trials"] == {"succeeded": len(TEMPERATURES)}
    folder = ray.folder / f"nested{number}"
    plan = {
        "specs": [{**BASE, "loss": {"temperature": temperature}} for temperature in TEMPERATURES],
        "num_at_once": NUM_AT_ONCE,
        "reports": reports,
        "folder": str(folder),
        "datasets_dir": str(ray.folder / "datasets"),
        "cache_dir": str(ray.folder / "cache"),
    }
    nested_s = ray.run(str(Path(__file__).parent / "harness" / "nested_sweep.py"), json.dumps(plan))
    assert len(list(folder.glob("storage/experiments/*/trials/*/complete.json"))) == len(TEMPERATURES)
    print(f"round {number}: ours {ours.wall_s:.1f} s, nested {nested_s:.1f} s", flush=True)
    return ours.wall_s, nested_s


def write_noise(folder: Path) -> None:
    """Register 240 labelled images."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 240), ("test", 40)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 4
    np.savez(folder / "noise.npz", **arrays)


if __name__ == "__main__":
    main()
