"""Every experiment in some states, whichever dispatcher looks after it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from service.experiment import State
from service.ports import ExperimentRecord, ListQuery, Store

__all__ = ["all_in"]

PAGE_SIZE: Final = 1000


async def all_in(store: Store, states: Collection[State]) -> list[ExperimentRecord]:
    """Return all experiments in one of `states`. Raises StoreUnavailable."""
    page = await store.list(ListQuery(states=tuple(states), page_size=PAGE_SIZE))
    found = list(page.items)
    while page.next_after is not None:
        page = await store.list(ListQuery(states=tuple(states), page_size=PAGE_SIZE, after=page.next_after))
        found += page.items
    return found
