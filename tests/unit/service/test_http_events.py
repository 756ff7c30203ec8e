"""The event stream: in order, resumable, alive, and over when the experiment is."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import Request
from structlog.testing import capture_logs

from service.edge.auth import hash_secret
from service.edge.event_feed import EventFeed, News
from service.edge.problems import Problem
from service.errors import ExperimentNotFound, StoreUnavailable
from service.experiment import State
from service.ports import Event, ExperimentRecord
from service.routes import events
from service.views import event_stream as stream_module
from tests.harness.http_app import HttpApp, assert_problem, events_of

pytestmark = pytest.mark.anyio


async def finished(service: HttpApp) -> str:
    created = await service.submit()
    await service.run(created["id"])
    await service.store.append_event(created["id"], "trial", {"id": "t0000", "state": "running"})
    await service.succeed(created["id"])
    return str(created["id"])


async def test_a_finished_experiment_is_told_in_full_and_the_stream_ends(service: HttpApp) -> None:
    experiment_id = await finished(service)

    answer = await service.http.get(f"/experiments/{experiment_id}/events")

    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event for event in events_of(answer.text) if event[0] in ("state", "trial")]
    assert [(kind, data["state"]) for kind, _, data in events] == [
        ("state", "queued"),
        ("state", "starting"),
        ("state", "running"),
        ("trial", "running"),
        ("state", "succeeded"),
    ]
    ids = [int(id_ or 0) for _, id_, _ in events]
    assert ids == sorted(set(ids))


async def test_a_stream_resumes_behind_the_last_event_without_loss_or_repeats(service: HttpApp) -> None:
    experiment_id = await finished(service)
    url = f"/experiments/{experiment_id}/events"
    whole = [id_ for _, id_, _ in events_of((await service.http.get(url)).text) if id_]

    for place, last in enumerate(whole):
        rest = await service.http.get(url, headers={"Last-Event-ID": last})
        assert [id_ for _, id_, _ in events_of(rest.text) if id_] == whole[place + 1 :]


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30, "²"])
async def test_a_malformed_last_event_id_is_refused(service: HttpApp, last: str) -> None:
    created = await service.submit()
    headers = [(b"Last-Event-ID", last.encode())]

    assert_problem(await service.http.get(f"/experiments/{created['id']}/events", headers=headers), 400)


async def test_points_and_lines_come_before_the_state_that_ends_the_stream(service: HttpApp) -> None:
    created = await service.submit()
    following = asyncio.create_task(service.http.get(f"/experiments/{created['id']}/events"))
    await service.until_watched()
    await service.run(created["id"], num_steps=3)
    service.job(created["id"]).logs = "epoch 1\nepoch 2\n"
    await service.succeed(created["id"])

    events = events_of((await asyncio.wait_for(following, 60)).text)

    points = [data for kind, _, data in events if kind == "metric"]
    assert [(point["trial"], point["step"], point["metrics"]["loss"]) for point in points] == [
        ("t0000", step, 6.0 / step) for step in (1, 2, 3)
    ]
    assert [data["lines"] for kind, _, data in events if kind == "log"] == [["epoch 1", "epoch 2"]]
    assert events[-1][0] == "state"


async def test_numbers_that_cannot_be_read_keep_nobody_from_the_states_or_from_later_numbers(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await service.submit()
    following = asyncio.create_task(service.http.get(f"/experiments/{created['id']}/events"))
    await service.until_watched()
    strange = asyncio.Event()

    async def answers(_: str, __: Sequence[str]) -> Any:
        strange.set()
        raise KeyError("a field that MLflow always had")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(service.tracking, "metrics", answers)
        await service.run(created["id"], num_steps=3)
        await asyncio.wait_for(strange.wait(), 60)
        await asyncio.sleep(0.05)
    await service.succeed(created["id"])

    events = events_of((await asyncio.wait_for(following, 60)).text)

    assert [data["step"] for kind, _, data in events if kind == "metric"] == [1, 2, 3]
    assert events[-1][2]["state"] == "succeeded"
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["numbers_not_read"]


async def test_all_streams_of_an_experiment_are_told_what_was_asked_for_once(service: HttpApp) -> None:
    created = await service.submit()
    url = f"/experiments/{created['id']}/events"
    following = [asyncio.create_task(service.http.get(url)) for _ in range(20)]
    while service.app.state.services.feed.num_streams < len(following):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    await service.run(created["id"], num_steps=3)
    num_calls_before = service.tracking.num_calls
    await service.succeed(created["id"])

    answers = await asyncio.wait_for(asyncio.gather(*following), 60)

    told = [[data["step"] for kind, _, data in events_of(answer.text) if kind == "metric"] for answer in answers]
    assert told == [[1, 2, 3]] * len(following)
    assert service.tracking.num_calls - num_calls_before < len(following)


async def test_a_quiet_stream_shows_that_it_lives(service: HttpApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.0)
    created = await service.submit()
    record = await service.store.get(created["id"])
    state = service.app.state
    stream = stream_module.event_stream(record, state.services, state.live_numbers, after=0)

    async for text in stream:
        for kind, id_, data in events_of(text.decode()):
            if kind == "heartbeat":
                assert (id_, data) == (None, {"state": "queued"})
                state.services.feed.close()  # or it would go on
    assert state.services.feed.num_streams == 0


async def test_streams_that_were_opened_together_have_their_heartbeats_apart_and_in_time(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.4)
    created = await service.submit()
    record, state = await service.store.get(created["id"]), service.app.state
    opened_s, beats_s, uniform = time.monotonic(), [], random.uniform
    drawn: list[float] = []

    def noted(low: float, high: float) -> float:
        drawn.append(uniform(low, high))
        return drawn[-1]

    monkeypatch.setattr(random, "uniform", noted)

    async def listen() -> None:
        stream = stream_module.event_stream(record, state.services, state.live_numbers, after=0)
        async for text in stream:
            if b"event: heartbeat" in text:
                beats_s.append(time.monotonic() - opened_s)
                break
        await stream.aclose()

    await asyncio.gather(*(listen() for _ in range(40)))

    assert min(beats_s) > 0.19
    assert max(beats_s) < 0.4 + 10.0  # a busy machine is late, not early
    assert len(set(drawn)) == 40


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_the_stream_of_a_token_that_is_no_longer_good_ends_with_a_heartbeat(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.02)
    created = await service.submit(headers=await service.token())
    record, state = await service.store.get(created["id"]), service.app.state
    times: dict[str, Any] = {"expires_at": datetime.now(UTC) + timedelta(seconds=0.5)} if end == "expired" else {}
    header = await service.token(**times)
    secret = header["Authorization"].removeprefix("Bearer ")
    request = Request({"type": "http", "headers": [(b"authorization", header["Authorization"].encode())]})
    answer = await events.stream(request, record, state.services, state.live_numbers, after=0)
    num_beats = 0
    async with asyncio.timeout(60):
        async for text in answer.body_iterator:
            assert isinstance(text, bytes)
            num_beats += b"event: heartbeat" in text
            if num_beats == 2 and end == "revoked":
                await service.store.revoke_token(f"tok_{hash_secret(secret)[:8]}")
    assert num_beats >= 2


async def test_a_stream_goes_on_while_the_database_cannot_say_who_listens(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.02)
    created = await service.submit()
    record, state = await service.store.get(created["id"]), service.app.state

    async def away(_: str) -> None:
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(service.store, "find_token", away)
    request = Request({"type": "http", "headers": [(b"authorization", b"Bearer simclr_any")]})
    answer = await events.stream(request, record, state.services, state.live_numbers, after=0)
    num_beats = 0
    async for text in answer.body_iterator:
        assert isinstance(text, bytes)
        num_beats += b"event: heartbeat" in text
        if num_beats == 3:
            break
    assert num_beats == 3


async def test_an_experiment_that_has_nothing_new_is_asked_less_and_less_often(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.views.live_numbers.MIN_INTERVAL_S", 0.02)
    created = await service.submit()
    record, live_numbers = await service.store.get(created["id"]), service.app.state.live_numbers
    get, num_asked = service.store.get, 0

    async def counted(experiment_id: str) -> ExperimentRecord:
        nonlocal num_asked
        num_asked += 1
        return await get(experiment_id)

    monkeypatch.setattr(service.store, "get", counted)
    async with live_numbers.follow(record, News()):
        await asyncio.sleep(0.6)

    assert 1 <= num_asked <= 6  # at 0.02 s it would be thirty


async def test_the_stream_of_a_deleted_experiment_ends(service: HttpApp) -> None:
    created = await service.submit()
    following = asyncio.create_task(service.http.get(f"/experiments/{created['id']}/events"))
    await service.until_watched()
    await service.move(created["id"], State.PAUSED)
    assert (await service.http.delete(f"/experiments/{created['id']}")).status_code == 204

    assert (await asyncio.wait_for(following, 60)).status_code == 200


async def test_a_stream_ends_where_another_service_deletes_its_experiment(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.views.live_numbers.MIN_INTERVAL_S", 0.01)
    created = await service.submit()
    following = asyncio.create_task(service.http.get(f"/experiments/{created['id']}/events"))
    await service.until_watched()
    await service.move(created["id"], State.PAUSED)
    await service.store.delete(created["id"])

    assert (await asyncio.wait_for(following, 60)).status_code == 200


async def test_those_who_read_from_one_place_share_a_reading_until_the_next_ring(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_, feed, read = (await service.submit())["id"], EventFeed(service.store), service.store.events
    num_readings = 0

    async def events(**asked: Any) -> Sequence[Event]:
        nonlocal num_readings
        num_readings += 1
        return await read(**asked)

    monkeypatch.setattr(service.store, "events", events)
    early = [asyncio.create_task(feed.read(id_, after=0)) for _ in range(3)]
    await asyncio.sleep(0)
    feed.ring(id_)
    late = [asyncio.create_task(feed.read(id_, after=after)) for after in (0, 0, 1)]

    answers = await asyncio.gather(*early, *late)

    assert num_readings == 3
    assert [len(told) for _, told in answers] == [1, 1, 1, 1, 1, 0]
    assert len({id(told[0].text) for _, told in answers[:3]}) == 1  # made into bytes once
    with pytest.raises(ExperimentNotFound):
        await feed.read("nobody", after=0)


async def test_the_feed_wakes_those_who_watch_an_experiment_with_news(service: HttpApp) -> None:
    one, other = (await service.submit())["id"], (await service.submit())["id"]
    feed, stop = EventFeed(service.store, poll_interval_s=0.01), asyncio.Event()
    running = asyncio.create_task(feed.run(stop))
    async with feed.subscribe(one) as news_of_one, feed.subscribe(other) as news_of_other:
        assert await news_of_one.wait(60)
        assert await news_of_other.wait(60)
        assert news_of_one.take()
        assert news_of_other.take()
        await service.move(one, State.PAUSED)
        assert await news_of_one.wait(60)
        assert news_of_one.take()
        assert not news_of_other.take()
    stop.set()
    await asyncio.wait_for(running, 60)


async def test_streams_past_the_limit_are_asked_to_come_back(service: HttpApp) -> None:
    feed = EventFeed(service.store, max_streams=1)
    feed.ensure_room()
    async with feed.subscribe("exp_a"):
        with pytest.raises(Problem) as caught:
            feed.ensure_room()

    assert caught.value.status == 429
    feed.ensure_room()


async def test_a_stream_past_the_limit_is_refused_and_everything_else_is_served(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, url = service.app.state.services.feed, f"/experiments/{(await service.submit())['id']}"
    monkeypatch.setattr(feed, "_max_streams", 1)
    following = asyncio.create_task(service.http.get(f"{url}/events"))
    await service.until_watched()

    assert_problem(await service.http.get(f"{url}/events"), 429, "too_many_streams")

    assert (await service.http.get(url)).status_code == 200
    await service.submit()
    feed.close()
    assert (await asyncio.wait_for(following, 60)).status_code == 200


async def test_streams_end_with_the_service(service: HttpApp) -> None:
    created = await service.submit()
    following = asyncio.create_task(service.http.get(f"/experiments/{created['id']}/events"))
    await service.until_watched()

    service.app.state.services.feed.close()

    assert (await asyncio.wait_for(following, 60)).status_code == 200
