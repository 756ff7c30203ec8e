"""The dispatcher, a step at a time, against a real database and a cluster whose time is moved."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.dispatch.backfills import MOST_TRIES
from service.dispatch.dispatcher import Dispatcher
from service.dispatch.dispatcher_metrics import DispatcherMetrics
from service.errors import StoreUnavailable
from service.experiment import State, submission_id
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crash import Crash
from trainer.context import JobDocument, experiment_key
from trainer.unrecorded import unrecorded_runs

pytestmark = pytest.mark.anyio


# --- the way from the queue to the end ------------------------------------------------------------


async def test_an_experiment_goes_from_the_queue_to_success(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    record = await plane.step_until(experiment_id, State.SUCCEEDED)
    assert await plane.states(experiment_id) == ["queued", "starting", "running", "succeeded"]
    assert (record.attempt, record.failures, record.reason) == (1, 0, None)
    assert plane.tracking.statuses(experiment_id) == {"FINISHED"}


async def test_a_step_says_what_it_did(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    report = await plane.step()
    assert [(move.source, move.target) for move in report.moves] == [(State.QUEUED, State.STARTING)]
    assert report.submitted == [submission_id(experiment_id, 1)]
    assert not report.is_idle
    await plane.step_until(experiment_id, State.SUCCEEDED)
    assert (await plane.step()).is_idle


async def test_the_job_gets_the_spec_as_one_word_and_nothing_the_user_named(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step()
    job = plane.cluster.jobs[submission_id(experiment_id, 1)]
    assert "rm -rf" not in job.entrypoint
    document = JobDocument.decode(job.entrypoint.split()[-1])
    assert (document.name, document.attempt) == ("emoji'; rm -rf /", 1)


async def test_each_change_of_a_trial_is_told_once_even_across_a_restart(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.step(advance_s=1)
    plane.start_dispatcher()
    await plane.step(advance_s=20)
    await plane.step_until(experiment_id, State.SUCCEEDED)
    told = [event.data["state"] for event in await plane.events(experiment_id, "trial")]
    assert told == ["running", "succeeded"]


async def test_a_trial_with_a_value_that_is_no_number_is_told_once(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("deaf")
    await plane.step_until(experiment_id, State.RUNNING)
    plane.cluster.blobs = None  # the table is written by this test alone
    plane.cluster.jobs[submission_id(experiment_id, 1)].document = None
    plane.cluster.jobs[submission_id(experiment_id, 1)].entrypoint = "sleep 900"
    table = {"trials": [{"id": "t0000", "state": "running", "metrics": {"loss": float("nan")}}]}
    plane.blobs.write(experiment_key(experiment_id, "trials.json"), json.dumps(table).encode())
    for _ in range(3):
        await plane.step(advance_s=1)
    last = (await plane.events(experiment_id, "trial"))[-1]
    assert last.data["metrics"] == {"loss": None}
    assert (await plane.step(advance_s=1)).num_trial_events == 0


# --- failures -------------------------------------------------------------------------------------


async def test_a_job_that_died_is_tried_again_after_its_backoff(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("crash")
    record = await plane.step_until(experiment_id, State.RECOVERING)
    assert record.reason is not None
    assert (record.reason["code"], record.attempt, record.failures) == ("job_died", 2, 1)
    assert (await plane.step()).submitted == []
    assert (await plane.step(advance_s=3)).submitted == [submission_id(experiment_id, 2)]
    record = await plane.step_until(experiment_id, State.SUCCEEDED)
    assert (record.attempt, record.failures) == (2, 1)


async def test_attempts_are_bounded_and_the_last_cause_is_kept(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("bug", "crash", "bug", "work")
    record = await plane.step_until(experiment_id, State.FAILED)
    assert record.reason is not None
    assert record.reason["code"] == "attempts_exhausted"
    assert record.reason["cause"]["code"] == "internal_error"
    assert (record.attempt, record.failures) == (3, 3)
    assert plane.tracking.statuses(experiment_id) == {"FAILED"}


async def test_an_error_that_would_come_again_is_not_tried_again(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("error")
    record = await plane.step_until(experiment_id, State.FAILED)
    assert record.reason == {"code": "non_finite_loss", "message": "loss is NaN at step 3"}
    assert record.attempt == 1


async def test_a_completion_marker_outranks_what_ray_says(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("linger")
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.step(advance_s=31)
    plane.cluster.kill(submission_id(experiment_id, 1))
    await plane.step()
    assert (await plane.get(experiment_id)).state is State.SUCCEEDED


async def test_a_job_that_is_done_and_does_not_leave_is_ended(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("linger")
    await plane.step_until(experiment_id, State.SUCCEEDED, advance_s=10)
    assert plane.cluster.living(experiment_id) == []


async def test_a_job_that_was_settled_while_ray_was_away_is_ended_when_it_is_back(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("linger")
    await plane.step_until(experiment_id, State.RUNNING)
    plane.clock.advance(31)
    await plane.cluster.ping()  # it says its last word, and stays
    plane.cluster.is_down = True
    await plane.step_until(experiment_id, State.SUCCEEDED)
    plane.cluster.is_down = False
    await plane.step(advance_s=6)
    assert len(plane.cluster.living(experiment_id)) == 1, "it has a while to leave by itself"
    for _ in range(14):
        await plane.step(advance_s=6)
    assert plane.cluster.living(experiment_id) == []
    assert plane.blobs.list("service/open_runs/") == []


async def test_a_head_that_lost_its_memory_leads_to_a_new_attempt(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.cluster.lose_head()
    record = await plane.step_until(experiment_id, State.RECOVERING)
    assert record.reason is not None
    assert record.reason["code"] == "job_lost"
    assert (await plane.step_until(experiment_id, State.SUCCEEDED)).attempt == 2


async def test_a_head_that_was_lost_after_the_end_changes_nothing(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.clock.advance(60)
    await plane.cluster.ping()
    plane.cluster.lose_head()
    await plane.step()
    assert (await plane.get(experiment_id)).state is State.SUCCEEDED


async def test_wall_time_counts_over_attempts_and_ends_the_experiment(plane: ControlPlane) -> None:
    plane.cluster.work_s = 1000
    experiment_id = await plane.submit(wall_time_s=100)
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.step(advance_s=60)
    plane.cluster.kill(submission_id(experiment_id, 1))
    await plane.step()
    record = await plane.step_until(experiment_id, State.FAILED)
    assert record.reason is not None
    assert record.reason["code"] == "wall_time_exceeded"
    assert record.attempt == 2
    assert plane.cluster.living(experiment_id) == []
    assert record.finished_at is not None
    assert record.started_at is not None
    assert 100 < (record.finished_at - record.started_at).total_seconds() < 120


async def test_a_job_that_hears_nothing_is_ended_when_its_wall_time_is_over(plane: ControlPlane) -> None:
    plane.cluster.work_s = 1000
    experiment_id = await plane.submit("deaf", wall_time_s=10)
    record = await plane.step_until(experiment_id, State.FAILED)
    assert record.reason is not None
    assert record.reason["code"] == "wall_time_exceeded"
    assert plane.cluster.living(experiment_id) == []


# --- what its owner asks --------------------------------------------------------------------------


async def test_a_pause_stops_the_job_by_itself_and_a_resume_goes_on(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.step(advance_s=10)
    await plane.ask(experiment_id, State.PAUSING)
    await plane.step_until(experiment_id, State.PAUSED)
    assert plane.cluster.living(experiment_id) == []
    assert plane.tracking.statuses(experiment_id) == {"RUNNING"}
    await plane.ask(experiment_id, State.QUEUED)
    record = await plane.step_until(experiment_id, State.SUCCEEDED)
    assert (record.attempt, record.failures) == (2, 0)


async def test_a_job_that_hears_no_pause_is_ended_and_the_experiment_is_paused(plane: ControlPlane) -> None:
    plane.cluster.work_s = 1000
    experiment_id = await plane.submit("deaf")
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.ask(experiment_id, State.PAUSING)
    for _ in range(6):
        assert (await plane.step(advance_s=10)).stopped == []
    assert (await plane.step(advance_s=10)).stopped == [submission_id(experiment_id, 1)]
    await plane.step_until(experiment_id, State.PAUSED)


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.RECOVERING, State.PAUSING])
async def test_a_cancel_ends_the_job_from_any_state(plane: ControlPlane, state: State) -> None:
    experiment_id = await plane.submit("crash")
    if state is State.PAUSING:
        await plane.step_until(experiment_id, State.RUNNING)
        await plane.ask(experiment_id, State.PAUSING)
    await plane.step_until(experiment_id, state)
    await plane.ask(experiment_id, State.CANCELLING)
    await plane.step_until(experiment_id, State.CANCELLED)
    assert plane.cluster.living(experiment_id) == []
    assert plane.tracking.statuses(experiment_id) <= {"KILLED"}


async def test_a_cancel_that_comes_too_late_ends_in_success(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.clock.advance(60)
    await plane.cluster.ping()
    await plane.ask(experiment_id, State.CANCELLING)
    await plane.step_until(experiment_id, State.SUCCEEDED)


async def test_cancelling_after_the_attempt_was_submitted_for_recovery_finds_its_job(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("crash")
    await plane.step_until(experiment_id, State.RECOVERING)
    await plane.step(advance_s=3)
    assert len(plane.cluster.living(experiment_id)) == 1
    await plane.ask(experiment_id, State.CANCELLING)
    await plane.step_until(experiment_id, State.CANCELLED)
    assert plane.cluster.living(experiment_id) == []


async def test_runs_of_an_experiment_that_was_cancelled_while_paused_are_closed(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.step(advance_s=5)
    await plane.ask(experiment_id, State.PAUSING)
    await plane.step_until(experiment_id, State.PAUSED)
    await plane.ask(experiment_id, State.CANCELLED)
    report = await plane.step(advance_s=6)
    assert report.num_closed == 1
    assert plane.tracking.statuses(experiment_id) == {"KILLED"}


async def test_runs_of_an_experiment_that_was_deleted_while_paused_are_closed(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.step(advance_s=5)
    await plane.ask(experiment_id, State.PAUSING)
    await plane.step_until(experiment_id, State.PAUSED)
    await plane.store.delete(experiment_id)
    await plane.step(advance_s=6)
    assert plane.tracking.statuses(experiment_id) == {"KILLED"}


async def test_a_verdict_that_was_never_committed_is_corrected_in_mlflow(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("crash", max_attempts=1)
    await plane.step_until(experiment_id, State.RUNNING)
    plane.clock.advance(20)
    transition = plane.store.transition

    async def cancel_first(*args: Any, **kwargs: Any) -> Any:
        plane.store.transition = transition  # type: ignore[method-assign] # the next calls are the real ones
        await plane.ask(experiment_id, State.CANCELLING)
        return await transition(*args, **kwargs)

    plane.store.transition = cancel_first  # type: ignore[method-assign] # its owner is a moment faster
    await plane.step()
    assert plane.tracking.statuses(experiment_id) == {"FAILED"}
    await plane.step_until(experiment_id, State.CANCELLED)
    assert plane.tracking.statuses(experiment_id) == {"KILLED"}


# --- outages --------------------------------------------------------------------------------------


async def test_an_absent_cluster_is_no_failure_and_is_told(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.cluster.is_down = True
    for _ in range(3):
        report = await plane.step(advance_s=1)
    assert report.outages == ["cluster_unavailable"]
    assert await plane.condition(experiment_id, "cluster_unavailable") == "true"
    assert len(await plane.events(experiment_id, "condition")) == 1
    plane.cluster.is_down = False
    record = await plane.step_until(experiment_id, State.SUCCEEDED)
    assert record.failures == 0
    assert await plane.condition(experiment_id, "cluster_unavailable") == "false"


async def test_an_absent_cluster_keeps_the_queue_waiting(plane: ControlPlane) -> None:
    plane.cluster.is_down = True
    experiment_id = await plane.submit()
    await plane.step()
    assert (await plane.get(experiment_id)).state is State.QUEUED
    assert await plane.condition(experiment_id, "cluster_unavailable") == "true"
    plane.cluster.is_down = False
    await plane.step_until(experiment_id, State.SUCCEEDED)


async def test_an_absent_cluster_is_asked_once_a_step(plane: ControlPlane) -> None:
    ids = [await plane.submit() for _ in range(3)]
    for experiment_id in ids:
        await plane.step_until(experiment_id, State.RUNNING)
    plane.cluster.is_down = True
    num_calls = plane.cluster.num_calls
    await plane.step()
    assert plane.cluster.num_calls == num_calls + 1


async def test_an_experiment_whose_cluster_never_comes_back_ends_with_its_wall_time(plane: ControlPlane) -> None:
    plane.cluster.work_s = 1000
    experiment_id = await plane.submit(wall_time_s=60)
    await plane.step_until(experiment_id, State.RUNNING)
    plane.cluster.is_down = True
    record = await plane.step_until(experiment_id, State.FAILED, advance_s=5)
    assert record.reason is not None
    assert record.reason["code"] == "wall_time_exceeded"


async def test_an_experiment_that_ended_while_the_cluster_is_away_is_settled(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.clock.advance(60)
    await plane.cluster.ping()
    plane.cluster.is_down = True
    await plane.step()
    assert (await plane.get(experiment_id)).state is State.SUCCEEDED


async def test_storage_that_is_away_is_waited_for(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.blobs.is_down = True
    report = await plane.step(advance_s=60)
    assert report.outages == ["storage_unavailable"]
    assert (await plane.get(experiment_id)).state is State.RUNNING
    assert await plane.condition(experiment_id, "storage_unavailable") == "true"
    plane.blobs.is_down = False
    assert (await plane.step_until(experiment_id, State.SUCCEEDED)).failures == 0


async def test_runs_are_closed_after_a_restart_when_mlflow_was_away_at_the_end(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    await plane.step(advance_s=1)
    plane.tracking.is_down = True
    await plane.step_until(experiment_id, State.SUCCEEDED)
    assert await plane.condition(experiment_id, "mlflow_runs_open") == "true"
    plane.start_dispatcher()
    await plane.step(advance_s=1)
    plane.tracking.is_down = False
    await plane.step(advance_s=6)
    assert plane.tracking.statuses(experiment_id) == {"FINISHED"}
    assert await plane.condition(experiment_id, "mlflow_runs_open") == "false"


async def test_runs_of_an_experiment_that_is_deleted_as_soon_as_it_ended_keep_their_status(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.SUCCEEDED)
    await plane.store.delete(experiment_id)
    await plane.step(advance_s=6)
    assert plane.tracking.statuses(experiment_id) == {"FINISHED"}


async def test_what_mlflow_missed_of_an_ended_trial_is_sent_by_one_job(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.tracking.is_down = True
    await plane.step_until(experiment_id, State.SUCCEEDED)
    plane.tracking.is_down = False
    await plane.step(advance_s=6)
    assert await plane.condition(experiment_id, "mlflow_incomplete") == "true"
    plane.start_dispatcher()
    for _ in range(4):
        await plane.step(advance_s=6)
    assert unrecorded_runs(plane.blobs, experiment_id) == []
    assert await plane.condition(experiment_id, "mlflow_incomplete") == "false"
    assert [name for name in plane.cluster.jobs if "backfill" in name] == [f"{experiment_id}-a1-backfill-1"]


async def test_what_mlflow_missed_of_a_failed_trial_is_sent_too(plane: ControlPlane) -> None:
    experiment_id = await plane.submit("error")
    await plane.step()
    plane.tracking.is_down = True
    await plane.step_until(experiment_id, State.FAILED)
    assert unrecorded_runs(plane.blobs, experiment_id) == ["t0000"]
    plane.tracking.is_down = False
    for _ in range(4):
        await plane.step(advance_s=6)
    assert unrecorded_runs(plane.blobs, experiment_id) == []
    assert [name for name in plane.cluster.jobs if "backfill" in name] == [f"{experiment_id}-a1-backfill-1"]
    assert plane.blobs.list("service/open_runs/") == []


async def test_a_backfill_that_never_succeeds_is_given_up_with_a_way_out(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await plane.step_until(experiment_id, State.RUNNING)
    plane.tracking.is_down = True
    await plane.step_until(experiment_id, State.SUCCEEDED)
    for _ in range(4 * MOST_TRIES):
        plane.tracking.is_down = False  # it answers the service, but never a job
        await plane.step(advance_s=6)
        plane.tracking.is_down = True
        for name in [name for name in plane.cluster.jobs if "backfill" in name]:
            plane.clock.advance(6)
            await plane.cluster.observe(name)
    assert unrecorded_runs(plane.blobs, experiment_id) == ["t0000"]
    condition = next(
        item for item in (await plane.get(experiment_id)).conditions if item["type"] == "mlflow_incomplete"
    )
    assert "python -m trainer.backfill" in condition["message"]
    assert plane.blobs.list("service/open_runs/") == []


async def test_an_experiment_that_cannot_be_read_stops_no_other(plane: ControlPlane) -> None:
    broken = await plane.submit(spec={"scaling": {"num_workers": "many"}})
    whole = await plane.submit()
    report = await plane.step()
    assert list(report.errors) == [broken]
    assert await plane.condition(broken, "dispatch_failing") == "true"
    await plane.step_until(whole, State.SUCCEEDED)
    assert len(await plane.events(broken, "condition")) == 1


# --- crashes and company --------------------------------------------------------------------------


async def test_a_crash_between_commit_and_submit_loses_nothing(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await _crash_at(plane, "starting", before="submit")
    assert (await plane.get(experiment_id)).state is State.STARTING
    assert plane.cluster.jobs == {}
    plane.start_dispatcher()
    await plane.step_until(experiment_id, State.SUCCEEDED)
    assert plane.cluster.num_starts == {submission_id(experiment_id, 1): 1}


async def test_a_crash_after_the_submit_doubles_nothing(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    await _crash_at(plane, "starting", before="observe")
    assert len(plane.cluster.jobs) == 1
    plane.start_dispatcher()
    await plane.step_until(experiment_id, State.SUCCEEDED)
    assert plane.cluster.num_starts == {submission_id(experiment_id, 1): 1}


async def _crash_at(plane: ControlPlane, state: str, *, before: str) -> None:
    """Let the process die right before a call of the cluster."""

    async def die(*_: object, **__: object) -> None:
        raise Crash

    original = getattr(plane.cluster, before)
    setattr(plane.cluster, before, die)
    with pytest.raises(Crash):
        await plane.step()
    setattr(plane.cluster, before, original)


async def test_a_second_dispatcher_leaves_alone_what_the_first_holds(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    first = plane.dispatcher
    second = plane.start_dispatcher("second")
    await first.step()
    report = await second.step()
    assert (report.num_active, report.moves) == (0, [])
    plane.clock.advance(20)  # the first is dead, and its lease is over
    assert (await second.step()).num_active == 1
    await plane.step_until(experiment_id, State.SUCCEEDED)
    assert plane.cluster.num_starts == {submission_id(experiment_id, 1): 1}


async def test_the_room_counts_what_another_dispatcher_runs(plane: ControlPlane) -> None:
    for _ in range(4):  # 2 CPUs each of 8
        await plane.submit()
    await plane.step()
    late = await plane.submit()
    second = plane.start_dispatcher("second")
    await second.step()
    assert (await plane.get(late)).state is State.QUEUED
    assert await plane.condition(late, "waiting_for_capacity") == "true"


async def test_the_loop_wakes_at_once_and_ends_when_told(plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    stop = asyncio.Event()
    loop = asyncio.create_task(plane.dispatcher.run(stop))
    async with asyncio.timeout(5):
        while (await plane.get(experiment_id)).state is not State.SUCCEEDED:
            plane.clock.advance(0.5)
            plane.dispatcher.wake()
        stop.set()
        await loop


async def test_the_loop_outlives_an_absent_database(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment_id = await plane.submit()
    claim_due, calls = plane.store.claim_due, []

    async def claim_due_later(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) < 3:
            raise StoreUnavailable("the database does not answer")
        return await claim_due(*args, **kwargs)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(plane.store, "claim_due", claim_due_later)
    stop = asyncio.Event()
    loop = asyncio.create_task(plane.dispatcher.run(stop))
    async with asyncio.timeout(5):
        while (await plane.get(experiment_id)).state is State.QUEUED:
            plane.dispatcher.wake()
        stop.set()
        await loop


async def test_metrics_count_starts_recoveries_and_endings(plane: ControlPlane) -> None:
    registry = CollectorRegistry()
    plane.dispatcher = Dispatcher(
        store=plane.store,
        cluster=plane.cluster,
        tracking=plane.tracking,
        blobs=plane.blobs,
        settings=plane.settings,
        claim="metered",
        clock=plane.clock,
        metrics=DispatcherMetrics(registry),
    )
    experiment_id = await plane.submit("crash")
    await plane.step_until(experiment_id, State.SUCCEEDED)
    assert registry.get_sample_value("simclr_attempts_total", {"cause": "start"}) == 1
    assert registry.get_sample_value("simclr_attempts_total", {"cause": "recovery"}) == 1
    assert registry.get_sample_value("simclr_settled_total", {"state": "succeeded"}) == 1
    assert registry.get_sample_value("simclr_queue_wait_seconds_count") == 1
    assert registry.get_sample_value("simclr_dispatcher_active") == 1
