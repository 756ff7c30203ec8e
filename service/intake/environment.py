"""What only this installation can say of a spec: data sets, workers, GPUs.

What cannot be asked now (the cluster is away) is not judged; the dispatcher meets it later.
Everything here may read files: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import floor
from typing import TYPE_CHECKING

from service.ports import Capacity
from service.settings import Settings
from trainer.errors import DataError
from trainer.spec import PretrainSpec, SpecProblem

if TYPE_CHECKING:
    from trainer.data.source import DatasetInfo  # numpy comes with it

__all__ = ["Environment", "environment_problems"]

MAX_COUNTED_BYTES = 64 * 2**20  # decoded: up to here a data set is decoded to count its split exactly, once


@dataclass(frozen=True)
class Environment:
    """This installation, as far as the specs of one request depend on it: no data set is read twice for one."""

    settings: Settings
    capacity: Capacity | None  # None: the cluster does not answer
    images_per_second: Callable[[PretrainSpec], float | None] = lambda _: None  # of others alike; None: no history
    _counted: dict[tuple[str, int, float], int] = field(default_factory=dict)

    def dataset(self, name: str) -> DatasetInfo:
        """Return the entry of one data set. Raises DataError; for an unknown id its context lists the `allowed`."""
        from trainer.data.catalogue import describe  # numpy comes with it

        return describe(name, self.settings.datasets)

    def num_images(self, spec: PretrainSpec) -> int:
        """Return how many images an epoch draws from: training less validation.

        Exact where the data set is small at this image size; of a larger one the expected number, right to within
        the rounding of its classes.

        Raises:
            DataError: If the data set is unknown or its images cannot be read.
        """
        key = (spec.data.dataset, spec.data.image_size, spec.data.validation_ratio)
        if key not in self._counted:
            self._counted[key] = self._count(spec)
        return self._counted[key]

    def _count(self, spec: PretrainSpec) -> int:
        num_train, image_size = self.dataset(spec.data.dataset).num_train, spec.data.image_size
        expected = num_train - round(num_train * spec.data.validation_ratio)
        if num_train * image_size**2 * 3 > MAX_COUNTED_BYTES:
            return expected
        from trainer.data.prepare import prepare

        try:
            dataset = prepare(
                spec.data.dataset,
                image_size=image_size,
                cache_dir=self.settings.cache_dir,
                datasets_dir=self.settings.datasets,
                validation_ratio=spec.data.validation_ratio,
            )
        except OSError:
            return expected  # the cache has no room here; where it trains it may
        return len(dataset.pretrain)


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
