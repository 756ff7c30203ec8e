"""Silence of a part, and what goes wrong with one experiment, keep the dispatcher from no other experiment."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

from service.errors import ClusterUnavailable
from service.experiment import State, submission_id
from service.ports import JobObservation
from tests.fakes.control_plane import ControlPlane
from trainer.context import experiment_key

pytestmark = pytest.mark.anyio

CALLS = ("ping", "submit", "observe", "stop", "logs", "capacity")


def fail(plane: ControlPlane, *calls: str, after_s: float, is_refusal: bool = False) -> None:
    """From now on let calls of the cluster fail after a time."""

    async def failing(*_: object, **__: object) -> None:
        plane.clock.advance(after_s)
        raise ClusterUnavailable("Ray does not answer", is_refusal=is_refusal)

    for call in calls:
        setattr(plane.cluster, call, failing)


def complete(plane: ControlPlane, experiment_id: str) -> None:
    """Leave the completion marker of a job that succeeded."""
    marker = {"state": "succeeded", "attempt": 1, "best": None, "reason": None}
    plane.blobs.write(experiment_key(experiment_id, "complete.json"), json.dumps(marker).encode())


def stop_wish(plane: ControlPlane, experiment_id: str) -> Any:
    return json.loads(plane.blobs.read(experiment_key(experiment_id, "stop.json")))


async def two_running(plane: ControlPlane) -> tuple[str, str]:
    """Return an older and a younger experiment that run and will not end by themselves."""
    plane.cluster.work_s = 10_000
    older = await plane.submit()
    plane.clock.advance(1)
    younger = await plane.submit()
    await plane.step_until(older, State.RUNNING)
    await plane.step_until(younger, State.RUNNING)
    return older, younger


# --- silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_queued", [0, 1])
async def test_a_silent_cluster_keeps_nobody_from_being_settled_or_asked_to_stop(
    plane: ControlPlane, num_queued: int
) -> None:
    older, younger = await two_running(plane)
    for _ in range(num_queued):
        await plane.submit()
    fail(plane, *CALLS, after_s=8)
    await plane.ask(younger, State.CANCELLING)
    for _ in range(3):
        await plane.step(advance_s=0.5)
    assert stop_wish(plane, younger) == {"attempt": 1, "kind": "cancel"}
    assert await plane.condition(younger, "cluster_unavailable") == "true"
    complete(plane, older)
    complete(plane, younger)
    for _ in range(3):
        await plane.step(advance_s=0.5)
    assert (await plane.get(older)).state is State.SUCCEEDED
    assert (await plane.get(younger)).state is State.SUCCEEDED


async def test_a_silent_cluster_takes_one_wait_a_step_from_those_that_run(plane: ControlPlane) -> None:
    await two_running(plane)
    fail(plane, *CALLS, after_s=8)
    before = plane.clock.now
    await plane.step()
    assert (plane.clock.now - before).total_seconds() == 8


async def test_silence_about_the_nodes_says_nothing_of_the_jobs(plane: ControlPlane) -> None:
    older, _ = await two_running(plane)
    waiting = await plane.submit()
    fail(plane, "capacity", after_s=8)
    plane.cluster.kill(submission_id(older, 1))
    for _ in range(3):
        await plane.step(advance_s=0.5)
    assert (await plane.get(older)).attempt == 2
    assert await plane.condition(waiting, "cluster_unavailable") == "true"


async def test_one_that_cannot_be_submitted_keeps_no_other_from_being_looked_at(plane: ControlPlane) -> None:
    older, younger = await two_running(plane)
    fail(plane, "submit", after_s=10, is_refusal=True)  # the head's job agent is dead
    urgent = await plane.submit(priority=1)
    plane.cluster.kill(submission_id(older, 1))
    await plane.ask(younger, State.CANCELLING)
    for _ in range(4):
        await plane.step(advance_s=0.5)
    assert (await plane.get(urgent)).state is State.STARTING
    assert await plane.condition(urgent, "cluster_unavailable") == "true"
    assert (await plane.get(older)).attempt == 2
    assert (await plane.get(younger)).state is State.CANCELLED


async def test_a_step_that_takes_long_looks_at_nothing_that_another_dispatcher_took_over(plane: ControlPlane) -> None:
    older, younger = await two_running(plane)
    first, second = plane.dispatcher, plane.start_dispatcher("second")
    observe = plane.cluster.observe

    async def hang(submission_id: str) -> JobObservation:
        plane.cluster.observe = observe  # type: ignore[method-assign] # the next calls are the real ones
        plane.clock.advance(20)  # longer than the lease
        await plane.ask(younger, State.CANCELLING)
        await second.step()
        raise ClusterUnavailable("Ray does not answer")

    plane.cluster.observe = hang  # type: ignore[method-assign] # once
    report = await first.step()
    assert {(await plane.get(each)).claim for each in (older, younger)} == {"second"}
    assert report.outages == ["cluster_unavailable"]
    assert await plane.condition(younger, "cluster_unavailable") is None


# --- what goes wrong with one ---------------------------------------------------------------------


@pytest.mark.parametrize("takes_s", [0, 5])
async def test_a_blob_that_cannot_be_read_is_its_experiments_trouble_alone(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, takes_s: float
) -> None:
    older, younger = await two_running(plane)
    plane.cluster.work_s = 30
    read = plane.blobs.read

    def broken(key: str) -> bytes:
        if key == experiment_key(older, "trials.json"):
            plane.clock.advance(takes_s)
            raise OSError(errno.EIO, "Input/output error")
        return bytes(read(key))

    monkeypatch.setattr(plane.blobs, "read", broken)
    await plane.step_until(younger, State.SUCCEEDED)
    assert await plane.condition(older, "storage_unavailable") == "true"
    if not takes_s:  # one that takes long is an outage, until the next step shows that the others are well
        assert await plane.condition(younger, "storage_unavailable") is None
    monkeypatch.undo()
    await plane.step_until(older, State.SUCCEEDED)
    assert await plane.condition(older, "storage_unavailable") == "false"


async def test_a_refusal_of_one_job_is_no_outage_for_the_others(plane: ControlPlane) -> None:
    older, younger = await two_running(plane)
    observe = plane.cluster.observe

    refused = submission_id(older, 1)

    async def refuse(submission_id: str) -> JobObservation:
        if submission_id == refused:
            raise ClusterUnavailable("Ray answers 500: no", is_refusal=True)
        return await observe(submission_id)

    plane.cluster.observe = refuse  # type: ignore[method-assign] # of one job
    plane.cluster.kill(submission_id(younger, 1))
    report = await plane.step(advance_s=1)
    assert (await plane.get(younger)).state is State.RECOVERING
    assert await plane.condition(older, "cluster_unavailable") == "true"
    assert await plane.condition(younger, "cluster_unavailable") is None
    assert report.outages == ["cluster_unavailable"]
