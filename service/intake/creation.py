"""Storing a new experiment once, however often the request arrives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from service.edge.auth import Caller
from service.edge.deps import Services, idempotency_of
from service.edge.identifiers import new_experiment_id
from service.intake.environment import Environment
from service.intake.submission import Submission, check_submission
from service.ports import ExperimentRecord, NewExperiment

__all__ = ["create_experiment", "judge"]


async def judge(body: dict[str, Any], services: Services) -> Submission:
    """Return what `body` asks for. Raises Problem 422 with all that is wrong with it, and DatasetsUnavailable."""
    capacity = await services.capacity.get()  # None: what cannot be asked now is not judged
    environment = Environment(services.settings, services.datasets, capacity, services.speeds.images_per_second)
    return await services.datasets.ask(lambda: check_submission(body, environment))


async def create_experiment(
    asked: dict[str, Any],
    services: Services,
    *,
    caller: Caller,
    key: str | None,
    route: str,
    whole: Callable[[], Awaitable[dict[str, Any]]] | None = None,
    parent: dict[str, Any] | None = None,
) -> tuple[ExperimentRecord, bool]:
    """Return the experiment that a request asks for and whether an earlier request made it.

    Args:
        asked: The body that the client sent.
        services: Where to store it.
        caller: Who will own it, and whose keys count.
        key: The Idempotency-Key, if there is one.
        route: The route that the key belongs to.
        whole: Makes the body as `POST /experiments` has it, where that is not `asked` (clone, continue).
        parent: The link to the experiment it comes from.

    Raises:
        Problem: 422 with all that is wrong.
        IdempotencyConflict: If the key came with another body.
        StoreUnavailable: If the database does not answer.
        BlobsUnavailable: If `whole` needs storage and it does not answer.
    """
    idempotency = idempotency_of(key, caller=caller, route=route, body=asked)
    if idempotency is not None:
        # Before it is judged again: what was good once is answered once more, whatever changed since.
        earlier = await services.store.find_idempotent(idempotency)
        if earlier is not None:
            return earlier, True
    submission = await judge(await whole() if whole else asked, services)
    new = NewExperiment(
        id=new_experiment_id(),
        name=submission.name,
        kind=submission.kind,
        owner=caller.owner,
        labels=submission.labels,
        priority=submission.priority,
        request=submission.request,
        spec=submission.spec,
        spec_digest=submission.spec_digest,
        plan=submission.plan.model_dump(mode="json"),
        max_attempts=submission.max_attempts,
        wall_time_s=submission.wall_time_s,
        parent=parent,
    )
    record, is_replay = await services.store.create(new, idempotency)
    services.wake_dispatcher()
    return record, is_replay
