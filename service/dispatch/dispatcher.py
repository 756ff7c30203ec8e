"""The reconcile loop: brings what runs on the cluster and what the database says into agreement.

Level-triggered: each step looks at every active experiment as it is now, so a restart, a lost
answer or another dispatcher needs no repair. The order at the points where a crash may fall:

    claim (commit) -> starting with attempt n (commit) -> submit under the id of n -> observe -> running

A submit that was lost is made again; one that was made twice collides on its id. Every move is
fenced by state and claim. An outage is no failure of an experiment: it waits, with a condition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog

from service.dispatch.admission import Limits, admit, most_demand
from service.dispatch.attempt_markers import AttemptMarkers
from service.dispatch.backfills import Backfills
from service.dispatch.conditions import FAILING, WAITING, Conditions, holds
from service.dispatch.dispatcher_metrics import DispatcherMetrics
from service.dispatch.holdings import Holdings
from service.dispatch.listing import all_in
from service.dispatch.reconciler import ON_CLUSTER, Reconciler
from service.dispatch.run_closing import RunCloser
from service.dispatch.step_report import StepReport
from service.dispatch.stragglers import Stragglers
from service.dispatch.unrecorded_looks import UnrecordedLooks
from service.errors import BlobsUnavailable, ClusterUnavailable, ExperimentNotFound, StaleState, StoreUnavailable
from service.experiment import State
from service.outage import Outages
from service.ports import Cluster, ExperimentRecord, Store, Tracking
from service.settings import Settings
from service.waiting import first_of, happens
from trainer.storage import Storage

__all__ = ["Dispatcher"]

PERIOD_S: Final = 0.5
CUT_OFF_S: Final = 30.0  # after an outage all dispatchers reach Ray again within so long, or one is cut off by itself
LEAST_PERIOD_S: Final = 0.25  # however many submit: a step asks the cluster, and looks at all that wait

log = structlog.get_logger("service.dispatch.dispatcher")


class Dispatcher:
    """Admits experiments from the queue and looks after those on the cluster, one step at a time."""

    def __init__(
        self,
        *,
        store: Store,
        cluster: Cluster,
        tracking: Tracking,
        blobs: Storage,
        settings: Settings,
        claim: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        metrics: DispatcherMetrics | None = None,
    ) -> None:
        """Build a dispatcher; `claim` names it in the database, and one that comes back under it goes on at once."""
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._holdings = Holdings(store=store, claim=claim, clock=clock)
        self._clock = clock
        self._metrics = metrics
        self._outages = Outages(clock)
        self._met_silence: set[str] = set()  # experiments that come last, so that they keep nobody waiting
        self._conditions = Conditions(store=store, clock=clock)
        markers = AttemptMarkers(blobs, self._outages)
        stragglers = Stragglers(cluster=cluster, outages=self._outages, clock=clock)
        self._runs = RunCloser(
            store=store,
            tracking=tracking,
            markers=markers,
            conditions=self._conditions,
            outages=self._outages,
            backfills=Backfills(
                cluster=cluster,
                looks=UnrecordedLooks(blobs),
                conditions=self._conditions,
                outages=self._outages,
                settings=settings,
            ),
            stragglers=stragglers,
        )
        self._reconciler = Reconciler(
            store=store,
            cluster=cluster,
            markers=markers,
            runs=self._runs,
            stragglers=stragglers,
            conditions=self._conditions,
            outages=self._outages,
            settings=settings,
            claim=claim,
            clock=clock,
        )
        self._report = StepReport()
        self._ray_answers_since: datetime | None = None
        self._wakes = asyncio.Event()

    def wake(self) -> None:
        """Make the next step begin now."""
        self._wakes.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Step until `stop`; whatever happens in a step, another follows."""
        while not stop.is_set():
            self._wakes.clear()
            began_s = asyncio.get_running_loop().time()
            try:
                await self.step()
            except StoreUnavailable as error:
                log.warning("dispatcher_waits_for_database", error=error.message)
                if self._metrics is not None:
                    self._metrics.count_outage(error.code)
            except Exception:
                log.exception("dispatcher_step_failed")  # a bug must not end the loop that all experiments rest on
            await first_of(stop, self._wakes, within_s=PERIOD_S)
            await happens(stop, within_s=began_s + LEAST_PERIOD_S - asyncio.get_running_loop().time())

    async def step(self) -> StepReport:
        """Look once at every active experiment and do what is due. Raises StoreUnavailable."""
        began_at = self._clock()
        report = self._report = StepReport()
        self._outages.forget()
        records = await self._holdings.claim()
        report.num_active = len(records)
        ids = {record.id for record in records}
        self._reconciler.begin(report, ids)
        self._met_silence &= ids
        started = await self._admit([record for record in records if record.state is State.QUEUED])
        due = [*started, *(record for record in records if record.state is not State.QUEUED)]
        for record in sorted(due, key=lambda record: record.id in self._met_silence):
            await self._look_at(record)
        with suppress(BlobsUnavailable):
            report.num_closed = await self._runs.sweep(now=began_at)
        report.outages = self._outages.codes
        if self._metrics is not None:
            now = self._clock()
            self._metrics.observe(report, records, now=now, duration_s=(now - began_at).total_seconds())
        return report

    async def _look_at(self, claimed: ExperimentRecord) -> None:
        """Bring one experiment on, as it is now."""
        record = await self._holdings.current(claimed)
        if record is None or record.state is State.QUEUED:
            return
        num_silent = self._outages.num_silent
        await self._guarded(record, self._reconciler.reconcile)
        if self._outages.num_silent > num_silent:
            self._met_silence.add(record.id)
        elif not num_silent:
            self._met_silence.discard(record.id)

    async def _admit(self, queued: Sequence[ExperimentRecord]) -> list[ExperimentRecord]:
        """Move those that may start to `starting`, and say of the others why they wait."""
        for record in queued:
            await self._guarded(record, _read_demand)
        queued = [record for record in queued if record.id not in self._report.errors]
        if not queued:
            return []
        try:
            capacity = await self._cluster.capacity()
        except ClusterUnavailable as error:
            self._ray_answers_since = None
            self._outages.note(error)  # who tells of the nodes may be silent alone: jobs are asked for all the same
            for record in queued:
                await self._conditions.outage(record, error)
            return []
        running = {record.id: record for record in await all_in(self._store, ON_CLUSTER) if _is_readable(record)}
        # Each dispatcher decides over the whole queue, and so alike, and starts what it holds.
        others = [record for record in self._holdings.queue_of_others if _is_readable(record)]
        if self._ray_has_answered_for(CUT_OFF_S):  # a dispatcher that still can't reach it starts nothing
            others = [record for record in others if not holds(record, ClusterUnavailable.code)]
        waiting = [record for record in [*queued, *others] if record.id not in running]
        limits = Limits.of(self._settings)
        decision = admit(waiting, list(running.values()), capacity=capacity, limits=limits, now=self._clock())
        started: list[ExperimentRecord] = []
        mine = {record.id for record in queued}
        for record in decision.admitted:
            if record.id in mine:
                await self._guarded(record, partial(self._start, started=started))
        for record in queued:
            if record.id in decision.waiting:
                await self._guarded(record, partial(self._wait, why=decision.waiting[record.id]))
        return started

    def _ray_has_answered_for(self, seconds: float) -> bool:
        self._ray_answers_since = self._ray_answers_since or self._clock()
        return self._clock() - self._ray_answers_since > timedelta(seconds=seconds)

    async def _start(self, record: ExperimentRecord, *, started: list[ExperimentRecord]) -> None:
        moved = await self._reconciler.move(record, State.STARTING, attempt=record.attempt + 1)
        self._holdings.update(moved)
        started.append(moved)

    async def _wait(self, record: ExperimentRecord, *, why: str) -> None:
        await self._conditions.take_back(record, ClusterUnavailable.code)
        await self._conditions.set(record, WAITING, why)

    async def _guarded(self, record: ExperimentRecord, action: Callable[[ExperimentRecord], Awaitable[None]]) -> None:
        """Do what is due for one experiment; what goes wrong with it stays with it."""
        try:
            await action(record)
        except (StaleState, ExperimentNotFound):
            pass  # its owner or another dispatcher was faster: seen as it is in the next step
        except StoreUnavailable:
            raise
        except (ClusterUnavailable, BlobsUnavailable) as error:
            await self._conditions.outage(record, error)
        except Exception as error:  # told to its owner and logged; the others must go on
            self._report.errors[record.id] = f"{type(error).__name__}: {error}"
            message = (
                f"the service failed at this experiment ({type(error).__name__}) and tries again; its log says more"
            )
            if await self._conditions.set(record, FAILING, message):
                log.warning("experiment_not_reconciled", experiment_id=record.id, exc_info=True)


async def _read_demand(record: ExperimentRecord) -> None:
    most_demand(record)


def _is_readable(record: ExperimentRecord) -> bool:
    """Return whether the spec says what it needs; one of another version may not, and must not stop the queue."""
    try:
        most_demand(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return True
