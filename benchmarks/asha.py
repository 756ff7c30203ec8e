"""ASHA against the whole grid of 27 points: the images it spends, and how good its best is.

    python benchmarks/asha.py [--quick] [--epochs 27] [--dataset digits] [--grid FILE]

`--grid` keeps what the grid's trials showed, and takes it from there where it is kept already.

Every trial is trained for real, a resnet8 in this project's own loop, two at a time, without Ray,
which would add nothing here. A trial is a function of its spec and seed, so one that is stopped
early is the beginning of the same trial in the grid: the sweep under ASHA asks its referee, with
two trials at a time, and takes each trial's epochs from where the grid has recorded them.

ASHA's best should be within the spread over seeds of the grid's best: both settings are trained
again under five other seeds, and their means differ by no more than the standard deviation. The seed
that chose them is left out: the largest of 27 accuracies is lucky, and the grid had more to choose of.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from heapq import heappop, heappush
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.turns import verdict
from trainer.context import TrialContext
from trainer.epoch_report import EpochReport
from trainer.launch import run_trial_in_process
from trainer.metric_names import KNN_ACCURACY
from trainer.spec import PretrainSpec
from tune_spaces.driver.referee import Referee
from tune_spaces.plan import PlannedTrial, planned_trials
from tune_spaces.spec import SweepSpec, complete

GOAL_RATIO: Final = 0.4
NUM_AT_ONCE: Final = 2
FRESH_SEEDS: Final = (1, 2, 3, 4, 5)  # the sweep's is 0


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A trial of the grid, as it went."""

    by_epoch: tuple[float, ...]  # kNN accuracy
    images_per_epoch: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="3 epochs a trial: a check that it runs")
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--grid", type=Path, help="a file that keeps the grid")
    arguments = parser.parse_args()
    sweep = complete(sweep_of(arguments.dataset, epochs=3 if arguments.quick else arguments.epochs))
    trials = list(planned_trials(sweep))
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, workers() as pool:
        grid = recorded_grid(arguments.grid, partial(run_grid, pool, temporary, trials))
        stopped_at = run_asha(sweep, trials, grid, Path(temporary))
        best = best_of(trials, grid)
        chosen = best_of([trial for trial in trials if stopped_at[trial.id] == trial.spec.epochs], grid)
        again = {
            trial.id: under_fresh_seeds(pool, temporary, trial) for trial in {best.id: best, chosen.id: chosen}.values()
        }
        print(
            f"{len(trials)} trials and {sum(map(len, again.values()))} repeats "
            f"in {time.perf_counter() - started_s:.0f} s",
            flush=True,
        )
    tell_images(trials, grid, stopped_at)
    tell_accuracy(best, chosen, grid, again)


def best_of(trials: Sequence[PlannedTrial], grid: Mapping[str, Recorded]) -> PlannedTrial:
    return max(trials, key=lambda trial: grid[trial.id].by_epoch[-1])


def tell_images(trials: Sequence[PlannedTrial], grid: Mapping[str, Recorded], stopped_at: Mapping[str, int]) -> None:
    spent = sum(stopped_at[trial.id] * grid[trial.id].images_per_epoch for trial in trials)
    whole = sum(trial.spec.epochs * grid[trial.id].images_per_epoch for trial in trials)
    num_finished = sum(stopped_at[trial.id] == trial.spec.epochs for trial in trials)
    ratio = spent / whole
    print(f"asha: {num_finished} trials to their ends, {spent:,} images of the grid's {whole:,}: {ratio:.2f}")
    print(f"    (goal {GOAL_RATIO}: {verdict(is_reached=ratio <= GOAL_RATIO)})")


def tell_accuracy(
    best: PlannedTrial, chosen: PlannedTrial, grid: Mapping[str, Recorded], again: Mapping[str, Sequence[float]]
) -> None:
    accuracies = sorted(recorded.by_epoch[-1] for recorded in grid.values())
    print(f"kNN accuracy in the grid: {accuracies[0]:.3f} to {accuracies[-1]:.3f}")
    for name, trial in (("grid", best), ("asha", chosen)):
        found, mean = grid[trial.id].by_epoch[-1], fmean(again[trial.id])
        print(f"best of {name}: {found:.4f}, {mean:.4f} over {len(FRESH_SEEDS)} other seeds; {trial.params}")
    lost, spread = fmean(again[best.id]) - fmean(again[chosen.id]), stdev(again[best.id])
    print(f"accuracy lost: {lost:+.4f} (goal {spread:.4f}: {verdict(is_reached=lost <= spread)})")


