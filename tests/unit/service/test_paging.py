"""Page tokens come back as they went, and nothing else passes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.experiment import State
from service.ports import ListQuery
from service.views.paging import PageTokenError, decode, encode, query_digest

KEY = b"k" * 32
AFTER = (datetime(2030, 1, 1, 1, 2, 3, 4, tzinfo=UTC), "exp_1")

values = st.text() | st.integers() | st.datetimes(timezones=st.just(UTC))


@given(value=values, identifier=st.text())
def test_a_position_survives_the_round_trip(value: Any, identifier: str) -> None:
    token = encode((value, identifier), query_digest="d", key=KEY)
    assert decode(token, query_digest="d", key=KEY) == (value, identifier)
    assert token.replace("-", "").replace("_", "").isalnum()


def test_a_token_altered_in_any_character_is_refused() -> None:
    token = encode(AFTER, query_digest="d", key=KEY)
    for index, character in enumerate(token):
        for other in "A9_":
            if other != character:
                with pytest.raises(PageTokenError):
                    decode(token[:index] + other + token[index + 1 :], query_digest="d", key=KEY)


@given(token=st.text(max_size=60))
def test_any_other_text_is_refused(token: str) -> None:
    with pytest.raises(PageTokenError):
        decode(token, query_digest="d", key=KEY)


def test_a_shortened_or_padded_token_is_refused() -> None:
    token = encode(AFTER, query_digest="d", key=KEY)
    for other in (token[:-1], token[:10], token + "A", token + "=", token + "\n"):
        with pytest.raises(PageTokenError):
            decode(other, query_digest="d", key=KEY)


@pytest.mark.parametrize(("digest", "key"), [("other list", KEY), ("d", b"x" * 32)])
def test_a_foreign_token_is_refused(digest: str, key: bytes) -> None:
    token = encode(AFTER, query_digest="d", key=KEY)
    with pytest.raises(PageTokenError):
        decode(token, query_digest=digest, key=key)


def test_a_refusal_is_a_value_error() -> None:
    assert issubclass(PageTokenError, ValueError)


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "ada"},
        {"states": (State.FAILED,)},
        {"kind": "sweep"},
        {"labels": {"a": "c"}},
        {"name": "n"},
        {"order_by": "name"},
    ],
)
def test_the_digest_follows_filters_and_order(change: dict[str, Any]) -> None:
    query = ListQuery(labels={"a": "b"})
    assert query_digest(replace(query, **change)) != query_digest(query)


def test_the_digest_follows_neither_page_size_nor_position_nor_the_order_of_filters() -> None:
    one = ListQuery(labels={"a": "b", "c": "d"}, states=(State.FAILED, State.QUEUED))
    two = ListQuery(labels={"c": "d", "a": "b"}, states=(State.QUEUED, State.FAILED), page_size=3, after=AFTER)
    assert query_digest(one) == query_digest(two)
