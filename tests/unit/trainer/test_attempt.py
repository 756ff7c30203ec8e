"""An attempt leaves exactly one marker of how it ended, and its log in storage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.context import JobDocument
from trainer.errors import DataError, Stopped, Superseded, TrainerError
from trainer.job import JobEnd, run_job
from trainer.storage import Storage, open_storage


def document(storage: Path) -> JobDocument:
    return JobDocument(
        experiment_id="exp_1",
        name="<b>`$(name)`\n'; rm -rf /",
        kind="pretrain",
        attempt=2,
        spec={},
        storage=str(storage),
        cache_dir="c",
    )


def ending(error: Exception | None) -> Callable[[JobDocument, Storage], JobEnd]:
    def body(_: JobDocument, __: Storage) -> JobEnd:
        if error is not None:
            raise error
        return JobEnd(state="succeeded", best={"trial": "t0000", "metric": "knn_accuracy", "value": 0.5})

    return body


def test_a_document_survives_its_word_and_the_word_is_inert_in_a_shell(tmp_path: Path) -> None:
    word = document(tmp_path).encode()
    assert JobDocument.decode(word) == document(tmp_path)
    assert set(word) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=")


@pytest.mark.parametrize(
    ("error", "status", "marker", "content"),
    [
        (None, 0, "complete.json", {"state": "succeeded", "attempt": 2}),
        (Stopped("s", kind="pause", step=7), 0, "attempts/2/stopped.json", {"kind": "pause", "step": 7}),
        (DataError("bad image a.png"), 1, "attempts/2/failure.json", {"code": "data_invalid", "retryable": False}),
        (Superseded("late"), 1, "attempts/2/failure.json", {"code": "superseded"}),
        (KeyError("x"), 1, "attempts/2/failure.json", {"code": "internal_error", "retryable": True}),
    ],
)
def test_each_end_has_its_marker(
    tmp_path: Path, error: Exception | None, status: int, marker: str, content: dict[str, object]
) -> None:
    assert run_job(document(tmp_path), ending(error)) == status
    storage = open_storage(str(tmp_path))
    markers = [key for key in storage.list("experiments/exp_1/") if key.endswith(".json")]
    assert markers == [f"experiments/exp_1/{marker}"]
    record = json.loads(storage.read(markers[0]))
    assert record.items() >= content.items()


def test_what_driver_and_children_print_is_kept_in_storage(tmp_path: Path) -> None:
    script = f"""
import subprocess, sys
from trainer.job import JobEnd, run_job
from trainer.context import JobDocument
def body(document, storage):
    print("from the driver", flush=True)
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    return JobEnd(state="succeeded", best=None)
sys.exit(run_job(JobDocument.decode({document(tmp_path).encode()!r}), body))
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    kept = open_storage(str(tmp_path)).read("experiments/exp_1/attempts/2/driver.log").decode()
    for line in ("from the driver", "from a child"):
        assert line in kept
        assert line in run.stdout


def test_every_error_pickles_and_keeps_its_record() -> None:
    import pickle

    def kinds(kind: type[TrainerError]) -> list[type[TrainerError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in kinds(child))]

    for kind in kinds(TrainerError):
        error = kind("what happened", step=3)
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert type(again) is kind
        assert (
            again.record()
            == error.record()
            == {
                "code": kind.code,
                "message": "what happened",
                "retryable": kind.retryable,
                "context": {"step": 3},
            }
        )
