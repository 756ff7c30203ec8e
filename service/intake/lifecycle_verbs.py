"""Cancel, pause, resume and delete: what a client asks, as moves of the lifecycle's table."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import structlog

from service.edge.deps import Services
from service.edge.problems import Problem
from service.errors import BlobsUnavailable, ExperimentNotFound, StaleState, Unavailable
from service.experiment import ACTIVE, TERMINAL, State, Verb, allowed_verbs, verb_target
from service.ports import ExperimentRecord, ListQuery
from service.storage_threads import ANSWER_S, StorageThreads

__all__ = ["Deletions", "obey"]

MAX_RACES = 8  # how often the state may move under a verb before the client is told to look again
DELETION = "deletion_requested"
RETRY_S = 1.0  # where the database did not answer
RECHECK_S = 10.0  # where no end is told; each look is a transaction that writes
REMOVAL_GRACE_S = 5.0

log = structlog.get_logger("service.lifecycle")


async def obey(verb: Verb, record: ExperimentRecord, services: Services) -> ExperimentRecord:
    """Return the experiment after `verb`; one that has been obeyed already changes nothing.

    Raises:
        Problem: 409 with the current state and the moves that are allowed from it.
        ExperimentNotFound: If it was deleted meanwhile.
    """
    for _ in range(MAX_RACES):
        target = verb_target(verb, record.state)
        if target is None:
            break
        if target is record.state:
            return record
        try:
            moved = await services.store.transition(record.id, source=record.state, target=target)
        except StaleState:
            record = await services.store.get(record.id)  # someone else moved it first: judge again
        else:
            services.wake_dispatcher()
            return moved
    allowed = [str(other) for other in allowed_verbs(record.state)]
    detail = (
        f"{verb} is not possible while the experiment is {record.state}; allowed now: {', '.join(allowed) or 'none'}"
    )
    raise Problem(409, "illegal_transition", detail, state=record.state.value, allowed=allowed)


class Deletions:
    """Deletes experiments, those that must be cancelled first once they have ended.

    The wish is kept as a condition in the database, so a restart of the service does not forget it.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._waiting: dict[str, asyncio.Task[None]] = {}  # experiment -> what deletes it when it has ended
        self._threads = StorageThreads()  # its own: to remove thousands of blobs must not hold up who reads one
        self._removals: set[asyncio.Task[None]] = set()

    async def delete(self, record: ExperimentRecord, *, is_forced: bool) -> bool:
        """Delete now, or as soon as it is cancelled; return whether it is gone already.

        Raises:
            Problem: 409 while it is active and `is_forced` is not set.
        """
        if record.state in ACTIVE:
            if not is_forced:
                detail = f"the experiment is {record.state}; cancel it first, or delete with ?force=true"
                raise Problem(409, "experiment_active", detail, state=record.state.value, allowed=["cancel"])
            with contextlib.suppress(Problem):  # it ended by itself meanwhile
                record = await obey(Verb.CANCEL, record, self._services)
        if record.state not in ACTIVE:
            await self._remove(record.id)
            return True
        now = datetime.now(UTC).isoformat()
        condition = {"type": DELETION, "status": "true", "message": "deleted once it is cancelled", "at": now}
        await self._services.store.set_condition(record.id, condition)
        self._wait_for(record.id)
        return False

    async def take_up(self) -> None:
        """Wait again for the experiments whose deletion an earlier process promised."""
        # Those that have ended since are among the newest; of an older one its owner sees that it is there.
        for states in ((State.CANCELLING,), tuple(TERMINAL)):
            page = await self._services.store.list(ListQuery(states=states, page_size=1000))
            for record in page.items:
                if any(condition.get("type") == DELETION for condition in record.conditions):
                    self._wait_for(record.id)

    async def close(self) -> None:
        """Stop waiting; the wishes stay in the database. What is being removed has a moment to be gone."""
        waiting = list(self._waiting.values())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        if self._removals:
            await asyncio.wait(self._removals, timeout=REMOVAL_GRACE_S)

    def _wait_for(self, experiment_id: str) -> None:
        if experiment_id in self._waiting:
            return  # it was asked for before
        task = self._waiting[experiment_id] = asyncio.create_task(self._delete_when_ended(experiment_id))
        task.add_done_callback(lambda _: self._waiting.pop(experiment_id))

    async def _delete_when_ended(self, experiment_id: str) -> None:
        async with self._services.feed.watch(experiment_id) as news:
            while True:
                news.take()
                try:
                    await self._remove(experiment_id)
                except ExperimentNotFound:
                    return
                except StaleState:
                    await news.wait(RECHECK_S)  # still being cancelled
                except Unavailable:
                    await news.wait(RETRY_S)
                else:
                    return

    async def _remove(self, experiment_id: str) -> None:
        await self._services.store.delete(experiment_id)
        self._services.feed.ring(experiment_id)
        log.info("experiment_deleted", experiment_id=experiment_id)
        removal = asyncio.create_task(self._remove_blobs(experiment_id))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.wait([removal], timeout=ANSWER_S)  # it goes on when nobody waits any longer

    async def _remove_blobs(self, experiment_id: str) -> None:
        try:
            await self._threads.run(lambda: self._remove_all(experiment_id), within_s=None)
        except BlobsUnavailable as error:  # the experiment is gone; what is left costs space only
            log.warning("blobs_left_behind", experiment_id=experiment_id, error=error.message)

    def _remove_all(self, experiment_id: str) -> None:
        blobs = self._services.blobs
        for key in blobs.list(f"experiments/{experiment_id}/"):
            blobs.delete(key)