def sweep_of(dataset: str, *, epochs: int) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "base": {
                "data": {"dataset": dataset, "image_size": 16},
                "encoder": {"name": "resnet8"},
                "epochs": epochs,
                "precision": "float32",
                "optim": {"warmup_epochs": 0.0},
                "evaluation": {"knn_every_epochs": 1, "linear_probe": False},
            },
            "space": {
                "loss.temperature": {"choice": [0.05, 0.2, 1.0]},
                "optim.base_lr": {"choice": [0.03, 0.3, 3.0]},
                "batch_size": {"choice": [64, 128, 256]},
            },
            "scheduler": "asha",
        }
    )


def under_fresh_seeds(pool: ProcessPoolExecutor, folder: str, trial: PlannedTrial) -> list[float]:
    """Return the accuracies of a setting under other seeds."""
    repeats = [reseeded(trial, seed) for seed in FRESH_SEEDS]
    return [recorded.by_epoch[-1] for recorded in pool.map(partial(train, folder), repeats)]


def reseeded(trial: PlannedTrial, seed: int) -> PlannedTrial:
    spec = PretrainSpec.model_validate({**trial.spec.model_dump(mode="json"), "seed": seed})
    return PlannedTrial(id=f"{trial.id}-s{seed}", params=trial.params, spec=spec, seed=seed)


# --- the grid -------------------------------------------------------------------------------------


def workers() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(NUM_AT_ONCE, mp_context=get_context("spawn"), initializer=use_one_thread)


def use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def recorded_grid(kept: Path | None, run: Callable[[], dict[str, Recorded]]) -> dict[str, Recorded]:
    if kept is not None and kept.exists():
        return {name: Recorded(**row) for name, row in json.loads(kept.read_text()).items()}
    grid = run()
    if kept is not None:
        kept.write_text(json.dumps({name: asdict(recorded) for name, recorded in grid.items()}))
    return grid


def run_grid(pool: ProcessPoolExecutor, folder: str, trials: Sequence[PlannedTrial]) -> dict[str, Recorded]:
    return dict(zip((trial.id for trial in trials), pool.map(partial(train, folder), trials), strict=True))


def train(folder: str, trial: PlannedTrial) -> Recorded:
    """Train a trial to its end."""
    heard: list[EpochReport] = []

    def hear(report: EpochReport) -> bool:
        heard.append(report)
        return False

    context = TrialContext(
        experiment_id="exp_grid",
        experiment_name="grid",
        trial_id=trial.id,
        attempt=1,
        storage=f"{folder}/storage",
        cache_dir=f"{folder}/cache",
    )
    result = run_trial_in_process(trial.spec, context, on_epoch=hear)
    return Recorded(
        by_epoch=(*(report.metrics[KNN_ACCURACY] for report in heard), result.metrics[KNN_ACCURACY]),
        images_per_epoch=result.step // trial.spec.epochs * trial.spec.batch_size,
    )


# --- the same sweep under ASHA --------------------------------------------------------------------


def run_asha(
    sweep: SweepSpec, trials: Sequence[PlannedTrial], grid: Mapping[str, Recorded], folder: Path
) -> dict[str, int]:
    """Return the epoch after which each trial ended; of two that run, the one with fewer images behind it reports."""
    epochs = {trial.id: trial.spec.epochs for trial in trials}
    document = sweep.model_dump(mode="json")
    referee = Referee(sweep=document, storage=str(folder / "asha"), experiment_id="exp_asha", epochs=epochs)
    waiting = list(reversed(trials))
    running: list[tuple[int, str, int]] = []  # (images seen by its slot, trial, epoch it is in)
    ended: dict[str, int] = {}

    def start(images: int) -> None:
        if waiting:
            trial = waiting.pop()
            heappush(running, (images + grid[trial.id].images_per_epoch, trial.id, 1))

    for _ in range(NUM_AT_ONCE):
        start(0)
    while running:
        images, trial_id, epoch = heappop(running)
        if epoch == epochs[trial_id] or referee.report(
            trial_id, epochs[trial_id], epoch, metrics(grid, trial_id, epoch)
        ):
            ended[trial_id] = epoch
            start(images)
        else:
            heappush(running, (images + grid[trial_id].images_per_epoch, trial_id, epoch + 1))
    return ended


def metrics(grid: Mapping[str, Recorded], trial_id: str, epoch: int) -> dict[str, Any]:
    return {KNN_ACCURACY: grid[trial_id].by_epoch[epoch - 1]}


if __name__ == "__main__":
    main()
