"""Running a sweep's trials on Ray Tune: which trial next, on what resources, and how it ended.

Tune starts, bounds and restarts the trials and reuses their processes. What it does not do here:
it stops none early (the referee answers the trial itself, which then ends cleanly and frees what
it holds), keeps no state that a restart needs, and loads no pickle.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from trainer.context import JobDocument, TrialContext
from trainer.errors import Stopped, TrainerError
from trainer.launch import run_trial, run_trial_in_process
from trainer.spec import PretrainSpec
from tune_spaces.driver.budget import EpochWatch
from tune_spaces.driver.capacity import DRIVER_CPUS, is_alone, trial_resources, trials_at_once
from tune_spaces.driver.claim import claimed
from tune_spaces.driver.outcome import Outcome
from tune_spaces.driver.referee import AskReferee, Referee
from tune_spaces.driver.supply import TrialSupply
from tune_spaces.plan import possible_specs
from tune_spaces.spec import SweepSpec

__all__ = ["run_trials"]

logger = logging.getLogger(__name__)

MAX_TRIAL_FAILURES: Final = 1  # of its process; what training itself says is final is not tried again
ASK_STOP_EVERY_S: Final = 0.5


def run_trials(
    sweep: SweepSpec,
    document: JobDocument,
    supply: TrialSupply,
    *,
    num_trials: int,
    contexts: Callable[[str], TrialContext],
    on_start: Callable[[str], None],
    on_end: Callable[[Outcome], None],
    should_end: Callable[[], bool],
) -> None:
    """Run trials on Ray Tune, as `tune_spaces.driver.outcome.RunTrials` says."""
    if not ray.is_initialized():
        ray.init(log_to_driver=True, logging_level=logging.WARNING)  # where it is connected it says in colour
    cluster: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray's own omission
    specs = possible_specs(sweep)
    concurrent = trials_at_once(specs, cluster, allowed=sweep.max_concurrent_trials, num_trials=num_trials)
    logger.info("%d trials to run, %d at a time", num_trials, concurrent)
    trainable = tune.with_parameters(
        _run_one, referee=_referee(sweep, document, supply), counts_images=sweep.limits.max_images is not None
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, _requested),
        tune_config=tune.TuneConfig(
            num_samples=num_trials,
            max_concurrent_trials=concurrent,
            search_alg=_Suppliant(supply, contexts, should_end),
            scheduler=_Narrator(on_start, on_end),
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"{document.experiment_id}-a{document.attempt}",
            storage_path=str(Path(document.cache_dir) / "ray-tune"),
            failure_config=tune.FailureConfig(max_failures=MAX_TRIAL_FAILURES),
            verbose=0,
        ),
    )
    # At the end it looks for the files of results that no one wrote, and warns of each.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # Those of lone trials: the others' workers are Ray Train's, which claims for them.
    lone = max((trial_resources(spec)["CPU"] for spec in specs if is_alone(spec)), default=0.0)
    with claimed(document.experiment_id, [{"CPU": lone}] * concurrent) if lone else nullcontext():
        tuner.fit()


def _requested(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Tune reserves: all of a lone trial, the driver of one whose workers Ray Train places."""
    spec = PretrainSpec.model_validate_json(config["spec"])
    resources = trial_resources(spec) if is_alone(spec) else {"CPU": DRIVER_CPUS}
    return tune.PlacementGroupFactory([resources])


# --- inside a trial's process ---------------------------------------------------------------------


def _run_one(config: dict[str, Any], *, referee: Any, counts_images: bool) -> dict[str, Any]:
    """Run one trial and return how it ended; raise what another start may mend."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    spec = PretrainSpec.model_validate_json(config["spec"])
    context = TrialContext.model_validate_json(config["context"])
    on_epoch = EpochWatch(
        context=context,
        batch_size=spec.batch_size,
        counts_images=counts_images,
        referee=AskReferee(referee=referee, trial=context.trial_id, epochs=spec.epochs) if referee else None,
    )
    run = run_trial
    if is_alone(spec):
        import torch

        torch.set_num_threads(spec.scaling.cpus_per_worker)
        run = run_trial_in_process
    try:
        run(spec, context, on_epoch=on_epoch)
    except Stopped:
        return {"state": "stopped"}
    except TrainerError as error:
        if error.retryable:
            raise
        return {"state": "failed", "reason": json.dumps(error.record())}
    return {"state": "ended"}


# --- inside the driver ----------------------------------------------------------------------------


def _referee(sweep: SweepSpec, document: JobDocument, supply: TrialSupply) -> Any:
    """Return the handle of the sweep's referee, None where no trial is stopped early."""
    if sweep.scheduler == "fifo":
        return None
    actor = ray.remote(Referee).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    return actor.remote(
        sweep=sweep.model_dump(mode="json"),
        storage=document.storage,
        experiment_id=document.experiment_id,
        epochs={trial.id: trial.spec.epochs for trial in supply.known()},
    )


def _name(trial: Any) -> str:
    return str(trial.config["trial"])


class _Unpickled:
    """What Tune writes into its own state file and no one reads back: nothing of it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suppliant(_Unpickled, Searcher):
    """Tune's way to ask for the next trial."""

    def __init__(
        self, supply: TrialSupply, contexts: Callable[[str], TrialContext], should_end: Callable[[], bool]
    ) -> None:
        super().__init__(metric="done", mode="max")  # Tune wants them named and never looks
        self._supply = supply
        self._contexts = contexts
        self._should_end = _seldom(should_end)

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - our trials have their own ids
        planned = None if self._should_end() else self._supply.take()
        if planned is None:
            return Searcher.FINISHED
        context = self._contexts(planned.id)
        return {
            "trial": planned.id,
            "spec": planned.spec.model_dump_json(),
            "context": context.model_dump_json(),
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002 - Tune's signature
        """Learn nothing: the driver tells the supply."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the trial table is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Bring nothing back."""


def _seldom(ask: Callable[[], bool]) -> Callable[[], bool]:
    """Return `ask`, answered from memory for half a second."""
    asked_at, answer = -ASK_STOP_EVERY_S, False

    def remembered() -> bool:
        nonlocal asked_at, answer
        if time.monotonic() - asked_at >= ASK_STOP_EVERY_S:
            asked_at, answer = time.monotonic(), ask()
        return answer

    return remembered


class _Narrator(_Unpickled, FIFOScheduler):
    """Tune's way to tell what happens.

    A callback would hear the same, and for one Tune imports every logger it knows, MLflow too:
    seconds in which no trial starts.
    """

    def __init__(self, on_start: Callable[[str], None], on_end: Callable[[Outcome], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Ray's own omission
        self._on_start = on_start
        self._on_end = on_end

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002 - as Tune calls it
        self._on_start(_name(trial))  # none is added before there is room for it

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:  # noqa: ARG002 - as Tune calls it
        reason = json.loads(result["reason"]) if "reason" in result else None
        self._on_end(Outcome(trial=_name(trial), state=result.get("state", "stopped"), reason=reason))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002 - as Tune calls it
        message = " ".join(str(trial.get_error() or "the trial's process ended").split())[-500:]
        reason = {"code": "trial_crashed", "message": message, "retryable": True}
        self._on_end(Outcome(trial=_name(trial), state="failed", reason=reason))
