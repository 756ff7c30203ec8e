"""Jobs that send MLflow what an experiment could not: it ended while MLflow was away for longer than it waits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from service.dispatch.conditions import Conditions
from service.dispatch.job import backfill_job
from service.dispatch.unrecorded_looks import UnrecordedLooks
from service.errors import ClusterUnavailable
from service.outage import Outages
from service.ports import Cluster, ExperimentRecord, JobObservation, JobStatus
from service.settings import Settings

__all__ = ["CONDITION", "MOST_TRIES", "Backfills"]

CONDITION: Final = "mlflow_incomplete"
MOST_TRIES: Final = 5


class Backfills:
    """Looks after the numbers that are still in the storage of an experiment that has ended."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        looks: UnrecordedLooks,
        conditions: Conditions,
        outages: Outages,
        settings: Settings,
    ) -> None:
        self._cluster = cluster
        self._looks = looks
        self._conditions = conditions
        self._outages = outages
        self._settings = settings

    async def is_done(self, record: ExperimentRecord) -> bool:
        """Return whether MLflow has everything, or was tried often enough; else see that a job sends it.

        A try is known by its number, so that none is submitted twice, whoever asks.

        Raises:
            BlobsUnavailable: If storage cannot say what is unsent.
            ClusterUnavailable: If no job can be looked at or submitted.
        """
        unrecorded = await self._looks.runs(record.id, purpose="is anything missing")
        if unrecorded is None:
            return False  # told at a later call
        if not unrecorded:
            await self._conditions.take_back(record, CONDITION)
            return True
        for number in range(1, MOST_TRIES + 1):
            name = f"{record.id}-a{record.attempt}-backfill-{number}"
            status = (await self._observe(name)).status
            if status is JobStatus.MISSING:
                # The try before may have ended since that look.
                if await self._looks.runs(record.id, purpose=name):
                    await self._conditions.set(record, CONDITION, "what MLflow missed of it is sent now")
                    await self._submit(record, name)
                return False
            if status.is_living:
                return False
        return await self._is_over(record)

    async def _is_over(self, record: ExperimentRecord) -> bool:
        """Tell what the last try left unsent, if anything; return whether that is known."""
        missing = await self._looks.runs(record.id, purpose="after the last try")
        if missing:
            message = (
                f"{MOST_TRIES} tries did not bring all of it to MLflow: it is safe in storage, and "
                "`python -m trainer.backfill`, with the document of the experiment's last job, sends it"
            )
            await self._conditions.set(record, CONDITION, message)
        elif missing is not None:
            await self._conditions.take_back(record, CONDITION)
        return missing is not None

    def keep(self, experiment_ids: Collection[str]) -> None:
        """Forget all experiments but these."""
        self._looks.keep(experiment_ids)

    async def _observe(self, name: str) -> JobObservation:
        return await self._outages.ask(ClusterUnavailable, lambda: self._cluster.observe(name))

    async def _submit(self, record: ExperimentRecord, name: str) -> None:
        job = backfill_job(record, self._settings)
        await self._outages.ask(
            ClusterUnavailable,
            lambda: self._cluster.submit(name, entrypoint=job.entrypoint, env=job.env, metadata=job.metadata),
        )
