"""A page of experiments: query parameters in, a keyset query out, and the token of the next page."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import Field

from service.edge.auth import Caller
from service.edge.deps import Services
from service.edge.problems import Problem
from service.experiment import State
from service.intake.submission import refuse
from service.ports import ExperimentRecord, ListQuery
from service.schemas import NO_NUL, FieldProblem
from service.settings import Settings
from service.views import paging

__all__ = [
    "DEFAULT_PAGE_SIZE",
    "ExperimentFilter",
    "PageSize",
    "PageToken",
    "page_of_experiments",
    "page_of_sequence",
    "page_of_states",
    "paging_key",
]

DEFAULT_PAGE_SIZE = 50
KEY_BYTES = 32

Item = TypeVar("Item")

PageSize = Annotated[int, Query(ge=1, le=1000)]
PageToken = Annotated[str, Query(max_length=2048, description="`next_page_token` of the page before")]
_LabelFilter = Annotated[str, Field(max_length=512, pattern=r"^[^:\x00]+:[^\x00]*$")]
OrderBy = Literal["created_at", "-created_at", "name", "-name", "priority", "-priority"]


@dataclass(frozen=True, kw_only=True)
class _Filter:
    """The filters of `GET /experiments`; all must hold."""

    query: ListQuery
    page_token: str


async def _filter(
    *,
    state: Annotated[list[State] | None, Query(description="any of these")] = None,
    kind: Annotated[Literal["pretrain", "sweep"] | None, Query()] = None,
    label: Annotated[list[_LabelFilter] | None, Query(description="`key:value`; all must match")] = None,
    name: Annotated[str | None, Query(max_length=128, pattern=NO_NUL, description="the whole name")] = None,
    order_by: Annotated[OrderBy, Query()] = "-created_at",
    page_size: PageSize = DEFAULT_PAGE_SIZE,
    page_token: PageToken = "",
) -> _Filter:
    query = ListQuery(
        states=tuple(dict.fromkeys(state or ())),
        kind=kind,
        labels=_labels(label or []),
        name=name,
        order_by=order_by,
        page_size=page_size,
    )
    return _Filter(query=query, page_token=page_token)


ExperimentFilter = Annotated[_Filter, Depends(_filter)]


def _labels(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        key, _, value = text.partition(":")
        if found.get(key, value) != value:
            detail = f"label: {key[:64]!r} cannot have two values at once; ask for one"
            refuse([FieldProblem(pointer="/query/label", code="label_contradicts", detail=detail)])
        found[key] = value
    return found


async def page_of_experiments(
    filters: _Filter, services: Services, *, caller: Caller
) -> tuple[list[ExperimentRecord], str]:
    """Return the page and the token of the next, "" at the end.

    Raises:
        Problem: 400 for a token that is not of this list.
        StoreUnavailable: If the database does not answer.
    """
    return await _page(replace(filters.query, owner=caller.sees), services, page_token=filters.page_token)


async def page_of_states(
    states: Sequence[State], services: Services, *, caller: Caller, page_size: int, page_token: str
) -> tuple[list[ExperimentRecord], str]:
    """Return a page of the caller's experiments in these states, newest first. Raises as `page_of_experiments`."""
    query = ListQuery(states=states, owner=caller.sees, page_size=page_size)
    return await _page(query, services, page_token=page_token)


async def _page(query: ListQuery, services: Services, *, page_token: str) -> tuple[list[ExperimentRecord], str]:
    digest = paging.query_digest(query)
    if page_token:
        query = replace(query, after=position(page_token, digest=digest, key=services.paging_key))
    page = await services.store.list(query)
    if page.next_after is None:
        return list(page.items), ""
    return list(page.items), paging.encode(page.next_after, query_digest=digest, key=services.paging_key)


def page_of_sequence(
    items: Sequence[Item], *, name: str, page_size: int, page_token: str, key: bytes
) -> tuple[list[Item], str]:
    """Return a page of a list that is whole in memory, and the token of the next; `name` tells lists apart.

    Raises:
        Problem: 400 for a token that is not of this list.
    """
    start = 0
    if page_token:
        start = int(position(page_token, digest=name, key=key)[0])
    end = start + page_size
    token = paging.encode((end, ""), query_digest=name, key=key) if end < len(items) else ""
    return list(items[start:end]), token


def position(token: str, *, digest: str, key: bytes) -> tuple[Any, str]:
    """Return the position that a token names. Raises Problem 400."""
    try:
        return paging.decode(token, query_digest=digest, key=key)
    except paging.PageTokenError as error:
        raise Problem(400, "page_token_invalid", f"{error}; start again without page_token") from error


def paging_key(settings: Settings) -> bytes:
    """Return the secret that signs page tokens, the same after a restart and for every service on one database."""
    if settings.database_url is not None:
        return hashlib.sha256(b"page tokens\0" + settings.database_url.get_secret_value().encode()).digest()
    path = settings.home_dir / "page-token.key"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) == KEY_BYTES:
            return key
        path.unlink()  # a crash left it short; tokens of before are void
        return paging_key(settings)
    with os.fdopen(descriptor, "wb") as file:
        key = secrets.token_bytes(KEY_BYTES)
        file.write(key)
    return key
