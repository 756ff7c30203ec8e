"""Time in which no dispatcher looks after an experiment is told, once, and counts for no limit."""

from __future__ import annotations

import pytest

from service.dispatch.story import ABSENCE
from service.experiment import State
from tests.fakes.control_plane import ControlPlane

pytestmark = pytest.mark.anyio

NIGHT_S = 14 * 3600.0


async def test_a_night_off_costs_an_experiment_none_of_its_wall_time(plane: ControlPlane) -> None:
    experiment_id = await plane.submit(wall_time_s=3600)
    await plane.step_until(experiment_id, State.RUNNING)
    plane.cluster.lose_head()  # Ray was ended with all the rest
    plane.clock.advance(NIGHT_S)
    plane.start_dispatcher()
    await plane.step(advance_s=1)
    record = await plane.get(experiment_id)
    assert record.state is State.RECOVERING
    assert record.reason is not None
    assert record.reason["code"] == "job_lost"
    plane.start_dispatcher()  # another memory tells the same story
    await plane.step_until(experiment_id, State.SUCCEEDED)
    assert await plane.condition(experiment_id, ABSENCE) == "false"


async def test_a_pause_that_was_asked_for_before_a_night_off_leaves_the_wall_time_too(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("deaf", wall_time_s=3600)
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.ask(experiment_id, State.PAUSING)
    await plane.step()
    plane.cluster.lose_head()
    plane.clock.advance(NIGHT_S)
    plane.start_dispatcher()
    await plane.step_until(experiment_id, State.PAUSED)
    await plane.ask(experiment_id, State.QUEUED)
    await plane.step_until(experiment_id, State.SUCCEEDED)


async def test_a_machine_that_slept_costs_no_wall_time_and_one_that_was_awake_does(plane: ControlPlane) -> None:
    plane.cluster.work_s = 10 * NIGHT_S
    experiment_id = await plane.submit(wall_time_s=600)
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.step(advance_s=NIGHT_S)  # the same process goes on, and so does its job
    assert (await plane.get(experiment_id)).state is State.RUNNING
    began_at = plane.clock.now
    record = await plane.step_until(experiment_id, State.FAILED, advance_s=10)
    assert record.reason is not None
    assert record.reason["code"] == "wall_time_exceeded"
    assert 550 < (plane.clock.now - began_at).total_seconds() < 650


async def test_a_night_is_counted_off_once_whoever_and_however_many_tell_it(plane: ControlPlane) -> None:
    plane.cluster.work_s = 10 * NIGHT_S
    experiment_id = await plane.submit(wall_time_s=600)
    await plane.step_until(experiment_id, State.RUNNING)
    plane.clock.advance(NIGHT_S)
    first, second = plane.start_dispatcher(), plane.start_dispatcher()
    claim_due = plane.store.claim_due

    async def claim_later(*args: object, **kwargs: object) -> object:
        plane.store.claim_due = claim_due  # type: ignore[method-assign] # the next calls are the real ones
        plane.clock.advance(1)
        await second.step()  # at the same moment: it tells of a second more
        return await claim_due(*args, **kwargs)  # type: ignore[arg-type] # passed on as they came

    plane.store.claim_due = claim_later  # type: ignore[method-assign, assignment] # once
    await first.step()
    assert len(await plane.events(experiment_id, "condition")) == 2
    began_at = plane.clock.now
    await plane.step_until(experiment_id, State.FAILED, advance_s=10)
    assert 550 < (plane.clock.now - began_at).total_seconds() < 650


async def test_a_machine_that_falls_asleep_in_the_middle_of_a_look_costs_no_wall_time(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.cluster.work_s = 10 * NIGHT_S
    experiment_id = await plane.submit(wall_time_s=3600)
    await plane.step_until(experiment_id, State.RUNNING)
    read, nights = plane.blobs.read, [NIGHT_S]

    def fall_asleep(key: str) -> bytes:
        if key.endswith("trials.json"):
            plane.clock.advance(nights.pop() if nights else 0)
        return bytes(read(key))

    monkeypatch.setattr(plane.blobs, "read", fall_asleep)
    for _ in range(5):
        await plane.step(advance_s=1)
    assert not nights
    assert (await plane.get(experiment_id)).state is State.RUNNING
    assert await plane.condition(experiment_id, ABSENCE) == "false"


async def test_a_restart_is_no_absence(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.cluster.work_s = 1000
    plane.clock.advance(40)
    plane.start_dispatcher()
    await plane.step()
    assert await plane.events(experiment_id, "condition") == []
