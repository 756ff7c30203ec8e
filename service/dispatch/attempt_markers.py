"""What jobs and the service leave each other in storage, as `trainer.job` describes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import structlog

from service.errors import BlobsUnavailable
from service.outage import Outages
from service.ports import ExperimentRecord, JsonObject
from service.storage_threads import StorageThreads
from trainer.context import experiment_key
from trainer.storage import BlobMissing, Storage

__all__ = ["AttemptMarkers", "Left", "OpenRun", "RunStatus"]

T = TypeVar("T")
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_OPEN_RUNS: Final = "service/open_runs/"

log = structlog.get_logger("service.dispatch.dispatcher")


@dataclass(frozen=True, kw_only=True)
class Left:
    """What an attempt left behind; a process that was killed leaves nothing."""

    complete: JsonObject | None = None
    stopped: JsonObject | None = None
    failure: JsonObject | None = None

    @property
    def has_final_failure(self) -> bool:
        """Return whether another attempt would fail alike. One that was superseded by its own twin would not."""
        failure = self.failure
        return failure is not None and not failure.get("retryable") and failure.get("code") != "superseded"

    @property
    def is_last_word(self) -> bool:
        """Return whether the job said itself that it ended, so that Ray need not be asked."""
        return self.complete is not None or self.stopped is not None or self.has_final_failure


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """What is known of an experiment whose MLflow runs may be open, and the job of its attempt still there."""

    attempt: int
    status: RunStatus | None  # the one that its runs are to get, once that is known


class AttemptMarkers:
    """Reads and writes markers in threads; raises BlobsUnavailable where storage does not answer in time."""

    def __init__(self, blobs: Storage, outages: Outages) -> None:
        self._blobs = blobs
        self._outages = outages
        self._threads = StorageThreads()  # its own: requests that wait for storage must not hold up a step

    async def read_left(self, record: ExperimentRecord) -> Left:
        """Return what the experiment's present attempt left, and its completion marker of any attempt."""
        prefix = f"attempts/{record.attempt}/"
        return Left(
            complete=await self._read(record.id, "complete.json"),
            stopped=await self._read(record.id, f"{prefix}stopped.json"),
            failure=await self._read(record.id, f"{prefix}failure.json"),
        )

    async def read_trials(self, experiment_id: str) -> Sequence[JsonObject]:
        """Return the rows of the trial table, [] before there is one."""
        table = await self._read(experiment_id, "trials.json") or {}
        return list(table.get("trials", []))

    async def ask_to_stop(self, record: ExperimentRecord, kind: Literal["pause", "cancel"]) -> None:
        """Leave the wish that the present attempt stops; asking again changes nothing."""
        wish = {"attempt": record.attempt, "kind": kind}
        if await self._read(record.id, "stop.json") != wish:
            key = experiment_key(record.id, "stop.json")
            await self._in_thread(lambda: self._blobs.write(key, json.dumps(wish).encode()))

    async def note_open_run(self, experiment_id: str, attempt: int, status: RunStatus | None = None) -> None:
        """Note that the experiment has MLflow runs to be closed, and a job."""
        document = json.dumps({"attempt": attempt, "status": status}).encode()
        await self._in_thread(lambda: self._blobs.write(_OPEN_RUNS + experiment_id, document))

    async def open_runs(self) -> Sequence[str]:
        """Return the ids of the experiments with MLflow runs that may be open."""
        keys = await self._in_thread(lambda: self._blobs.list(_OPEN_RUNS))
        return [key.removeprefix(_OPEN_RUNS) for key in keys]

    async def open_run(self, experiment_id: str) -> OpenRun:
        """Return what is noted of one of them."""
        document = await self._read_blob(_OPEN_RUNS + experiment_id) or {}
        return OpenRun(attempt=document.get("attempt", 0), status=document.get("status"))

    async def forget_open_run(self, experiment_id: str) -> None:
        """Note that its MLflow runs are closed."""
        await self._in_thread(lambda: self._blobs.delete(_OPEN_RUNS + experiment_id))

    async def _read(self, experiment_id: str, name: str) -> JsonObject | None:
        return await self._read_blob(experiment_key(experiment_id, name))

    async def _read_blob(self, key: str) -> JsonObject | None:
        try:
            data = await self._in_thread(lambda: self._blobs.read(key))
            document: Any = json.loads(data)
        except BlobMissing:
            return None
        except ValueError:  # nobody of us writes such a thing: as good as absent, and the next attempt replaces it
            log.warning("marker_unreadable", key=key)
            return None
        return document if isinstance(document, dict) else None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await self._outages.ask(BlobsUnavailable, lambda: self._threads.run(call))
