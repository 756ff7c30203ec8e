"""Creations that meet in a bucket: a store that answers 409 has another one under way."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import pytest
from botocore.exceptions import ClientError

from trainer import storage as storage_module
from trainer.storage import S3Storage


class Store:
    """Answers puts in turn: with the error of a code, or by obeying ("")."""

    def __init__(self, answers: Iterable[str], *, other: bytes | None = None, arrives_after: int = 0) -> None:
        self._answers = list(answers)
        self._other = other
        self._arrives_after = arrives_after
        self.put: bytes | None = None

    def put_object(self, *, Body: bytes, **_: Any) -> None:
        if code := self._answers.pop(0):
            raise ClientError({"Error": {"Code": code}}, "PutObject")
        self.put = Body

    def get_object(self, **_: Any) -> Any:
        self._arrives_after -= 1
        found = self.put if self.put is not None else self._other if self._arrives_after < 0 else None
        if found is None:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return {"Body": BytesIO(found)}


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_CONFLICT_PATIENCE_S", (0.0, 0.0, 0.0))


def created(store: Any) -> bool:
    return S3Storage(bucket="b", prefix="p", client=store).create("key", b"mine")


def test_one_whose_rival_came_to_nothing_is_tried_again() -> None:
    store = Store(["ConditionalRequestConflict", ""])
    assert created(store)
    assert store.put == b"mine"


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "PreconditionFailed"])
def test_a_rival_that_was_faster_has_won(code: str) -> None:
    assert not created(Store([code] * 3, other=b"theirs", arrives_after=2))


def test_a_rival_that_never_ends_is_an_error_of_storage() -> None:
    with pytest.raises(OSError, match="cannot create key"):
        created(Store(["ConditionalRequestConflict"] * 3))
