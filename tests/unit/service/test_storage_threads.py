"""A storage that never answers holds up those who ask it, for a while, and nobody else, nor the end of the process."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from service import dataset_facts
from service.dispatch.attempt_markers import AttemptMarkers
from service.edge import deps
from service.errors import BlobsUnavailable
from service.experiment import State
from service.intake import lifecycle_verbs
from service.outage import Outages
from service.storage_threads import NUM_THREADS, StorageThreads
from tests.harness.http_app import HttpApp, assert_problem, pretrain_body
from trainer.storage import BlobMissing

pytestmark = pytest.mark.anyio

ANSWER_S = 0.2


class SilentStorage:
    """Keeps every caller until it is let go."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.num_asked = 0

    def _wait(self, *_: object) -> Any:
        self.num_asked += 1
        self.answers.wait(60)
        raise BlobMissing("key")

    read = write = create = list = delete = _wait


@pytest.fixture
def silent() -> Iterator[SilentStorage]:
    storage = SilentStorage()
    yield storage
    storage.answers.set()


async def test_what_does_not_answer_in_time_is_unavailable_and_what_waits_behind_it_too(silent: SilentStorage) -> None:
    threads = StorageThreads()
    began_s = time.monotonic()

    calls = (threads.run(lambda: silent.read("key"), within_s=ANSWER_S) for _ in range(3 * NUM_THREADS))
    told = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(error) for error in told} == {BlobsUnavailable}
    assert time.monotonic() - began_s < 30  # far below the 60 s of the storage
    assert silent.num_asked == NUM_THREADS
    silent.answers.set()
    assert await threads.run(lambda: "answer") == "answer"
    assert silent.num_asked == NUM_THREADS  # nobody waits for the others any more


def started(others: set[threading.Thread]) -> int:
    """Return how many threads there are beside `others`, of which some may end meanwhile."""
    return sum(each.name == "storage" for each in set(threading.enumerate()) - others)


async def test_a_thread_is_started_when_none_is_idle_and_keeps_no_answer() -> None:
    class Answer:
        pass

    others = set(threading.enumerate())
    threads = StorageThreads(idle_s=60)
    answers = []
    for _ in range(NUM_THREADS):
        answers.append(weakref.ref(await threads.run(Answer)))
        await asyncio.sleep(0.02)
        assert started(others) == 1
    gc.collect()
    assert [answer() for answer in answers] == [None] * NUM_THREADS


async def test_an_idle_thread_ends_and_the_next_call_starts_another() -> None:
    others = set(threading.enumerate())
    threads = StorageThreads(idle_s=0.01)
    await threads.run(lambda: "answer")
    while started(others):  # noqa: ASYNC110 - it ends by itself
        await asyncio.sleep(0.02)
    assert await threads.run(lambda: "answer") == "answer"


async def test_what_is_deleted_leaves_no_blob_however_many_and_slow_and_nobody_waits_for_it(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle_verbs, "ANSWER_S", 0.01)
    delete, may_delete = service.blobs.delete, threading.Event()

    def slowly(key: str) -> None:
        may_delete.wait(60)
        delete(key)

    monkeypatch.setattr(service.blobs, "delete", slowly)
    ids = []
    for number in range(2 * NUM_THREADS):
        created = await service.submit(pretrain_body(seed=number))
        await service.run(created["id"])
        await service.succeed(created["id"])
        ids.append(created["id"])

    answers = await asyncio.gather(*(service.http.delete(f"/experiments/{each}") for each in ids))
    assert {answer.status_code for answer in answers} == {204}
    assert all(service.blobs.list(f"experiments/{each}/") for each in ids)
    may_delete.set()
    await service.app.state.deletions.close()
    assert not any(service.blobs.list(f"experiments/{each}/") for each in ids)


async def test_an_error_of_storage_is_an_outage_and_any_other_is_the_caller_s() -> None:
    threads = StorageThreads()

    def fails(error: Exception) -> None:
        raise error

    with pytest.raises(BlobsUnavailable, match="no room"):
        await threads.run(lambda: fails(OSError("no room")))
    with pytest.raises(BlobMissing):
        await threads.run(lambda: fails(BlobMissing("key")))


async def test_a_silent_storage_is_told_of_and_all_that_needs_none_goes_on(
    service: HttpApp, silent: SilentStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deps.Services.read_blob, "__kwdefaults__", {"within_s": ANSWER_S})
    created = await service.submit()
    await service.run(created["id"])
    for name in ("read", "list"):
        monkeypatch.setattr(service.blobs, name, getattr(silent, name))
    url = f"/experiments/{created['id']}"

    many = [asyncio.create_task(service.http.get(f"{url}/trials")) for _ in range(100)]
    await asyncio.sleep(ANSWER_S / 2)
    began_s = time.monotonic()
    await service.submit()
    assert (await service.http.post(f"{url}/clone", json={"overrides": {"seed": 1}})).status_code == 202
    assert time.monotonic() - began_s < 10

    for answer in await asyncio.gather(*many):
        assert_problem(answer, 503, "storage_unavailable")
    assert (await service.store.get(created["id"])).state is State.RUNNING


async def test_data_sets_that_are_silent_are_told_of_and_the_rest_goes_on(
    service: HttpApp, silent: SilentStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_facts, "ANSWER_S", ANSWER_S)
    created = await service.submit()
    for name in ("version", "all"):
        monkeypatch.setattr(service.app.state.services.datasets, name, silent.read)

    asked = [service.http.post("/experiments", json=pretrain_body()) for _ in range(50)]
    answers = await asyncio.gather(*asked, service.http.get("/datasets"), service.http.get("/datasets/shapes"))

    for answer in answers:
        assert_problem(answer, 503, "datasets_unavailable")
    assert (await service.http.get("/studies")).status_code == 200
    assert (await service.http.get(f"/experiments/{created['id']}")).status_code == 200


async def test_a_dispatcher_s_step_is_not_held_up_by_requests_that_wait_for_storage(silent: SilentStorage) -> None:
    requests, markers = StorageThreads(), AttemptMarkers(silent, Outages())
    waiting = [asyncio.create_task(requests.run(lambda: silent.read("key"))) for _ in range(NUM_THREADS)]
    while silent.num_asked < NUM_THREADS:  # noqa: ASYNC110 - counted in threads
        await asyncio.sleep(0.01)

    asking = asyncio.create_task(markers.read_trials("exp_0"))
    while silent.num_asked == NUM_THREADS:  # noqa: ASYNC110 - counted in threads
        await asyncio.sleep(0.01)

    silent.answers.set()
    assert await asking == []
    await asyncio.gather(*waiting, return_exceptions=True)
