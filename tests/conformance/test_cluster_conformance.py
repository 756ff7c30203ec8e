"""Every sentence of the `Cluster` protocol, on the cluster in memory and on a real Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

import pytest

from service.cluster import RayJobs
from service.ports import Cluster, JobStatus
from tests.fakes.clock import Clock
from tests.fakes.cluster import FakeCluster

pytestmark = pytest.mark.anyio

DEADLINE_S = 90.0  # a real job takes seconds to start on a busy machine


@dataclass
class Rig:
    cluster: Cluster
    let_time_pass: Callable[[], Awaitable[None]]

    async def until(self, submission_id: str, *statuses: JobStatus) -> JobStatus:
        """Poll until the job is in one of `statuses`."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            status = (await self.cluster.observe(submission_id)).status
            if status in statuses:
                return status
            await self.let_time_pass()
        raise AssertionError(f"{submission_id} stays {status}")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["memory", pytest.param("ray", marks=pytest.mark.ray)])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    if request.param == "memory":
        clock = Clock()

        async def advance() -> None:
            clock.advance(0.5)

        yield Rig(FakeCluster(clock=clock), advance)
    else:
        cluster = RayJobs(request.getfixturevalue("ray_dashboard"))
        yield Rig(cluster, lambda: asyncio.sleep(0.2))
        await cluster.close()


def new_id() -> str:
    return f"exp_{uuid4().hex}-a1"


async def submit(rig: Rig, entrypoint: str) -> str:
    name = new_id()
    await rig.cluster.submit(name, entrypoint=entrypoint, env={"A": "1"}, metadata={"attempt": "1"})
    return name


async def test_it_answers(rig: Rig) -> None:
    await rig.cluster.ping()


async def test_a_job_that_it_never_heard_of_is_missing(rig: Rig) -> None:
    assert (await rig.cluster.observe(new_id())).status is JobStatus.MISSING


async def test_a_job_that_was_submitted_is_known_at_once(rig: Rig) -> None:
    name = await submit(rig, "true")
    assert (await rig.cluster.observe(name)).status is not JobStatus.MISSING


async def test_a_job_that_ends_well_succeeds_and_its_words_are_kept(rig: Rig) -> None:
    name = await submit(rig, "echo hello")
    assert await rig.until(name, JobStatus.SUCCEEDED, JobStatus.FAILED) is JobStatus.SUCCEEDED
    assert "hello" in await rig.cluster.logs(name)


async def test_a_job_that_ends_badly_fails(rig: Rig) -> None:
    name = await submit(rig, "false")
    assert await rig.until(name, JobStatus.SUCCEEDED, JobStatus.FAILED) is JobStatus.FAILED


async def test_submitting_an_id_again_is_success_and_starts_nothing(rig: Rig) -> None:
    name = await submit(rig, "true")
    await rig.until(name, JobStatus.SUCCEEDED)
    await rig.cluster.submit(name, entrypoint="false", env={}, metadata={})
    assert (await rig.cluster.observe(name)).status is JobStatus.SUCCEEDED


async def test_submits_at_once_under_one_id_make_one_job(rig: Rig) -> None:
    name = new_id()
    submits = (rig.cluster.submit(name, entrypoint="true", env={}, metadata={}) for _ in range(5))
    await asyncio.gather(*submits)
    assert await rig.until(name, JobStatus.SUCCEEDED, JobStatus.FAILED) is JobStatus.SUCCEEDED


async def test_a_job_that_is_stopped_ends_as_stopped(rig: Rig) -> None:
    name = await submit(rig, "sleep 600")
    await rig.until(name, JobStatus.RUNNING)
    await rig.cluster.stop(name)
    await rig.cluster.stop(name)
    await rig.until(name, JobStatus.STOPPED)


async def test_stopping_what_has_ended_or_never_was_is_no_error(rig: Rig) -> None:
    name = await submit(rig, "true")
    await rig.until(name, JobStatus.SUCCEEDED)
    await rig.cluster.stop(name)
    await rig.cluster.stop(new_id())
    assert (await rig.cluster.observe(name)).status is JobStatus.SUCCEEDED


async def test_a_job_that_it_never_heard_of_has_no_log(rig: Rig) -> None:
    assert await rig.cluster.logs(new_id()) == ""


async def test_what_is_free_is_a_part_of_what_there_is(rig: Rig) -> None:
    capacity = await rig.cluster.capacity()
    assert capacity.nodes >= 1
    assert capacity.cpus_total > 0
    assert 0 <= capacity.cpus_free <= capacity.cpus_total
    assert 0 <= capacity.gpus_free <= capacity.gpus_total
