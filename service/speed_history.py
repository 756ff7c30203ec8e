"""How fast earlier pretrainings went here: the only ground on which a plan says how long one takes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from statistics import median
from typing import Any, Final

from service.errors import Unavailable
from service.experiment import State
from service.ports import ExperimentRecord, ListQuery, Store, Tracking
from service.waiting import happens
from trainer.metric_names import IMAGES_PER_SECOND
from trainer.spec import PretrainSpec

__all__ = ["SpeedHistory"]

PERIOD_S: Final = 60.0
MOST_EXPERIMENTS: Final = 50  # the newest say most of the machines there are now


class SpeedHistory:
    """The images per second of the newest pretrainings that succeeded, kept in memory.

    Two are alike if they trained the same encoder on images of the same size with as many workers
    on the same kind of device.
    """

    def __init__(self, store: Store, tracking: Tracking) -> None:
        self._store = store
        self._tracking = tracking
        self._told: dict[str, tuple[tuple[Any, ...], float | None]] = {}  # experiment id -> (likeness, rate)

    def images_per_second(self, spec: PretrainSpec) -> float | None:
        """Return the median of those alike `spec`, None if there was none yet."""
        likeness = _likeness(spec.model_dump(mode="json"))
        rates = [rate for like, rate in list(self._told.values()) if like == likeness and rate is not None]
        return median(rates) if rates else None

    async def run(self, stop: asyncio.Event) -> None:
        """Refresh now and then until `stop`; what does not answer is asked again later."""
        while not stop.is_set():
            with suppress(Unavailable):
                await self.refresh()
            await happens(stop, within_s=PERIOD_S)

    async def refresh(self) -> None:
        """Ask for the rates of experiments that are new. Raises StoreUnavailable and TrackingUnavailable."""
        query = ListQuery(states=(State.SUCCEEDED,), kind="pretrain", page_size=MOST_EXPERIMENTS)
        newest = (await self._store.list(query)).items
        for experiment_id in self._told.keys() - {record.id for record in newest}:
            del self._told[experiment_id]
        for record in newest:
            if record.id not in self._told:
                self._told[record.id] = (_likeness(record.spec), await self._rate(record))

    async def _rate(self, record: ExperimentRecord) -> float | None:
        rates = [trial.metrics.get(IMAGES_PER_SECOND) for trial in await self._tracking.trials(record.id)]
        return next((rate for rate in rates if rate and rate > 0), None)


def _likeness(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    encoder, scaling = spec.get("encoder", {}), spec.get("scaling", {})
    return (
        *(encoder.get(name) for name in ("name", "stem", "width")),
        spec["data"].get("image_size"),
        str(scaling.get("num_workers")),
        bool(scaling.get("gpus_per_worker")),
    )
