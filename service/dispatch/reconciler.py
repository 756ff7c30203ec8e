"""One experiment brought into agreement with its job: submitted, observed, stopped, settled."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Literal

import structlog

from service.dispatch.attempt_markers import AttemptMarkers
from service.dispatch.conditions import FAILING, WAITING, Conditions
from service.dispatch.job import attempt_job
from service.dispatch.run_closing import RunCloser
from service.dispatch.settlement import Ending, backoff_s, judge, over_time, way_to
from service.dispatch.step_report import Move, StepReport
from service.dispatch.story import Story
from service.dispatch.stragglers import Stragglers
from service.errors import BlobsUnavailable, ClusterUnavailable
from service.experiment import ACTIVE, TERMINAL, State, TrialState, submission_id
from service.outage import Outages
from service.ports import Cluster, ExperimentRecord, JobObservation, JobStatus, Store
from service.settings import Settings

__all__ = ["ON_CLUSTER", "Reconciler"]

PAUSE_GRACE_S: Final = 60.0  # to reach a step's end and write a checkpoint
CANCEL_GRACE_S: Final = 20.0  # to reach a step's end

ON_CLUSTER: Final = tuple(state for state in State if state in ACTIVE and state is not State.QUEUED)
_UNFINISHED: Final = frozenset({TrialState.PENDING, TrialState.RUNNING})

StopKind = Literal["pause", "cancel"]

log = structlog.get_logger("service.dispatch.dispatcher")


class Reconciler:
    """Does what is due for one experiment at a time. Raises what the ports raise."""

    def __init__(
        self,
        *,
        store: Store,
        cluster: Cluster,
        markers: AttemptMarkers,
        runs: RunCloser,
        stragglers: Stragglers,
        conditions: Conditions,
        outages: Outages,
        settings: Settings,
        claim: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._markers = markers
        self._runs = runs
        self._stragglers = stragglers
        self._conditions = conditions
        self._outages = outages
        self._settings = settings
        self._claim = claim
        self._clock = clock
        self._stories: dict[str, Story] = {}
        self._report = StepReport()

    def begin(self, report: StepReport, ids: set[str]) -> None:
        """Begin a step that is recorded in `report`; forget all experiments but these."""
        self._report = report
        for experiment_id in self._stories.keys() - ids:
            del self._stories[experiment_id]

    async def move(
        self,
        record: ExperimentRecord,
        target: State,
        *,
        ending: Ending | None = None,
        attempt: int | None = None,
        not_before: datetime | None = None,
    ) -> ExperimentRecord:
        """Make one move of the table. Raises StaleState where someone was faster."""
        moved = await self._store.transition(
            record.id,
            source=record.state,
            target=target,
            claim=self._claim,
            reason=ending.reason if ending else None,
            failures=ending.failures if ending else None,
            attempt=attempt,
            not_before=not_before,
        )
        self._report.moves.append(Move(experiment_id=record.id, source=record.state, target=target))
        log.info("experiment_moved", experiment_id=record.id, state=target, attempt=moved.attempt)
        return moved

    async def reconcile(self, record: ExperimentRecord) -> None:
        """Do what is due for an experiment that has left the queue."""
        story = self._stories.setdefault(record.id, Story())
        await story.read_on(self._store, record.id)
        if record.state is State.STARTING:
            await self._go_on(record, story, await self._submit(record))
        elif record.state is State.RECOVERING:
            await self._recover(record, story)
        else:
            await self._supervise(record, story)

    # --- starting ---------------------------------------------------------------------------------

    async def _recover(self, record: ExperimentRecord, story: Story) -> None:
        """Start the next attempt when its backoff is over; its number was committed with the failure."""
        if self._is_over_time(record, story):
            try:
                observation = await self._observe(record)
            except ClusterUnavailable:
                observation = JobObservation(status=JobStatus.MISSING)
            if observation.status is JobStatus.MISSING:
                await self._settle(record, story, over_time(record))
                return
        elif record.not_before is not None and record.not_before > self._clock():
            return
        else:
            observation = await self._submit(record)
        await self._go_on(record, story, observation)

    async def _submit(self, record: ExperimentRecord) -> JobObservation:
        job = attempt_job(record, self._settings, attempt=record.attempt)
        name = submission_id(record.id, record.attempt)
        await self._markers.note_open_run(record.id, record.attempt)
        await self._outages.ask(
            ClusterUnavailable,
            lambda: self._cluster.submit(name, entrypoint=job.entrypoint, env=job.env, metadata=job.metadata),
        )
        self._report.submitted.append(name)
        return await self._observe(record)

    async def _go_on(self, record: ExperimentRecord, story: Story, observation: JobObservation) -> None:
        """Take a submitted attempt to where its job is."""
        await self._all_is_well(record)
        if observation.status is JobStatus.RUNNING:
            await self.move(record, State.RUNNING)
        elif not observation.status.is_living and observation.status is not JobStatus.MISSING:
            await self._settle_ended(record, story, observation)

    # --- running and stopping ---------------------------------------------------------------------

    async def _supervise(self, record: ExperimentRecord, story: Story) -> None:
        """Watch an attempt that runs or is to stop, and settle it when it has ended."""
        has_ended_trials = await self._tell_trials(record, story)
        kind = self._stop_wish(record, story)
        if kind is not None:
            await self._markers.ask_to_stop(record, kind)
        try:
            observation = await self._observe(record)
        except ClusterUnavailable:
            if not await self._settle_unobserved(record, story):
                raise
            return
        if not observation.status.is_living:
            await self._settle_ended(record, story, observation)
            return
        await self._all_is_well(record)
        if kind is not None:
            await self._stop_after_grace(record, story, kind)
        elif has_ended_trials:
            await self._stop_if_it_lingers(record)

    def _stop_wish(self, record: ExperimentRecord, story: Story) -> StopKind | None:
        if record.state is State.PAUSING:
            return "pause"
        is_wanted = record.state is State.CANCELLING or self._is_over_time(record, story)
        return "cancel" if is_wanted else None

    async def _stop_after_grace(self, record: ExperimentRecord, story: Story, kind: StopKind) -> None:
        """Let Ray end a job that does not stop by itself."""
        grace_s = PAUSE_GRACE_S if kind == "pause" else CANCEL_GRACE_S
        now = self._attended_until(record)
        is_asked = record.state in (State.PAUSING, State.CANCELLING)
        waited_s = story.time_in_state_s(now) if is_asked else story.time_on_cluster_s(now) - record.wall_time_s
        if waited_s > grace_s:
            await self._stop(record)

    async def _stop_if_it_lingers(self, record: ExperimentRecord) -> None:
        """Let Ray end a job that said its last word and is still there."""
        name = submission_id(record.id, record.attempt)
        if not self._stragglers.knows(name) and not (await self._markers.read_left(record)).is_last_word:
            return
        if await self._stragglers.hurry(name):
            self._report.stopped.append(name)

    async def _stop(self, record: ExperimentRecord) -> None:
        name = submission_id(record.id, record.attempt)
        await self._outages.ask(ClusterUnavailable, lambda: self._cluster.stop(name))
        self._report.stopped.append(name)

    # --- settling ---------------------------------------------------------------------------------

    async def _settle_ended(self, record: ExperimentRecord, story: Story, observation: JobObservation) -> None:
        left = await self._markers.read_left(record)
        is_over_time = self._is_over_time(record, story)
        await self._settle(record, story, judge(record, left, observation, is_over_time=is_over_time))

    async def _settle_unobserved(self, record: ExperimentRecord, story: Story) -> bool:
        """Settle while Ray is away, if the job had its last word or its time is long over; return whether."""
        left = await self._markers.read_left(record)
        overdue_s = story.time_on_cluster_s(self._attended_until(record)) - record.wall_time_s
        if not left.is_last_word and overdue_s <= CANCEL_GRACE_S:
            return False
        gone = JobObservation(status=JobStatus.MISSING)
        await self._settle(record, story, judge(record, left, gone, is_over_time=overdue_s > 0))
        return True

    async def _settle(self, record: ExperimentRecord, story: Story, ending: Ending) -> None:
        """Take an experiment whose attempt has ended to where it goes from here."""
        await self._tell_trials(record, story)
        if ending.target in TERMINAL:
            await self._runs.close(record, ending.target)
        *through, last = way_to(record.state, ending.target)
        for state in through:
            record = await self.move(record, state)
        await self._all_is_well(record)  # of what it waited for, nothing matters any more
        if last is State.RECOVERING:
            # The number of the next attempt is committed before anything is submitted under it.
            not_before = self._clock() + timedelta(seconds=backoff_s(ending.failures or 1))
            await self.move(record, last, ending=ending, attempt=record.attempt + 1, not_before=not_before)
        else:
            await self.move(record, last, ending=ending)

    async def _tell_trials(self, record: ExperimentRecord, story: Story) -> bool:
        """Append an event for each trial that is not as it was told last; return whether all have ended."""
        rows = await self._markers.read_trials(record.id)
        for row in story.news_of(rows):
            event = await self._store.append_event(record.id, "trial", row)
            story.trials[row["id"]] = event.data
            self._report.num_trial_events += 1
        return bool(rows) and all(row.get("state") not in _UNFINISHED for row in rows)

    # --- small things -----------------------------------------------------------------------------

    async def _observe(self, record: ExperimentRecord) -> JobObservation:
        name = submission_id(record.id, record.attempt)
        return await self._outages.ask(ClusterUnavailable, lambda: self._cluster.observe(name))

    def _is_over_time(self, record: ExperimentRecord, story: Story) -> bool:
        return story.time_on_cluster_s(self._attended_until(record)) > record.wall_time_s

    def _attended_until(self, record: ExperimentRecord) -> datetime:
        """Return now, or until when the record was claimed if the machine has slept since."""
        now = self._clock()
        return now if record.claimed_until is None else min(now, record.claimed_until)

    async def _all_is_well(self, record: ExperimentRecord) -> None:
        await self._conditions.take_back(record, WAITING, FAILING, ClusterUnavailable.code, BlobsUnavailable.code)
