"""When the points of a metric are first seen, beside the times at which training recorded them."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Final

from service.client import Client

__all__ = ["StreamSightings", "sightings"]

LOOK_EVERY_S: Final = 0.25
FIRST_POINT_TIMEOUT_S: Final = 120.0


def sightings(client: Client, experiment_id: str, *, for_s: float) -> dict[int, datetime]:
    """Return when each step's loss was first among the metrics, looked at until `for_s` behind the first sight."""
    seen: dict[int, datetime] = {}
    until_s = time.monotonic() + FIRST_POINT_TIMEOUT_S
    while time.monotonic() < until_s:
        steps = recorded_at(client, experiment_id).keys() - seen.keys()
        if steps and not seen:
            until_s = time.monotonic() + for_s
        seen |= dict.fromkeys(steps, datetime.now(UTC))
        time.sleep(LOOK_EVERY_S)
    return seen


def recorded_at(client: Client, experiment_id: str) -> dict[int, datetime]:
    """Return when each step's loss was recorded, by the point's own time."""
    points = client.metrics(experiment_id, keys=["loss"])["series"].get("loss", [])
    return {point["step"]: datetime.fromisoformat(point["at"]) for point in points}


class StreamSightings:
    """Follows the event stream on a thread of its own until the experiment has ended."""

    def __init__(self, url: str, experiment_id: str) -> None:
        self._seen: dict[int, datetime] = {}
        self._thread = threading.Thread(target=self._follow, args=(url, experiment_id), daemon=True)
        self._thread.start()

    def _follow(self, url: str, experiment_id: str) -> None:
        with Client(url) as client:
            for event in client.watch(experiment_id):
                if event.type == "metric" and "loss" in event.data["metrics"]:
                    self._seen.setdefault(event.data["step"], datetime.now(UTC))

    def seen(self) -> dict[int, datetime]:
        """Return when each step's loss was told, once the stream has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive(), "the stream did not end"
        return self._seen
