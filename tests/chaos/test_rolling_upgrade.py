"""A new version takes over a database, and an experiment that runs, from an old one that still serves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.experiment import TRANSITIONS, State, submission_id
from service.store import migrations
from tests.conformance.postgres import PostgresServer
from tests.fakes.control_plane import ControlPlane

pytestmark = pytest.mark.anyio

FIRST_REVISION = "0001"
LEASE_AND_MORE_S = 16.0


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


async def test_a_running_experiment_is_adopted_across_a_change_of_schema(address: str, tmp_path: Path) -> None:
    migrations.upgrade(address, FIRST_REVISION)
    plane = ControlPlane(database=address, home=tmp_path)
    try:
        old = plane.start_dispatcher("old")
        running, queued = await plane.submit(), await plane.submit(spec_digest="later")
        await plane.step_until(running, State.RUNNING)
        with pytest.raises(SettingsError, match="simclr db upgrade"):
            migrations.check(address)  # a new version does not serve on what it has not upgraded

        migrations.upgrade(address)
        await old.step()  # the old version goes on meanwhile
        new = plane.start_dispatcher("new")
        await new.step()
        assert (await plane.get(running)).claim == "old"
        plane.clock.advance(LEASE_AND_MORE_S)  # the old version is ended
        await new.step()
        assert (await plane.get(running)).claim == "new"

        for experiment_id in (running, queued):
            record = await plane.step_until(experiment_id, State.SUCCEEDED)
            assert (record.attempt, record.failures) == (1, 0)
            states = [State(state) for state in await plane.states(experiment_id)]
            assert all(target in TRANSITIONS[source] for source, target in pairwise(states))
            assert plane.cluster.num_starts[submission_id(experiment_id, 1)] == 1
    finally:
        await plane.store.close()
    migrations.check(address)
