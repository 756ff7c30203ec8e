"""Column types: times come back aware, documents to the digit, and damage is told."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite

from service.store.tables import Instant, Json, metadata

SQLITE: Dialect = sqlite.dialect()
POSTGRESQL: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # it is untyped

aware = st.datetimes(
    min_value=datetime(1000, 1, 2),  # noqa: DTZ001 - the strategy adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001 - likewise
    timezones=st.integers(-720, 720).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
documents = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


@given(time=aware)
def test_a_time_comes_back_as_utc(time: datetime) -> None:
    for dialect in (SQLITE, POSTGRESQL):
        stored = Instant().process_bind_param(time, dialect)
        read = Instant().process_result_value(stored, dialect)
        assert read == time
        assert read is not None
        assert read.utcoffset() == timedelta(0)


@given(one=aware, two=aware)
def test_stored_texts_sort_as_their_times(one: datetime, two: datetime) -> None:
    first, second = (Instant().process_bind_param(time, SQLITE) for time in (one, two))
    assert (first < second, first == second) == (one < two, one == two)


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Instant().process_bind_param(datetime(2030, 1, 1), SQLITE)  # noqa: DTZ001 - the point of the test


def test_a_text_that_is_no_time_is_told() -> None:
    with pytest.raises(ValueError, match="soon"):
        Instant().process_result_value("soon", SQLITE)


@given(document=documents)
def test_a_document_comes_back_to_the_digit(document: dict[str, Any]) -> None:
    text = Json().process_bind_param(document, POSTGRESQL)
    assert text is not None
    assert "\x00" not in text  # PostgreSQL has no such character
    assert Json().process_result_value(text, POSTGRESQL) == document


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Json().process_bind_param({"lr": number}, SQLITE)


@pytest.mark.parametrize(("shape", "text"), [(dict, "[]"), (list, "{}"), (dict, "{"), (dict, "7")])
def test_a_damaged_document_is_told(shape: type, text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Json(shape).process_result_value(text, SQLITE)


def test_every_foreign_key_has_an_index_to_delete_by() -> None:
    for table in metadata.tables.values():
        for key in table.foreign_keys:
            leading = {next(iter(index.columns)).name for index in table.indexes}
            leading.add(next(iter(table.primary_key.columns)).name)
            assert key.parent.name in leading
