"""A sweep as Ray's documentation nests Train into Tune: the peer of `benchmarks/sweep_overhead.py`.

    python benchmarks/harness/nested_sweep.py PLAN

PLAN is JSON: the specs of the trials, how many run at once, how often each reports, and where things
are. Everything is at Ray's default settings. A trial's one worker calls this project's training loop.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback


def main(plan: dict[str, Any]) -> None:
    tuner = tune.Tuner(
        tune.with_resources(drive_trial, {"CPU": 0.01}),  # a share, as none is refused
        param_space={"spec": tune.grid_search(plan["specs"]), "plan": plan},
        tune_config=tune.TuneConfig(max_concurrent_trials=plan["num_at_once"]),
        run_config=tune.RunConfig(storage_path=f"{plan['folder']}/tune", name="sweep"),
    )
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]


def drive_trial(config: dict[str, Any]) -> None:
    """Run one trial of Tune: it drives a run of Train."""
    trial_id = tune.get_context().get_trial_id()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={**config, "trial_id": trial_id},
        scaling_config=train.ScalingConfig(num_workers=1),
        run_config=train.RunConfig(
            name=f"train-{trial_id}",
            storage_path=f"{config['plan']['folder']}/train",
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call,list-item] # Ray shows types of its first version
        ),
    )
    trainer.fit()


def train_worker(config: dict[str, Any]) -> None:
    """Train in a worker, and report."""
    from trainer.context import TrialContext
    from trainer.launch import run_trial_in_process
    from trainer.spec import PretrainSpec

    plan = config["plan"]
    context = TrialContext(
        experiment_id="exp_nested",
        experiment_name="nested",
        trial_id=config["trial_id"],
        attempt=1,
        storage=f"{plan['folder']}/storage",
        datasets_dir=plan["datasets_dir"],
        cache_dir=plan["cache_dir"],
    )
    result = run_trial_in_process(PretrainSpec.model_validate(config["spec"]), context)
    for _ in range(plan["reports"]):
        train.report(dict(result.metrics))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
