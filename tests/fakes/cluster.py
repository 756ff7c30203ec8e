"""A Ray cluster in memory whose time is a clock that tests move.

Jobs start a moment after they were submitted, work for a while, and leave the markers that
`trainer.job` describes. How an attempt goes is its fate; work that was done is kept, as by a
checkpoint, for the next attempt. Given a number of steps, they record metrics as real ones do, and
the next attempt goes on from a checkpoint. It passes the conformance suite of `ports.Cluster`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from service.errors import ClusterUnavailable
from service.ports import Capacity, JobObservation, JobStatus
from tests.fakes.clock import Clock
from tests.fakes.tracking import FakeTracking
from tests.fakes.training import FakeStart
from trainer.context import JobDocument, experiment_key
from trainer.errors import Superseded
from trainer.storage import BlobMissing, Storage
from trainer.unrecorded import unrecorded_runs

Fate = Literal["work", "crash", "error", "bug", "deaf", "linger"]
"""work: to the end. crash: dies half-way without a word. error: fails for good. bug: fails, may be
tried again. deaf: works, but reads no wish to stop. linger: works, but its process does not end."""

START_S = 1.0
EXIT_S = 2.0  # from SIGINT to the end


@dataclass(kw_only=True)
class FakeJob:
    submission_id: str
    entrypoint: str
    env: Mapping[str, str]
    metadata: Mapping[str, str]
    submitted_at: datetime
    document: JobDocument | None
    fate: Fate
    status: JobStatus = JobStatus.PENDING
    interrupted_at: datetime | None = None
    worked_until: datetime | None = None
    logs: str = ""

    @property
    def is_living(self) -> bool:
        return self.status.is_living


class FakeCluster:
    def __init__(
        self,
        *,
        clock: Clock,
        blobs: Storage | None = None,
        tracking: FakeTracking | None = None,
        work_s: float = 30.0,
        num_steps: int = 0,
    ) -> None:
        """Build one whose jobs take `work_s` and record the metrics of `num_steps` steps, none by default."""
        self.clock = clock
        self.blobs = blobs
        self.tracking = tracking
        self.work_s = work_s
        self.num_steps = num_steps
        self.total = Capacity(cpus_total=8, cpus_free=8, gpus_total=0, gpus_free=0, nodes=1)
        self.is_down = False
        self.jobs: dict[str, FakeJob] = {}
        self._starts: dict[str, FakeStart] = {}  # by submission id, where metrics are recorded
        self.fates: dict[str, list[Fate]] = {}  # experiment id -> fates of its next attempts; then they work
        self.worked_s: Counter[str] = Counter()
        self.num_starts: Counter[str] = Counter()  # by submission id
        self.most_living: Counter[str] = Counter()  # by experiment id: at the same time
        self.num_heads_lost = 0
        self.num_calls = 0

    # --- what befalls clusters --------------------------------------------------------------------

    def living(self, experiment_id: str) -> list[FakeJob]:
        return [
            job
            for job in self.jobs.values()
            if job.is_living
            and job.metadata.get("experiment_id") == experiment_id
            and job.metadata.get("kind") != "backfill"
        ]

    def kill(self, submission_id: str) -> None:
        """End a job without a word."""
        job = self.jobs[submission_id]
        if job.is_living:
            job.status = JobStatus.FAILED

    def lose_head(self) -> None:
        """Forget all jobs; their processes die with the head."""
        self.jobs.clear()
        self.num_heads_lost += 1

    # --- the port ---------------------------------------------------------------------------------

    async def ping(self) -> None:
        self._answer()

    async def submit(
        self, submission_id: str, *, entrypoint: str, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        self._answer()
        if submission_id in self.jobs:
            return
        word = entrypoint.rpartition("--document ")[2] if "--document " in entrypoint else None
        document = JobDocument.decode(word) if word else None
        fates = self.fates.get(document.experiment_id, []) if document else []
        self.jobs[submission_id] = FakeJob(
            submission_id=submission_id,
            entrypoint=entrypoint,
            env=env,
            metadata=metadata,
            submitted_at=self.clock.now,
            document=document,
            fate=fates.pop(0) if fates else "work",
        )
        self.num_starts[submission_id] += 1
        if document and metadata.get("kind") != "backfill":
            num_living = len(self.living(document.experiment_id))
            self.most_living[document.experiment_id] = max(num_living, self.most_living[document.experiment_id])

    async def observe(self, submission_id: str) -> JobObservation:
        self._answer()
        job = self.jobs.get(submission_id)
        return JobObservation(status=job.status if job else JobStatus.MISSING)

    async def stop(self, submission_id: str) -> None:
        self._answer()
        job = self.jobs.get(submission_id)
        if job is not None and job.is_living and job.interrupted_at is None:
            job.interrupted_at = self.clock.now

    async def logs(self, submission_id: str) -> str:
        self._answer()
        job = self.jobs.get(submission_id)
        return job.logs if job else ""

    async def capacity(self) -> Capacity:
        self._answer()
        return replace(self.total)

    async def close(self) -> None:
        pass

    def _answer(self) -> None:
        self.num_calls += 1
        for job in self.jobs.values():
            self._advance(job)
        if self.is_down:
            raise ClusterUnavailable("Ray does not answer")

    # --- what jobs do -----------------------------------------------------------------------------

    def _advance(self, job: FakeJob) -> None:
        """Bring a job to where it is now."""
        now = self.clock.now
        began_at = job.submitted_at + timedelta(seconds=START_S)
        if not job.is_living:
            return
        if job.interrupted_at is not None and now >= job.interrupted_at + timedelta(seconds=EXIT_S):
            job.status = JobStatus.STOPPED
        elif now >= began_at:
            job.status = JobStatus.RUNNING
            if job.document is None:
                self._run_command(job, ran_s=(now - began_at).total_seconds())
            elif job.metadata.get("kind") == "backfill":
                self._backfill(job, job.document)
            else:
                since = job.worked_until or began_at
                job.worked_until = now
                try:
                    self._train(job, job.document, worked_s=(now - since).total_seconds())
                except Superseded as error:
                    self._fail(job, job.document, error.code, str(error))

    def _run_command(self, job: FakeJob, *, ran_s: float) -> None:
        name, _, argument = job.entrypoint.partition(" ")
        if name == "echo":
            job.logs = argument + "\n"
        if name != "sleep" or ran_s >= float(argument):
            job.status = JobStatus.FAILED if name == "false" else JobStatus.SUCCEEDED

    def _backfill(self, job: FakeJob, document: JobDocument) -> None:
        assert self.blobs is not None
        is_sent = self.tracking is not None and not self.tracking.is_down
        if is_sent and self.num_steps:
            FakeStart(self.blobs, document, self.tracking).send()
        for trial_id in unrecorded_runs(self.blobs, document.experiment_id) if is_sent else ():
            if self._read(document.experiment_id, f"trials/{trial_id}/complete.json") is None:
                self._write(document.experiment_id, f"trials/{trial_id}/metrics/sent.json", {"number": 1})
            else:
                self._write(document.experiment_id, f"trials/{trial_id}/complete.json", {"is_recorded": True})
        job.status = JobStatus.SUCCEEDED if is_sent else JobStatus.FAILED

    def _train(self, job: FakeJob, document: JobDocument, *, worked_s: float) -> None:
        experiment_id = document.experiment_id
        self.worked_s[experiment_id] += worked_s  # type: ignore[assignment] # a Counter of seconds
        start = self._record(job, document)
        self._tabulate(document, "running")
        done = self.worked_s[experiment_id]
        wish = self._read(experiment_id, "stop.json") or {}
        if job.fate != "deaf" and wish.get("attempt") == document.attempt:
            if start is not None:
                start.send()
            self._write(experiment_id, f"attempts/{document.attempt}/stopped.json", {"kind": wish["kind"]})
            job.status = JobStatus.SUCCEEDED
        elif job.fate == "crash" and done >= self.work_s / 2:
            if start is not None:
                start.send_and_die()
            job.status = JobStatus.FAILED
        elif job.fate == "error":
            if self.tracking is not None and self.tracking.is_down:
                self._write(experiment_id, "trials/t0000/metrics/entry-00000001.json", {"points": []})
            self._fail(job, document, "non_finite_loss", "loss is NaN at step 3")
        elif job.fate == "bug":
            self._fail(job, document, "internal_error", "KeyError: 'x'", retryable=True)
        elif done >= self.work_s:
            if start is not None:
                start.send()
            self._tabulate(document, "succeeded")
            is_recorded = self.tracking is None or not self.tracking.is_down
            self._write(experiment_id, "trials/t0000/complete.json", {"is_recorded": is_recorded})
            best = {"trial": "t0000", "metric": "knn_accuracy", "value": 0.5}
            complete = {"state": "succeeded", "attempt": document.attempt, "best": best, "reason": None}
            self._write(experiment_id, "complete.json", complete)
            job.status = JobStatus.RUNNING if job.fate == "linger" else JobStatus.SUCCEEDED

    def _fail(self, job: FakeJob, document: JobDocument, code: str, message: str, *, retryable: bool = False) -> None:
        failure = {"code": code, "message": message, "retryable": retryable}
        self._write(document.experiment_id, f"attempts/{document.attempt}/failure.json", failure)
        job.status = JobStatus.FAILED

    def _record(self, job: FakeJob, document: JobDocument) -> FakeStart | None:
        """Record the steps that a job has done by now; return its start, None where jobs record nothing."""
        if not self.num_steps:
            return None
        assert self.blobs is not None
        step_s = self.work_s / self.num_steps
        start = self._starts.get(job.submission_id)
        if start is None:
            start = self._starts[job.submission_id] = FakeStart(self.blobs, document, self.tracking)
            self.worked_s[document.experiment_id] = start.step * step_s  # type: ignore[assignment] # as above
        num_done = int(self.worked_s[document.experiment_id] / step_s)
        start.train_to(min(num_done, self.num_steps), at=self.clock.now)
        return start

    def _tabulate(self, document: JobDocument, state: str) -> None:
        run_id = None
        if self.tracking is not None and not self.tracking.is_down:
            self.tracking.ensure_run(document.experiment_id)
            run_id = self.tracking.ensure_run(document.experiment_id, "t0000").run_id
        row = {"id": "t0000", "state": state, "params": {}, "attempt": document.attempt, "mlflow_run_id": run_id}
        self._write(document.experiment_id, "trials.json", {"trials": [row]})

    def _read(self, experiment_id: str, name: str) -> dict[str, object] | None:
        assert self.blobs is not None
        try:
            return dict(json.loads(self.blobs.read(experiment_key(experiment_id, name))))
        except BlobMissing:
            return None

    def _write(self, experiment_id: str, name: str, document: Mapping[str, object]) -> None:
        assert self.blobs is not None
        data = json.dumps(document).encode()
        if self._read(experiment_id, name) != document:
            self.blobs.write(experiment_key(experiment_id, name), data)
