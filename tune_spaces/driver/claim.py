"""What a sweep's trials hold, told to those who place elastic runs beside it.

Ray Train gives a team of a range of workers what none of its own runs has claimed. What Tune
reserves it does not see: it would wait for workers on CPUs that a sweep never gives back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import ray
from ray.exceptions import RayError

__all__ = ["claimed"]

RENEW_EVERY_S: Final = 5.0
EXPIRE_AFTER_S: Final = 30.0  # what a driver that was killed had is free again


@contextmanager
def claimed(claimant: str, bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Claim resources, a bundle for each trial at once, while the block runs."""
    is_over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(claimant, bundles, is_over), name="claim", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        is_over.set()
        renewing.join()


def _renew(claimant: str, bundles: Sequence[Mapping[str, float]], is_over: threading.Event) -> None:
    from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority

    while True:
        coordinator = _coordinator()
        if coordinator is not None:
            coordinator.request_resources.remote(
                requester_id=claimant,
                resources=[dict(bundle) for bundle in bundles],
                expire_after_s=EXPIRE_AFTER_S,
                # What is held goes before what Ray Train asks for at HIGH, though that was asked for first.
                priority=SimpleNamespace(value=ResourceRequestPriority.HIGH.value + 1),
            )
        if is_over.wait(RENEW_EVERY_S):
            break
    coordinator = _coordinator()
    if coordinator is not None:
        coordinator.cancel_request.remote(claimant)


def _coordinator() -> Any | None:
    """Return who keeps the claims; None before the first run of Ray Train, when nobody asks, and out of reach."""
    try:
        return ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    except (ValueError, RayError):
        return None
