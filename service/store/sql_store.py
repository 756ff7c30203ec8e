"""`SqlStore`: each method of the `Store` protocol as one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, Self

from sqlalchemy import Connection

from service.experiment import State
from service.ports import (
    Event,
    ExperimentRecord,
    Idempotency,
    JsonObject,
    ListQuery,
    NewExperiment,
    Page,
    TokenRecord,
)
from service.store import events, experiments, migrations, pages, rows, tokens
from service.store.database import Database
from service.store.idempotency import find as find_key
from service.store.idempotency import take as take_key

__all__ = ["SqlStore"]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class SqlStore:
    """A `Store` in SQLite or PostgreSQL; what its methods promise stands in `service.ports.Store`.

    Args:
        address: SQLAlchemy address; nothing connects before the first call.
        clock: Gives the times that are stored, aware.
        wait_s: How long a call waits for a connection, and for another's lock, before it raises
            StoreUnavailable.

    Raises:
        SettingsError: If the address is no SQLite file or PostgreSQL server.
    """

    def __init__(self, address: str, *, clock: Callable[[], datetime] = _utc_now, wait_s: float = 5.0) -> None:
        self._database = Database(address, wait_s=wait_s)
        self._clock = clock

    @classmethod
    async def open(cls, address: str, *, upgrade: bool = False) -> Self:
        """Return the store of a database that is at the newest revision.

        Args:
            address: As for the class.
            upgrade: Bring it there first.

        Raises:
            SettingsError: If it is at an older revision, or at one that this version does not know.
            StoreUnavailable: If it cannot be reached.
        """
        await asyncio.to_thread(migrations.upgrade if upgrade else migrations.check, address)
        return cls(address)

    async def ping(self) -> None:
        await self._database.read(events.newest_sequence)

    async def create(self, new: NewExperiment, idempotency: Idempotency | None) -> tuple[ExperimentRecord, bool]:
        return await self._database.write(_create, new, idempotency, at=self._clock())

    async def find_idempotent(self, idempotency: Idempotency) -> ExperimentRecord | None:
        return await self._database.read(find_key, idempotency)

    async def get(self, experiment_id: str) -> ExperimentRecord:
        return await self._database.read(rows.get, experiment_id)

    async def list(self, query: ListQuery) -> Page:
        return await self._database.read(pages.page, query)

    async def count_by_state(self) -> Mapping[State, int]:
        return await self._database.read(experiments.count_by_state)

    async def update(
        self,
        experiment_id: str,
        *,
        expected_version: int | None,
        labels: Mapping[str, str] | None,
        priority: int | None,
    ) -> ExperimentRecord:
        return await self._database.write(
            experiments.change,
            experiment_id,
            expected_version=expected_version,
            labels=labels,
            priority=priority,
            at=self._clock(),
        )

    async def transition(
        self,
        experiment_id: str,
        *,
        source: State,
        target: State,
        claim: str | None = None,
        reason: JsonObject | None = None,
        attempt: int | None = None,
        failures: int | None = None,
        not_before: datetime | None = None,
    ) -> ExperimentRecord:
        return await self._database.write(
            experiments.move,
            experiment_id,
            source=source,
            target=target,
            claim=claim,
            reason=reason,
            attempt=attempt,
            failures=failures,
            not_before=not_before,
            at=self._clock(),
        )

    async def set_condition(self, experiment_id: str, condition: JsonObject) -> None:
        await self._database.write(experiments.set_condition, experiment_id, condition, at=self._clock())

    async def delete(self, experiment_id: str) -> None:
        await self._database.write(experiments.remove, experiment_id)

    async def claim_due(
        self, claim: str, *, now: datetime, lease_s: float, with_queue_of_others: bool = False
    ) -> Sequence[ExperimentRecord]:
        # In three: neither a long queue nor the reading of many rows must keep writers waiting.
        queued = await self._database.read(experiments.head_of_queue)
        await self._database.write(experiments.claim_due, claim, queued=queued, now=now, lease_s=lease_s)
        return await self._database.read(
            experiments.claimed, claim, queued=queued, now=now, with_queue_of_others=with_queue_of_others
        )

    async def append_event(self, experiment_id: str, type_: Literal["trial", "condition"], data: JsonObject) -> Event:
        return await self._database.write(events.append, experiment_id, type_, data, at=self._clock())

    async def events(self, *, after: int, experiment_id: str | None = None, limit: int = 1000) -> Sequence[Event]:
        return await self._database.read(events.read, after=after, experiment_id=experiment_id, limit=limit)

    async def newest_sequence(self) -> int:
        return await self._database.read(events.newest_sequence)

    async def create_token(self, token: TokenRecord, secret_sha256: str) -> None:
        await self._database.write(tokens.create, token, secret_sha256)

    async def find_token(self, secret_sha256: str) -> TokenRecord | None:
        return await self._database.read(tokens.find, secret_sha256)

    async def list_tokens(self) -> Sequence[TokenRecord]:
        return await self._database.read(tokens.every)

    async def revoke_token(self, token_id: str) -> None:
        await self._database.write(tokens.revoke, token_id, at=self._clock())

    async def tidy(self) -> None:
        await self._database.tidy()

    async def close(self) -> None:
        await self._database.close()


def _create(
    connection: Connection, new: NewExperiment, idempotency: Idempotency | None, *, at: datetime
) -> tuple[ExperimentRecord, bool]:
    earlier = None if idempotency is None else take_key(connection, idempotency, new.id)
    if earlier is not None:
        return earlier, True
    return experiments.add(connection, new, at=at), False
