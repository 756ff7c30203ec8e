"""How much of a cluster a trial takes, and how many trials fit at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from trainer.spec import PretrainSpec

__all__ = ["DRIVER_CPUS", "is_alone", "num_concurrent", "trial_resources", "trials_at_once"]

DRIVER_CPUS: Final = 0.01  # of a trial whose workers are elsewhere; 0 is refused by Ray


def is_alone(spec: PretrainSpec) -> bool:
    """Return whether a trial needs no workers beside its own process."""
    return spec.scaling.max_workers() == 1 and spec.scaling.gpus_per_worker == 0


def trial_resources(spec: PretrainSpec) -> dict[str, float]:
    """Return what one trial takes of a cluster, its workers included."""
    scaling = spec.scaling
    workers = scaling.min_workers()
    resources = {"CPU": float(scaling.cpus_per_worker * workers)}
    if scaling.gpus_per_worker:
        resources["GPU"] = float(scaling.gpus_per_worker * workers)
    if not is_alone(spec):
        resources["CPU"] += DRIVER_CPUS
    return resources


def num_concurrent(specs: Iterable[PretrainSpec], cluster: Mapping[str, float]) -> int:
    """Return how many of the trials always fit a cluster together, at least 1 (it may still grow)."""
    needs = [trial_resources(spec) for spec in specs]
    most = {name: max(need.get(name, 0.0) for need in needs) for name in ("CPU", "GPU")}
    return max(1, min(int(cluster.get(name, 0.0) // amount) for name, amount in most.items() if amount))


def trials_at_once(
    specs: Iterable[PretrainSpec], cluster: Mapping[str, float], *, allowed: int | None, num_trials: int
) -> int:
    """Return how many trials of a sweep run at a time.

    Args:
        specs: Of every trial there may be.
        cluster: Resource name -> amount, of the whole cluster.
        allowed: The sweep's own `max_concurrent_trials`, None if it set none.
        num_trials: How many there are to run.
    """
    room = num_concurrent(specs, cluster)
    return min(room, allowed or room, num_trials)
