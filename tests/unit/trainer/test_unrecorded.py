"""Who looks for what MLflow missed reads a marker a trial, however much the trials left beside them."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.context import experiment_key, trial_key
from trainer.storage import DirectoryStorage
from trainer.trial_table import TrialRow, write_trial_table
from trainer.unrecorded import PARENT_RUN, unrecorded_runs


class NoListing(DirectoryStorage):
    """A directory too full to be listed."""

    def list(self, prefix: str) -> list[str]:
        raise AssertionError(f"{prefix} was listed")


def leave(storage: DirectoryStorage, trial_id: str, marker: bytes) -> None:
    storage.write(trial_key("exp_1", trial_id, "complete.json"), marker)


def test_with_a_table_nothing_is_listed_and_bad_markers_are_passed_over(tmp_path: Path) -> None:
    storage = NoListing(tmp_path)
    write_trial_table(storage, "exp_1", [TrialRow(id=f"t000{number}") for number in range(6)])
    leave(storage, "t0000", json.dumps({"is_recorded": True}).encode())
    leave(storage, "t0001", json.dumps({"is_recorded": False}).encode())
    leave(storage, "t0002", b"{torn")
    leave(storage, "t0003", b"[]")
    leave(storage, "t0005", json.dumps({"is_recorded": False}).encode())
    assert unrecorded_runs(storage, "exp_1") == ["t0001", "t0005"]


def test_without_a_table_the_markers_are_found_by_listing(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    leave(storage, "t0000", json.dumps({"is_recorded": False}).encode())
    leave(storage, "t0001", json.dumps({}).encode())
    storage.write(trial_key("exp_1", "t0002", "metrics/entry-00000001.json"), b"{}")
    assert unrecorded_runs(storage, "exp_1") == ["t0000"]
    storage.write(experiment_key("exp_1", "trials.json"), b"{torn")
    assert unrecorded_runs(storage, "exp_1") == ["t0000"]


def test_of_a_trial_that_did_not_finish_its_outbox_says_what_is_unsent(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    for number in (1, 2, 3):
        storage.write(trial_key("exp_1", "t0000", f"metrics/entry-{number:08d}.json"), b"{}")
    storage.write(trial_key("exp_1", "t0000", "metrics/description.json"), b"{}")
    assert unrecorded_runs(storage, "exp_1") == ["t0000"]
    write_trial_table(storage, "exp_1", [TrialRow(id="t0000", state="failed"), TrialRow(id="t0001", state="pending")])
    storage.write(trial_key("exp_1", "t0000", "metrics/sent.json"), b'{"number": 2}')
    assert unrecorded_runs(storage, "exp_1") == ["t0000"]
    storage.write(trial_key("exp_1", "t0000", "metrics/sent.json"), b'{"number": 3}')
    assert unrecorded_runs(storage, "exp_1") == []


def test_the_parent_run_comes_last(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    leave(storage, "t0000", json.dumps({"is_recorded": False}).encode())
    storage.write(experiment_key("exp_1", "parent_run.json"), b'{"is_recorded": false}')
    assert unrecorded_runs(storage, "exp_1") == ["t0000", PARENT_RUN]
    storage.write(experiment_key("exp_1", "parent_run.json"), b'{"is_recorded": true}')
    assert unrecorded_runs(storage, "exp_1") == ["t0000"]
