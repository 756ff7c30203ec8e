"""Time in which no dispatcher looked after an experiment: every service was off, or the machine slept.

Its claim says until when one did. The absence is told before the experiment is claimed anew, so
that whoever reads its story later leaves that time out (`story`): in an embedded stack nothing ran.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from service.dispatch.listing import all_in
from service.dispatch.story import ABSENCE, COUNTED
from service.errors import ExperimentNotFound
from service.ports import ExperimentRecord, Store

__all__ = ["LEAST_S", "tell_absences"]

LEAST_S: Final = 60.0  # a restart or an upgrade is shorter


async def tell_absences(store: Store, *, now: datetime) -> None:
    """Tell each experiment on the cluster that nobody looked after, of that time. Raises StoreUnavailable.

    Told again (by another dispatcher, or after a crash) it is known by its beginning.
    """
    for record in await all_in(store, COUNTED):
        if record.claimed_until is not None and now - record.claimed_until > timedelta(seconds=LEAST_S):
            await _tell(store, record, since=record.claimed_until, now=now)


async def _tell(store: Store, record: ExperimentRecord, *, since: datetime, now: datetime) -> None:
    message = (
        f"no service looked after it from {since:%Y-%m-%d %H:%M} to {now:%Y-%m-%d %H:%M} UTC: "
        "this does not count towards limits.wall_time_s"
    )
    condition = {"type": ABSENCE, "status": "false", "message": message, "at": now.isoformat()}
    absence = {"since": since.isoformat(), "seconds": (now - since).total_seconds()}
    with suppress(ExperimentNotFound):  # deleted meanwhile
        await store.set_condition(record.id, condition | absence)
