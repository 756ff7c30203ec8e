"""The cluster's capacity as requests see it: a moment old, and waited for only where none is known."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from service.ports import Capacity
from service.recent_capacity import FRESH_S, MAX_AGE_S, RecentCapacity
from tests.fakes.clock import Clock
from tests.fakes.cluster import FakeCluster

SMALL = Capacity(cpus_total=2, cpus_free=2, gpus_total=0, gpus_free=0, nodes=1)
LARGE = Capacity(cpus_total=8, cpus_free=8, gpus_total=1, gpus_free=1, nodes=2)

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster() -> FakeCluster:
    cluster = FakeCluster(clock=Clock())
    cluster.total = SMALL
    return cluster


@pytest.fixture
def recent(cluster: FakeCluster) -> RecentCapacity:
    def clock_s() -> float:
        return cluster.clock.now.timestamp()

    return RecentCapacity(cluster, clock_s=clock_s)


async def test_many_who_ask_at_once_cost_the_cluster_one_question(cluster: FakeCluster, recent: RecentCapacity) -> None:
    before = cluster.num_calls
    assert len(await asyncio.gather(*(recent.get() for _ in range(20)))) == 20
    assert await recent.get() == await cluster.capacity()
    assert cluster.num_calls == before + 2  # one is this test's own


async def test_what_is_no_longer_fresh_is_asked_for_beside_the_request(
    cluster: FakeCluster, recent: RecentCapacity
) -> None:
    small = await recent.get()
    cluster.total = LARGE
    assert await recent.get() == small
    cluster.clock.advance(FRESH_S + 1)
    assert await recent.get() == small  # it waits for nobody
    await asyncio.sleep(0)
    assert (await recent.get() or SMALL).gpus_total == 1


async def test_an_answer_that_cannot_be_read_is_told_and_nothing_older_taken_for_it(
    cluster: FakeCluster, recent: RecentCapacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    await recent.get()

    async def strange() -> Capacity:
        raise KeyError("resources_total")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(cluster, "capacity", strange)
        cluster.clock.advance(MAX_AGE_S + 1)
        assert await recent.get() is None
    assert [line["event"] for line in logs] == ["capacity_not_read"]
    cluster.clock.advance(MAX_AGE_S + 1)
    assert (await recent.get() or LARGE).cpus_total == SMALL.cpus_total


async def test_what_is_old_is_waited_for(cluster: FakeCluster, recent: RecentCapacity) -> None:
    await recent.get()
    cluster.total = LARGE
    cluster.clock.advance(MAX_AGE_S + 1)
    assert (await recent.get() or SMALL).gpus_total == 1


async def test_a_silent_cluster_is_unknown_and_asked_again_later(cluster: FakeCluster, recent: RecentCapacity) -> None:
    cluster.is_down = True
    assert await recent.get() is None
    cluster.is_down = False
    assert await recent.get() is None
    cluster.clock.advance(MAX_AGE_S + 1)
    assert await recent.get() is not None
