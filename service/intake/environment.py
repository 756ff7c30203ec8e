"""What only this installation can say of a spec: data sets, workers, GPUs.

What cannot be asked now (the cluster is away) is not judged; the dispatcher meets it later.
Everything here may read files: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import floor
from typing import TYPE_CHECKING

from service.dataset_facts import DatasetFacts
from service.ports import Capacity
from service.settings import Settings
from trainer.errors import DataError
from trainer.spec import PretrainSpec, SpecProblem

if TYPE_CHECKING:
    from trainer.data.source import DatasetInfo  # numpy comes with it

__all__ = ["Environment", "environment_problems"]


@dataclass(frozen=True)
class Environment:
    """This installation, as far as the specs of one request depend on it: every data set is asked once for one."""

    settings: Settings
    datasets: DatasetFacts
    capacity: Capacity | None  # None: the cluster does not answer
    images_per_second: Callable[[PretrainSpec], float | None] = lambda _: None  # of others alike; None: no history
    _versions: dict[str, str] = field(default_factory=dict)

    def dataset(self, name: str) -> DatasetInfo:
        """Return the entry of one data set. Raises DataError; for an unknown id its context lists the `allowed`."""
        return self.datasets.describe(name, self._version(name))

    def num_images(self, spec: PretrainSpec) -> int:
        """Return how many images an epoch draws from, as `DatasetFacts.num_images` has it. Raises DataError."""
        data = spec.data
        return self.datasets.num_images(
            data.dataset,
            self._version(data.dataset),
            image_size=data.image_size,
            validation_ratio=data.validation_ratio,
        )

    def _version(self, name: str) -> str:
        if name not in self._versions:
            self._versions[name] = self.datasets.version(name)
        return self._versions[name]


def environment_problems(spec: PretrainSpec, environment: Environment) -> list[SpecProblem]:
    """Return what makes `spec` impossible here; pointers are into the pretrain spec."""
    return [*_data_problems(spec, environment), *_worker_problems(spec, environment), *_gpu_problems(spec, environment)]


def _data_problems(spec: PretrainSpec, environment: Environment) -> list[SpecProblem]:
    name = spec.data.dataset
    try:
        info, num_images = environment.dataset(name), environment.num_images(spec)
    except DataError as error:
        known = error.context.get("allowed")
        code = "dataset_unusable" if known is None else "dataset_unknown"
        detail = f"data set {name!r} cannot be used: {error.message}" if known is None else error.message
        return [SpecProblem(pointer="/data/dataset", code=code, detail=detail, allowed=known)]
    problems: list[SpecProblem] = []
    if spec.method == "supervised" and not info.has_labels:
        problems.append(
            SpecProblem(
                pointer="/method",
                code="labels_missing",
                detail=f"method supervised needs labels and data set {name} has none; use simclr, or another data set",
                allowed=["simclr"],
                involves=("/data/dataset",),
            )
        )
    if spec.batch_size > num_images:
        problems.append(
            SpecProblem(
                pointer="/batch_size",
                code="batch_exceeds_dataset",
                detail=(
                    f"batch_size {spec.batch_size} is more than the {num_images} images of {name} "
                    "that the validation split leaves to train on; an epoch would have no step"
                ),
                allowed=f"<= {num_images}",
                involves=("/data/dataset", "/data/validation_ratio"),
            )
        )
    return problems


def _worker_problems(spec: PretrainSpec, environment: Environment) -> list[SpecProblem]:
    problems: list[SpecProblem] = []
    settings, scaling = environment.settings, spec.scaling
    if settings.max_workers is not None and scaling.max_workers() > settings.max_workers:
        problems.append(
            SpecProblem(
                pointer="/scaling/num_workers",
                code="too_many_workers",
                detail=f"num_workers {scaling.max_workers()} is more than SIMCLR_MAX_WORKERS={settings.max_workers}",
                allowed=f"<= {settings.max_workers}",
            )
        )
    # Of a range the least must fit; the run uses as many of the rest as there are.
    room = None if settings.cpus is None else floor(settings.cpus / scaling.cpus_per_worker)
    if room is not None and scaling.min_workers() > room:
        problems.append(
            SpecProblem(
                pointer="/scaling/num_workers",
                code="cluster_too_small",
                detail=(
                    f"{scaling.min_workers()} workers with {scaling.cpus_per_worker} CPUs each never fit "
                    f"the {settings.cpus} CPUs of this cluster"
                ),
                allowed=f"<= {room}",
                involves=("/scaling/cpus_per_worker",),
            )
        )
    # A cluster of a fixed size is the embedded one: this machine.
    if settings.cpus is not None and scaling.placement == "strict_spread" and scaling.min_workers() > 1:
        problems.append(
            SpecProblem(
                pointer="/scaling/placement",
                code="too_few_nodes",
                detail=f"{scaling.min_workers()} workers never get nodes of their own on a cluster of one; use spread",
                allowed=["pack", "spread"],
                involves=("/scaling/num_workers",),
            )
        )
    return problems


def _gpu_problems(spec: PretrainSpec, environment: Environment) -> list[SpecProblem]:
    wanted = spec.scaling.gpus_per_worker * spec.scaling.min_workers()
    if not wanted or environment.capacity is None or wanted <= environment.capacity.gpus_total:
        return []
    has = environment.capacity.gpus_total
    # A cluster that grows and has GPUs may get more of them; one of a fixed size never will.
    if has and environment.settings.cpus is None:
        return []
    return [
        SpecProblem(
            pointer="/scaling/gpus_per_worker",
            code="too_few_gpus",
            detail=f"{wanted} GPUs are asked for and this cluster has {has:g}; set gpus_per_worker to 0",
            allowed=f"<= {has:g} GPUs in all" if has else [0],
            involves=("/scaling/num_workers",),
        )
    ]
