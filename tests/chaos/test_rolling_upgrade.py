"""A new version takes over a database, and an experiment that runs, from an old one that still serves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from service.edge.identifiers import new_experiment_id
from service.errors import SettingsError
from service.experiment import TRANSITIONS, State, submission_id
from service.ports import Idempotency, ListQuery
from service.store import migrations
from tests.conformance.postgres import PostgresServer
from tests.fakes.control_plane import TEMPLATE, ControlPlane
from trainer.spec import PretrainSpec

pytestmark = pytest.mark.anyio

FIRST_REVISION: Final = "0001"
FIRST_VERSION: Final = Path(__file__).parents[1] / "harness" / "first_version.py"
LEASE_AND_MORE_S: Final = 16.0
ANSWER_TIMEOUT_S: Final = 30.0


class FirstVersion:
    """The control plane of the first version, a process; the world outside of it is the plane's."""

    def __init__(self, plane: ControlPlane, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._plane = plane

    async def submit(self, *, key: str, **labels: str) -> str:
        """Submit under a key and return the id; the name is the key's."""
        return str(await self._order("submit", id=new_experiment_id(), name=key, labels=labels, key=key))

    async def change(self, experiment_id: str, *, priority: int, **labels: str) -> None:
        await self._order("change", id=experiment_id, labels=labels, priority=priority)

    async def step(self, *admit: str, dies_at: str | None = None) -> None:
        """Do a step in which those of `admit` find room; it may die when it asks for something."""
        await self._order("step", admit=admit, dies_at=dies_at)

    async def _order(self, what: str, *, dies_at: str | None = None, **order: Any) -> Any:
        await self._say({"do": what, "at": self._plane.clock.now.isoformat(), **order})
        while "done" not in (message := await self._hear()):
            if message["ask"] == dies_at:
                self.process.kill()
                await self.process.wait()
                return None
            await self._say(await self._answer(message))
        return message["done"]

    async def _answer(self, message: dict[str, Any]) -> Any:
        cluster, name = self._plane.cluster, message["name"]
        if message["ask"] == "observe":
            return (await cluster.observe(name)).status.name
        metadata = {"experiment_id": message["id"], "attempt": str(message["attempt"]), "kind": "pretrain"}
        return await cluster.submit(name, entrypoint=message["entrypoint"], env={}, metadata=metadata)

    async def _say(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()

    async def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), ANSWER_TIMEOUT_S)
        assert line, "the first version has ended by itself; what it said is on the standard error output"
        return dict(json.loads(line))


@asynccontextmanager
async def first_version(plane: ControlPlane, *, address: str, storage: Path) -> AsyncIterator[FirstVersion]:
    command = (sys.executable, "-I", str(FIRST_VERSION), address, str(storage), "old")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield FirstVersion(plane, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield the address of a database with nothing in it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'simclr.db'}"
        return
    with PostgresServer() as server:
        yield server.address()


async def test_a_new_version_takes_over_from_a_process_of_the_first_one_that_still_serves(
    address: str, tmp_path: Path
) -> None:
    migrations.upgrade(address, FIRST_REVISION)
    plane = ControlPlane(database=address, home=tmp_path)
    try:
        async with first_version(plane, address=address, storage=tmp_path / "storage") as old:
            running = await old.submit(key="first", team="vision")
            await old.step(running)
            plane.clock.advance(2)
            await old.step(running)
            with pytest.raises(SettingsError, match="simclr db upgrade"):
                migrations.check(address)  # a new version does not serve on what it has not upgraded

            migrations.upgrade(address)  # under the old version, which goes on
            await old.step()
            late = await old.submit(key="late", team="vision")
            await old.change(running, priority=7, team="audio", tier="gold")
            await old.step()
            ours = await both_serve(plane, old, running=running, late=late)
            await old.step(late, dies_at="submit")  # between its commit and its submit

        assert await where(plane, running) == (State.RUNNING, 1, "old")
        assert await where(plane, late) == (State.STARTING, 1, "old")
        assert submission_id(late, 1) not in plane.cluster.jobs
        plane.clock.advance(LEASE_AND_MORE_S)
        await plane.step()
        for experiment_id in (running, late, ours):
            assert (await plane.get(experiment_id)).claim == "new"
            await ended_well(plane, experiment_id)
        for _ in range(20):
            await plane.step(advance_s=2.0)
        assert plane.blobs.list("service/open_runs/") == []  # those that the old one noted too, in its words
    finally:
        await plane.store.close()
    migrations.check(address)


async def both_serve(plane: ControlPlane, old: FirstVersion, *, running: str, late: str) -> str:
    """Let each read what the other wrote, and leave alone what is the other's; return the new one's experiment."""
    new = plane.start_dispatcher("new")
    ours = replace(TEMPLATE, id=new_experiment_id(), name="ours", labels={"team": "vision"}, priority=3)
    await plane.store.create(ours, key_of("ours"))
    for _ in range(3):
        plane.clock.advance(1)
        await new.step()
        await old.step()
    assert await where(plane, running) == (State.RUNNING, 1, "old")
    assert await where(plane, late) == (State.QUEUED, 0, "old")
    assert await where(plane, ours.id) == (State.RUNNING, 1, "new")

    assert await old.submit(key="ours") == ours.id
    again, is_replay = await plane.store.create(replace(ours, id=new_experiment_id()), key_of("late"))
    assert (again.id, is_replay) == (late, True)
    record = await plane.get(running)
    assert (record.labels, record.priority) == ({"team": "audio", "tier": "gold"}, 7)
    assert PretrainSpec.model_validate(record.spec).digest() == record.spec_digest
    for owner in (None, TEMPLATE.owner):
        vision = ListQuery(labels={"team": "vision"}, owner=owner)
        for order, ids in (("name", [late, ours.id]), ("priority", [late, ours.id]), ("-created_at", [ours.id, late])):
            page = await plane.store.list(replace(vision, order_by=order))  # type: ignore[arg-type] # a literal
            assert [each.id for each in page.items] == ids
        page = await plane.store.list(ListQuery(labels={"tier": "gold"}, owner=owner, order_by="priority"))
        assert [each.id for each in page.items] == [running]
    return ours.id


def key_of(name: str) -> Idempotency:
    """Return the key of this name, as the first version writes one."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Idempotency(owner=TEMPLATE.owner, route="POST /experiments", key=name, body_sha256=sha256)


async def where(plane: ControlPlane, experiment_id: str) -> tuple[State, int, str | None]:
    record = await plane.get(experiment_id)
    return record.state, record.attempt, record.claim


async def ended_well(plane: ControlPlane, experiment_id: str) -> None:
    record = await plane.step_until(experiment_id, State.SUCCEEDED)
    assert (record.attempt, record.failures) == (1, 0)
    states = [State(state) for state in await plane.states(experiment_id)]
    assert all(target in TRANSITIONS[source] for source, target in pairwise(states))
    assert plane.cluster.num_starts[submission_id(experiment_id, 1)] == 1
