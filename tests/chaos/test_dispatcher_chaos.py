"""The dispatcher is killed at random calls, again and again, while clusters, storage and MLflow come and go.

Whatever happens: no experiment is lost, none runs twice at once, every move is one of the table,
and all of it comes to an end that agrees with what the jobs said.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from service.dispatch.settlement import run_status
from service.errors import StaleState
from service.experiment import NON_TERMINAL, TERMINAL, TRANSITIONS, State, Verb, submission_id, verb_target
from service.store import migrations
from tests.conformance.postgres import PostgresServer
from tests.fakes.cluster import Fate
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crash import Crash
from trainer.context import experiment_key
from trainer.storage import BlobMissing

pytestmark = pytest.mark.anyio

FATES: tuple[Fate, ...] = ("work", "work", "crash", "error", "bug", "deaf", "linger")
NUM_STEPS = 400
LEASE_AND_MORE_S = 16.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "template.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        migrations.upgrade(server.address())
        yield server


MakeDatabase = Callable[[Path], str]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_database(request: pytest.FixtureRequest) -> MakeDatabase:
    """Return what gives the address of a database with nothing in it, for a life in a folder."""
    if request.param == "sqlite":
        template = request.getfixturevalue("sqlite_template")
        return lambda home: f"sqlite:///{shutil.copy(template, home / 'simclr.db')}"
    server: PostgresServer = request.getfixturevalue("server")

    def truncated(_: Path) -> str:
        server.execute("TRUNCATE experiments, experiment_labels, events, idempotency_keys, tokens")
        return server.address()

    return truncated


class Story:
    """One random life of a control plane."""

    def __init__(self, plane: ControlPlane, seed: int) -> None:
        self.plane = plane
        self.random = random.Random(seed)
        self.ids: list[str] = []
        self.num_crashes = 0

    async def live(self) -> None:
        plane, chance = self.plane, self.random
        for _ in range(3):
            fates = [chance.choice(FATES) for _ in range(3)]
            self.ids.append(await plane.submit(*fates, wall_time_s=chance.choice((60, 3600))))
        plane.points.calls_left = chance.randint(1, 60)
        for _ in range(NUM_STEPS):
            is_quiet = await self._step_or_die()
            plane.clock.advance(chance.choice((0.5, 2, 7)))
            await self._befall()
            if is_quiet and await self._is_over():
                return
        states = {experiment_id: str((await plane.get(experiment_id)).state) for experiment_id in self.ids}
        raise AssertionError(f"no end after {NUM_STEPS} steps: {states}")

    async def _step_or_die(self) -> bool:
        plane, chance = self.plane, self.random
        try:
            return (await plane.dispatcher.step()).is_idle
        except Crash:
            self.num_crashes += 1
            plane.points.calls_left = chance.randint(1, 60) if self.num_crashes < 4 else None
            is_same = chance.random() < 0.5  # comes back under its name, or another takes over when the lease is out
            plane.start_dispatcher("main" if is_same else None)
            plane.clock.advance(chance.choice((0, LEASE_AND_MORE_S)))
            return False

    async def _befall(self) -> None:
        """Let something happen outside the dispatcher, less and less as time goes on."""
        plane, chance = self.plane, self.random
        if self.num_crashes >= 4:
            plane.cluster.is_down = plane.blobs.is_down = plane.tracking.is_down = False
            await self._resume_all()
            return
        for part in (plane.cluster, plane.blobs, plane.tracking):
            part.is_down = chance.random() < (0.7 if part.is_down else 0.05)
        if chance.random() < 0.02:
            plane.cluster.lose_head()
        if chance.random() < 0.05 and plane.cluster.jobs:
            plane.cluster.kill(chance.choice(list(plane.cluster.jobs)))
        if chance.random() < 0.1:
            await self._ask(chance.choice(self.ids), chance.choice(list(Verb)))

    async def _ask(self, experiment_id: str, verb: Verb) -> None:
        record = await self.plane.get(experiment_id)
        target = verb_target(verb, record.state)
        if target is not None and target is not record.state:
            with contextlib.suppress(StaleState):
                await self.plane.store.transition(experiment_id, source=record.state, target=target)

    async def _resume_all(self) -> None:
        for experiment_id in self.ids:
            await self._ask(experiment_id, Verb.RESUME)

    async def _is_over(self) -> bool:
        records = [await self.plane.get(experiment_id) for experiment_id in self.ids]
        are_closed = not self.plane.blobs.is_down and not self.plane.blobs.list("service/open_runs/")
        return are_closed and all(record.state in TERMINAL for record in records)


async def check(story: Story) -> None:
    """Check what must hold of every life."""
    plane = story.plane
    for experiment_id in story.ids:
        record = await plane.get(experiment_id)
        states = [State(state) for state in await plane.states(experiment_id)]
        assert states[0] is State.QUEUED
        assert all(target in TRANSITIONS[source] for source, target in pairwise(states))
        assert states[-1] is record.state
        assert sum(state in TERMINAL for state in states) == 1
        assert plane.cluster.living(experiment_id) == []
        assert plane.cluster.most_living[experiment_id] <= 1
        assert record.failures <= record.max_attempts
        for attempt in range(1, record.attempt + 1):
            num_starts = plane.cluster.num_starts[submission_id(experiment_id, attempt)]
            assert num_starts <= 1 + plane.cluster.num_heads_lost
        if (marker := completion(plane, experiment_id)) is not None:
            assert marker == record.state
        assert plane.tracking.statuses(experiment_id) <= {run_status(record.state)}
        told = [event.data for event in await plane.events(experiment_id, "trial")]
        assert all(earlier != later for earlier, later in pairwise(told))
    assert set(NON_TERMINAL).isdisjoint({(await plane.get(experiment_id)).state for experiment_id in story.ids})


def completion(plane: ControlPlane, experiment_id: str) -> str | None:
    try:
        return str(json.loads(plane.blobs.read(experiment_key(experiment_id, "complete.json")))["state"])
    except BlobMissing:
        return None


async def live_and_check(tmp_path: Path, empty_database: MakeDatabase, seed: int) -> int:
    home = tmp_path / str(seed)
    home.mkdir()
    plane = ControlPlane(database=empty_database(home), home=home)
    story = Story(plane, seed)
    try:
        await story.live()
        plane.points.calls_left = None
        await check(story)
    finally:
        await plane.store.close()
    return story.num_crashes


@pytest.mark.parametrize("seed", range(1, 4))
async def test_a_control_plane_survives_its_death_at_any_call(
    tmp_path: Path, empty_database: MakeDatabase, seed: int
) -> None:
    assert await live_and_check(tmp_path, empty_database, seed) > 0


@pytest.mark.slow
async def test_a_control_plane_survives_a_hundred_deaths(tmp_path: Path, empty_database: MakeDatabase) -> None:
    num_crashes = 0
    seed = 1000
    while num_crashes < 100:
        num_crashes += await live_and_check(tmp_path, empty_database, seed)
        seed += 1
