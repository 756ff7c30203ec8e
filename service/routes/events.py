"""What happens to an experiment as it happens, and what it wrote: stream, log, timeline."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Depends, Header, Query, Request, Response

from service.edge.auth import authenticate, needs
from service.edge.deps import OwnedExperiment, Services, ServicesDep, api_router
from service.edge.problems import Problem, responses
from service.edge.server_sent import EVENT_STREAM, EventStream
from service.errors import ClusterUnavailable, StoreUnavailable
from service.experiment import submission_id
from service.ports import EVENTS_AT_ONCE, Event, ExperimentRecord, Role
from service.schemas import AttemptTimeline, Items, LogView
from service.views.event_stream import event_stream
from service.views.live_numbers import LiveNumbersFeed
from service.views.timeline import attempt_timelines
from trainer.context import experiment_key

__all__ = ["router"]

router = api_router("events")


async def _last_event_id(
    last_event_id: Annotated[
        str | None,
        Header(description="resume behind the event of this id", json_schema_extra={"pattern": "^[0-9]{0,19}$"}),
    ] = None,
) -> int:
    if not last_event_id:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > len(str(2**63)):
        raise Problem(400, "last_event_id_invalid", "Last-Event-ID is the id of an event, a number")
    return min(int(last_event_id), 2**63 - 1)


async def _room(services: ServicesDep) -> None:
    services.feed.ensure_room()


async def _live_numbers(request: Request) -> LiveNumbersFeed:
    feed: LiveNumbersFeed = request.app.state.live_numbers
    return feed


@router.get(
    "/experiments/{experiment_id}/events",
    operation_id="streamEvents",
    summary="Follow an experiment",
    response_class=Response,
    responses={**responses(404), 200: {"content": EVENT_STREAM}},
    dependencies=[Depends(_room)],
    openapi_extra=needs(Role.VIEWER),
)
async def stream(
    request: Request,
    record: OwnedExperiment,
    services: ServicesDep,
    live_numbers: Annotated[LiveNumbersFeed, Depends(_live_numbers)],
    after: Annotated[int, Depends(_last_event_id)],
) -> EventStream:
    """Stream state, trial, condition, metric, log and heartbeat events until the experiment has ended.

    A client that reads nothing for 30 s is dropped: the last event it finds is `dropped`, with
    the code `slow_client`, and it may resume with Last-Event-ID. The stream of a token that was
    revoked or has expired ends with the next heartbeat.
    """

    async def is_welcome() -> bool:
        try:
            await authenticate(request, store=services.store, settings=services.settings)
        except Problem:
            return False
        except StoreUnavailable:
            return True  # nobody can say: asked again
        return True

    return EventStream(event_stream(record, services, live_numbers, after=after, is_welcome=is_welcome))


@router.get(
    "/experiments/{experiment_id}/logs",
    operation_id="getLogs",
    summary="Read the end of the driver's log",
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def logs(
    record: OwnedExperiment,
    services: ServicesDep,
    tail: Annotated[int, Query(ge=1, le=100_000, description="so many lines")] = 200,
    attempt: Annotated[int | None, Query(ge=1, description="the newest when left out")] = None,
) -> LogView:
    """Return the last lines of an attempt's driver, from the cluster or, once it is gone, from storage."""
    chosen = attempt or record.attempt
    if chosen > record.attempt:
        raise Problem(404, "attempt_not_found", f"experiment {record.id} has {record.attempt} attempts")
    text = await _log_text(record, services, chosen) if chosen else ""
    return LogView(attempt=chosen, lines=text.splitlines()[-tail:])


async def _log_text(record: ExperimentRecord, services: Services, attempt: int) -> str:
    try:
        text = await services.cluster.logs(submission_id(record.id, attempt))
    except ClusterUnavailable:
        text = ""
    if text:
        return text
    stored = await services.read_blob(experiment_key(record.id, f"attempts/{attempt}/driver.log"))
    return (stored or b"").decode("utf-8", errors="replace")


@router.get(
    "/experiments/{experiment_id}/timeline",
    operation_id="getTimeline",
    summary="See when each part of each attempt began and how long it took",
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def timeline(record: OwnedExperiment, services: ServicesDep) -> Items[AttemptTimeline]:
    """Return one timeline per attempt: queue, start, first step, train, evaluate, export."""
    attempts = range(1, record.attempt + 1)
    keys = [experiment_key(record.id, f"attempts/{attempt}/timeline.json") for attempt in attempts]
    documents = await asyncio.gather(*(services.read_json(key) for key in keys))
    marks = {attempt: (document or {}).get("marks", ()) for attempt, document in zip(attempts, documents, strict=True)}
    return Items(items=attempt_timelines(await _all_events(record, services), marks))


async def _all_events(record: ExperimentRecord, services: Services) -> list[Event]:
    found: list[Event] = []
    while True:
        after = found[-1].sequence if found else 0
        page = await services.store.events(after=after, experiment_id=record.id, limit=EVENTS_AT_ONCE)
        found += page
        if len(page) < EVENTS_AT_ONCE:
            return found
