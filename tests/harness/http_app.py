"""The HTTP app over a real database and storage and a cluster and MLflow in memory."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
from fastapi import FastAPI

from service.app import create_app
from service.edge.auth import hash_secret, new_secret
from service.experiment import State, submission_id
from service.ports import ExperimentRecord, MetricPoint, Role, TokenRecord
from service.settings import Settings
from service.store import SqlStore
from tests.fakes.blobs import LosableStorage
from tests.fakes.clock import Clock
from tests.fakes.cluster import FakeCluster, FakeJob
from tests.fakes.tracking import FakeRun, FakeTracking
from trainer.context import experiment_key, trial_key

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
START = datetime(2030, 1, 1, tzinfo=UTC)


def pretrain_body(**spec: Any) -> dict[str, Any]:
    """Return a small request for the data set `shapes`."""
    base = {"data": {"dataset": "shapes", "image_size": 16}, "batch_size": 32, "epochs": 2}
    return {"name": "small", "kind": "pretrain", "spec": {**base, **spec}}


@dataclass
class HttpApp:
    """An app under test, its client and all that stands behind it."""

    app: FastAPI
    http: httpx2.AsyncClient
    store: SqlStore
    cluster: FakeCluster
    tracking: FakeTracking
    blobs: LosableStorage

    async def submit(
        self, body: dict[str, Any] | None = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> dict[str, Any]:
        """Submit, expect success and return the experiment."""
        answer = await self.http.post("/experiments", json=body or pretrain_body(), headers=headers)
        assert answer.status_code == 202, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def move(self, experiment_id: str, *targets: State, attempt: int = 1) -> ExperimentRecord:
        """Move an experiment along the lifecycle, as a dispatcher would."""
        record = await self.store.get(experiment_id)
        for target in targets:
            number = attempt if target is State.STARTING else None
            record = await self.store.transition(experiment_id, source=record.state, target=target, attempt=number)
        return record

    async def run(self, experiment_id: str, *, num_steps: int = 3) -> FakeRun:
        """Let a pretraining run: a job, a trial table, a run in MLflow and some points."""
        await self.move(experiment_id, State.STARTING, State.RUNNING)
        await self.cluster.submit(submission_id(experiment_id, 1), entrypoint="sleep 60", env={}, metadata={})
        run = self.tracking.ensure_run(experiment_id, "t0000")
        row = {"id": "t0000", "state": "running", "params": {}, "metrics": {}, "attempt": 1}
        self.write(experiment_id, "trials.json", {"trials": [{**row, "mlflow_run_id": run.run_id}]})
        self.log_points(run, "loss", {step: 6.0 / step for step in range(1, num_steps + 1)})
        return run

    def log_points(self, run: FakeRun, key: str, values: dict[int, float]) -> None:
        """Put points into MLflow."""
        points = [
            MetricPoint(step=step, value=value, at=START + timedelta(seconds=step)) for step, value in values.items()
        ]
        run.history.setdefault(key, []).extend(points)

    def job(self, experiment_id: str) -> FakeJob:
        """Return the job of the first attempt."""
        return self.cluster.jobs[submission_id(experiment_id, 1)]

    async def succeed(self, experiment_id: str, *, bundle: bytes = b"a bundle") -> None:
        """Let a running pretraining end well, with an encoder."""
        best = {"trial": "t0000", "metric": "knn_accuracy", "value": 0.64}
        self.blobs.write(trial_key(experiment_id, "t0000", "encoder.zip"), bundle)
        self.write(experiment_id, "complete.json", {"state": "succeeded", "attempt": 1, "best": best})
        await self.move(experiment_id, State.SUCCEEDED)

    def leave_checkpoint(self, experiment_id: str) -> None:
        """Let a pretraining have come as far as its first checkpoint."""
        self.blobs.write(trial_key(experiment_id, "t0000", "checkpoints/manifest-0000000004.json"), b"{}")

    async def until_watched(self) -> None:
        """Return once an event stream is open."""
        while not self.app.state.services.feed.num_streams:  # noqa: ASYNC110 - nothing tells of it but the count
            await asyncio.sleep(0)

    def write(self, experiment_id: str, name: str, document: dict[str, Any]) -> None:
        """Put a JSON blob of an experiment into storage."""
        self.blobs.write(experiment_key(experiment_id, name), json.dumps(document).encode())

    async def token(self, role: Role = Role.SUBMITTER, *, owner: str = "ada", **times: datetime) -> dict[str, str]:
        """Store a token and return the header that carries it."""
        secret = new_secret()
        token = TokenRecord(
            id=f"tok_{hash_secret(secret)[:8]}",
            name="test",
            owner=owner,
            role=role,
            created_at=START,
            expires_at=times.get("expires_at"),
            revoked_at=times.get("revoked_at"),
        )
        await self.store.create_token(token, hash_secret(secret))
        return {"Authorization": f"Bearer {secret}"}


@asynccontextmanager
async def http_app(folder: Path, *, database: Path, **settings: Any) -> AsyncIterator[HttpApp]:
    """Run the app in `folder` on a copy of the migrated `database`."""
    running = offline_app(folder, database=database, **settings)
    stop = asyncio.Event()
    feed = asyncio.create_task(running.app.state.services.feed.run(stop))
    async with running.http:
        yield running
    stop.set()
    await feed
    await running.store.close()


def offline_app(folder: Path, *, database: Path, **settings: Any) -> HttpApp:
    """Return the app in `folder` on a copy of the migrated `database`, with a client that is not open yet."""
    shutil.copy(database, folder / "simclr.db")
    cache = database.parent / "cache"  # data sets are decoded once for all tests
    cache.mkdir(exist_ok=True)
    (folder / "cache").symlink_to(cache)
    store = SqlStore(f"sqlite:///{folder / 'simclr.db'}")
    tracking, blobs = FakeTracking(), LosableStorage(folder / "storage")
    cluster = FakeCluster(clock=Clock(), blobs=blobs, tracking=tracking)
    values = Settings(home=folder, **settings)
    app = create_app(settings=values, store=store, cluster=cluster, tracking=tracking, blobs=blobs)
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000")
    return HttpApp(app, http, store, cluster, tracking, blobs)


def pointers(answer: httpx2.Response) -> list[str]:
    """Return where a refusal says that things are wrong."""
    return [error["pointer"] for error in answer.json()["errors"]]


def assert_problem(answer: httpx2.Response, status: int, code: str | None = None) -> None:
    """Check that an answer is a whole problem document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) >= {"type", "title", "status", "detail", "instance", "code", "retryable", "errors"}
    assert document["status"] == status
    assert code in (None, document["code"])
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def events_of(text: str) -> list[tuple[str, str | None, Any]]:
    """Return (type, id, data) of each event of a stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found
