"""MLflow's runs of experiments that ended: one that takes long, or cannot be read, keeps no other from being closed."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from service.dispatch import backfills, unrecorded_looks
from service.errors import TrackingUnavailable
from service.experiment import State
from service.ports import JobObservation
from tests.fakes.control_plane import ControlPlane
from trainer.context import experiment_key

pytestmark = pytest.mark.anyio

NOTES = "service/open_runs/"
SWEEP_S = 6.0


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def before_reads(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, do: Callable[[str], object]) -> None:
    """Let `do(key)` go before each read of the service."""
    read = plane.blobs.read

    def reading(key: str) -> bytes:
        do(key)
        return bytes(read(key))

    monkeypatch.setattr(plane.blobs, "read", reading)


async def two_ended(plane: ControlPlane) -> tuple[str, str]:
    """Return two experiments that succeeded and whose runs are still to be closed, in the order of their notes."""
    ids = [await plane.submit(), await plane.submit()]
    for experiment_id in ids:
        await plane.step_until(experiment_id, State.RUNNING, advance_s=1)
    await plane.step(advance_s=1)
    plane.tracking.is_down = True
    for experiment_id in ids:
        await plane.step_until(experiment_id, State.SUCCEEDED, advance_s=1)
        plane.blobs.write(experiment_key(experiment_id, "trials/t0000/complete.json"), b'{"is_recorded": true}')
    plane.tracking.is_down = False
    assert plane.blobs.list(NOTES) == sorted(NOTES + experiment_id for experiment_id in ids)
    first, second = sorted(ids)
    return first, second


async def test_one_whose_trials_take_long_to_read_holds_up_no_step_and_no_other(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    large, _ = await two_ended(plane)

    def keep_waiting(key: str) -> None:
        if key.startswith(experiment_key(large, "trials/")):
            gate.wait(60)

    before_reads(plane, monkeypatch, keep_waiting)
    for _ in range(2):
        began_s = time.monotonic()
        await plane.step(advance_s=SWEEP_S)
        assert time.monotonic() - began_s < 30  # far below what the gate waits for
    await swept(plane, but=[NOTES + large])
    assert plane.tracking.statuses(large) == {"FINISHED"}  # its runs need not wait for it
    gate.set()
    await swept(plane)


async def swept(plane: ControlPlane, *, but: Sequence[str] = ()) -> None:
    """Step until no note is left `but` those."""
    for _ in range(100):
        await plane.step(advance_s=SWEEP_S)
        await asyncio.sleep(0.02)
        if plane.blobs.list(NOTES) == list(but):
            return
    pytest.fail(f"notes are left: {plane.blobs.list(NOTES)}")


async def test_one_that_cannot_be_read_keeps_no_other_from_being_closed(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = await two_ended(plane)

    def fail(key: str) -> None:
        if key.startswith(experiment_key(broken, "trials/")):
            raise OSError(errno.EIO, "Input/output error")

    before_reads(plane, monkeypatch, fail)
    await plane.step(advance_s=SWEEP_S)
    assert plane.blobs.list(NOTES) == [NOTES + broken]
    assert plane.tracking.statuses(whole) == {"FINISHED"}
    monkeypatch.undo()
    await plane.step(advance_s=SWEEP_S)
    assert plane.blobs.list(NOTES) == []


async def test_one_that_mlflow_refuses_keeps_no_other_from_being_closed(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, taken = await two_ended(plane)
    close_runs = plane.tracking.close_runs

    async def closing(experiment_id: str, status: str) -> None:
        if experiment_id == refused:
            raise TrackingUnavailable("MLflow answers 500", is_refusal=True)
        await close_runs(experiment_id, status)  # type: ignore[arg-type] # passed on as it came

    monkeypatch.setattr(plane.tracking, "close_runs", closing)
    await plane.step(advance_s=SWEEP_S)
    assert plane.blobs.list(NOTES) == [NOTES + refused]
    assert plane.tracking.statuses(taken) == {"FINISHED"}


async def test_what_is_missing_is_sent_by_one_job_however_long_the_looks_take(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unrecorded_looks, "STEP_WAITS_S", 0.0)
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.tracking.is_down = True
    await plane.step_until(experiment_id, State.SUCCEEDED)
    plane.tracking.is_down = False
    await swept(plane)
    assert [name for name in plane.cluster.jobs if "backfill" in name] == [f"{experiment_id}-a1-backfill-1"]


@pytest.mark.parametrize("is_refusal", [True, False])
async def test_while_mlflow_is_away_no_job_is_sent_and_then_one_brings_all(
    plane: ControlPlane,
    monkeypatch: pytest.MonkeyPatch,
    is_refusal: bool,  # noqa: FBT001 - a case
) -> None:
    def answer() -> None:
        if plane.tracking.is_down:
            raise TrackingUnavailable("MLflow answers 503", is_refusal=is_refusal)

    monkeypatch.setattr(plane.tracking, "_answer", answer)
    ids = [await plane.submit() for _ in range(3)]
    for experiment_id in ids:
        await plane.step_until(experiment_id, State.RUNNING, advance_s=1)
    plane.tracking.is_down = True
    for experiment_id in ids:
        await plane.step_until(experiment_id, State.SUCCEEDED, advance_s=1)
    for _ in range(20):
        await plane.step(advance_s=SWEEP_S)
    assert [name for name in plane.cluster.jobs if "backfill" in name] == []
    plane.tracking.is_down = False
    for _ in range(10):
        await plane.step(advance_s=SWEEP_S)
    assert plane.blobs.list(NOTES) == []
    assert sorted(name for name in plane.cluster.jobs if "backfill" in name) == sorted(
        f"{experiment_id}-a1-backfill-1" for experiment_id in ids
    )


async def test_a_last_try_that_worked_is_not_called_vain(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrecorded_looks, "STEP_WAITS_S", 0.0)
    monkeypatch.setattr(backfills, "MOST_TRIES", 1)
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.tracking.is_down = True
    await plane.step_until(experiment_id, State.SUCCEEDED)
    plane.tracking.is_down = False
    observe, name = plane.cluster.observe, f"{experiment_id}-a1-backfill-1"

    async def observing(asked: str) -> JobObservation:
        """Let the try end between the look at what is missing and the question what became of it."""
        if asked == name and name in plane.cluster.jobs:
            plane.clock.advance(plane.cluster.work_s + 10)
        return await observe(asked)

    monkeypatch.setattr(plane.cluster, "observe", observing)
    await swept(plane)
    assert await plane.condition(experiment_id, backfills.CONDITION) == "false"


async def test_the_notes_of_those_that_have_not_ended_are_not_read(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.ask(experiment_id, State.PAUSING)
    await plane.step_until(experiment_id, State.PAUSED)
    keys: list[str] = []
    before_reads(plane, monkeypatch, keys.append)
    await plane.step(advance_s=SWEEP_S)
    assert [key for key in keys if key.startswith(NOTES)] == []
    await plane.ask(experiment_id, State.CANCELLED)
    await plane.step(advance_s=SWEEP_S)
    assert plane.blobs.list(NOTES) == []
