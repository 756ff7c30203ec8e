"""Two dispatchers on one store: who may leave the queue is decided over the whole of it, whoever holds what."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.dispatch.admission import PATIENCE_S
from service.dispatch.dispatcher import CUT_OFF_S
from service.dispatch.holdings import LEASE_S
from service.errors import ClusterUnavailable
from service.experiment import State
from tests.fakes.control_plane import ControlPlane

pytestmark = pytest.mark.anyio


def needs(num_cpus: int) -> dict[str, Any]:
    """Return the spec of an experiment of so many workers; the cluster has 8."""
    scaling = {"num_workers": num_cpus, "cpus_per_worker": 1, "gpus_per_worker": 0}
    return {"data": {"dataset": "openmoji"}, "scaling": scaling}


@pytest.fixture(params=[None, 1])
async def plane(request: pytest.FixtureRequest, tmp_path: Path, migrated_database: Path) -> AsyncIterator[ControlPlane]:
    """Yield one in which a single experiment runs at once: for want of room, or of the operator's leave."""
    shutil.copyfile(migrated_database, tmp_path / "simclr.db")
    plane = ControlPlane(database=tmp_path / "simclr.db", home=tmp_path, max_running=request.param)
    yield plane
    await plane.store.close()


async def held(plane: ControlPlane, claim: str, **changes: Any) -> str:
    """Return an experiment in the queue that one dispatcher holds."""
    experiment_id = await plane.submit(spec=needs(8), **changes)
    await plane.store.claim_due(claim, now=plane.clock.now, lease_s=LEASE_S)
    assert (await plane.get(experiment_id)).claim == claim
    return experiment_id


async def test_two_that_step_at_once_start_no_more_than_there_is_room_for(plane: ControlPlane) -> None:
    first, second = plane.start_dispatcher("first"), plane.start_dispatcher("second")
    older = await held(plane, "first")
    plane.clock.advance(1)
    younger = await held(plane, "second")
    await asyncio.gather(first.step(), second.step())
    assert (await plane.get(older)).state is State.STARTING
    assert (await plane.get(younger)).state is State.QUEUED
    assert await plane.condition(younger, "waiting_for_capacity") == "true"


async def test_the_highest_priority_goes_first_whoever_holds_it(plane: ControlPlane) -> None:
    first, second = plane.start_dispatcher("first"), plane.start_dispatcher("second")
    low = await held(plane, "first")
    urgent = await held(plane, "second", priority=100)
    await first.step()
    assert (await plane.get(low)).state is State.QUEUED
    await second.step()
    assert (await plane.get(urgent)).state is State.STARTING


async def test_nothing_younger_passes_one_that_waited_long_and_that_another_holds(
    tmp_path: Path, migrated_database: Path
) -> None:
    shutil.copyfile(migrated_database, tmp_path / "simclr.db")
    plane = ControlPlane(database=tmp_path / "simclr.db", home=tmp_path)
    try:
        first, second = plane.start_dispatcher("first"), plane.start_dispatcher("second")
        plane.cluster.work_s = 10_000
        await plane.submit(spec=needs(2))
        await first.step()
        big = await held(plane, "first")
        for _ in range(int(PATIENCE_S / 5)):
            plane.clock.advance(5)
            await first.step()
        small = await plane.submit(spec=needs(2))
        await second.step()
        assert (await plane.get(small)).claim == "second"
        assert (await plane.get(small)).state is State.QUEUED
        assert (await plane.get(big)).state is State.QUEUED
    finally:
        await plane.store.close()


async def test_one_whose_holder_alone_cannot_reach_ray_keeps_nobody_waiting(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = plane.start_dispatcher("first"), plane.start_dispatcher("second")
    older = await held(plane, "first")
    plane.clock.advance(1)
    younger = await held(plane, "second")

    async def cut_off() -> None:
        raise ClusterUnavailable("Ray does not answer")

    for _ in range(int(CUT_OFF_S) + 2):
        with monkeypatch.context() as patch:
            patch.setattr(plane.cluster, "capacity", cut_off)
            await first.step()
        assert (await plane.get(younger)).state is State.QUEUED
        await second.step()
        plane.clock.advance(1)
    assert (await plane.get(older)).state is State.QUEUED
    assert (await plane.get(younger)).state is State.STARTING


async def test_after_an_outage_the_first_to_reach_ray_leaves_room_for_what_others_hold(plane: ControlPlane) -> None:
    first, second = plane.start_dispatcher("first"), plane.start_dispatcher("second")
    older = await held(plane, "first")
    plane.clock.advance(1)
    younger = await held(plane, "second")
    plane.cluster.is_down = True
    for _ in range(int(2 * CUT_OFF_S)):
        await asyncio.gather(first.step(), second.step())
        plane.clock.advance(1)
    plane.cluster.is_down = False
    await second.step()
    assert (await plane.get(younger)).state is State.QUEUED
    await first.step()
    assert (await plane.get(older)).state is State.STARTING


async def test_one_whose_holder_died_is_taken_over_when_its_claim_ends(plane: ControlPlane) -> None:
    second = plane.start_dispatcher("second")
    older = await held(plane, "dead")
    plane.clock.advance(1)
    younger = await held(plane, "second")
    await second.step()
    assert (await plane.get(younger)).state is State.QUEUED
    plane.clock.advance(LEASE_S)
    await second.step()
    assert (await plane.get(older)).state is State.STARTING
