"""A dispatcher with a real database, a real storage directory, and a cluster and MLflow in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.dispatch.dispatcher import Dispatcher
from service.dispatch.step_report import StepReport
from service.edge.identifiers import new_experiment_id
from service.experiment import State
from service.ports import Event, ExperimentRecord, NewExperiment
from service.settings import Settings
from service.store import SqlStore
from tests.fakes.blobs import LosableStorage
from tests.fakes.clock import Clock
from tests.fakes.cluster import FakeCluster, Fate
from tests.fakes.crash import CrashPoints
from tests.fakes.tracking import FakeTracking
from trainer.storage import Storage

TEMPLATE = NewExperiment(
    id="",
    name="emoji'; rm -rf /",
    kind="pretrain",
    owner="ada",
    labels={},
    priority=0,
    request={},
    spec={"data": {"dataset": "openmoji"}, "scaling": {"num_workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0}},
    spec_digest="d",
    plan={"trials": 1},
    max_attempts=3,
    wall_time_s=3600,
)


class ControlPlane:
    def __init__(self, *, database: Path | str, home: Path, blobs: Storage | None = None, **settings: Any) -> None:
        """Build one on a migrated database, a SQLite file or an address; without `blobs` they lie under `home`."""
        self.clock = Clock()
        address = database if isinstance(database, str) else f"sqlite:///{database}"
        self.store = SqlStore(address, clock=self.clock)
        self.blobs: Any = blobs or LosableStorage(home / "storage")
        self.tracking = FakeTracking()
        of_jobs = blobs or LosableStorage(home / "storage")
        self.cluster = FakeCluster(clock=self.clock, blobs=of_jobs, tracking=self.tracking)
        self.points = CrashPoints()
        self.settings = Settings(home=home, cpus=8, mlflow_uri="http://mlflow.test", **settings)
        self.num_claims = 0
        self.dispatcher = self.start_dispatcher()

    def start_dispatcher(self, claim: str | None = None) -> Dispatcher:
        """Return a dispatcher as a new process has it: with no memory, and by default under a new name."""
        self.num_claims += 1
        self.dispatcher = Dispatcher(
            store=self.points.wrap(self.store),
            cluster=self.points.wrap(self.cluster),
            tracking=self.points.wrap(self.tracking),
            blobs=self.points.wrap(self.blobs),
            settings=self.settings,
            claim=claim or f"dispatcher-{self.num_claims}",
            clock=self.clock,
        )
        return self.dispatcher

    async def submit(self, *fates: Fate, **changes: Any) -> str:
        """Store an experiment and return its id; its attempts meet `fates`, one after the other."""
        experiment_id = new_experiment_id()
        await self.store.create(replace(TEMPLATE, id=experiment_id, **changes), None)
        self.cluster.fates[experiment_id] = list(fates)
        return experiment_id

    async def step(self, *, advance_s: float = 0.0) -> StepReport:
        self.clock.advance(advance_s)
        return await self.dispatcher.step()

    async def step_until(self, experiment_id: str, *states: State, advance_s: float = 2.0) -> ExperimentRecord:
        """Step until the experiment is in one of `states`."""
        for _ in range(200):
            record = await self.get(experiment_id)
            if record.state in states:
                return record
            await self.step(advance_s=advance_s)
        raise AssertionError(f"{experiment_id} stays {record.state}: {record.reason}, {record.conditions}")

    async def get(self, experiment_id: str) -> ExperimentRecord:
        return await self.store.get(experiment_id)

    async def ask(self, experiment_id: str, target: State) -> None:
        """Move as a client's verb does."""
        record = await self.get(experiment_id)
        await self.store.transition(experiment_id, source=record.state, target=target)

    async def events(self, experiment_id: str, type_: str) -> Sequence[Event]:
        events = await self.store.events(after=0, experiment_id=experiment_id)
        return [event for event in events if event.type == type_]

    async def states(self, experiment_id: str) -> list[str]:
        return [event.data["state"] for event in await self.events(experiment_id, "state")]

    async def condition(self, experiment_id: str, type_: str) -> str | None:
        """Return the status of a condition, None where it was never set."""
        record = await self.get(experiment_id)
        return next((item["status"] for item in record.conditions if item["type"] == type_), None)
