"""The fence lets the latest start write and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.context import TrialContext
from trainer.errors import Superseded
from trainer.fence import take_fence
from trainer.storage import open_storage


def context(tmp_path: Path, *, attempt: int) -> TrialContext:
    return TrialContext(
        experiment_id="exp_1",
        experiment_name="n",
        trial_id="t0000",
        attempt=attempt,
        storage=str(tmp_path),
        cache_dir="c",
    )


def test_a_later_start_of_the_same_attempt_shuts_out_the_earlier(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    first = take_fence(storage, context(tmp_path, attempt=1))
    first.check()
    second = take_fence(storage, context(tmp_path, attempt=1))
    second.check()
    with pytest.raises(Superseded, match="superseded by start 2"):
        first.check()


def test_an_attempt_that_comes_late_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    take_fence(storage, context(tmp_path, attempt=2))
    with pytest.raises(Superseded, match="attempt 1 came after attempt 2"):
        take_fence(storage, context(tmp_path, attempt=1))
