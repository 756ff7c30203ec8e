"""An attempt as a Ray job."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.dispatch.job import JobRequest, attempt_job
from service.settings import Settings
from tests.fakes.records import record
from trainer.context import JobDocument, ParentTrial

HOSTILE = "$(reboot) `id` ; echo 'x' \"y\" \n é \u202e"


def job(*, environ: dict[str, str] | None = None, settings: Settings | None = None, **changes: Any) -> JobRequest:
    settings = settings or Settings(home=Path("/srv/state"), cpus=4)
    return attempt_job(record("exp_1", **changes), settings, attempt=2, environ=environ or {})


def document(request: JobRequest) -> JobDocument:
    return JobDocument.decode(shlex.split(request.entrypoint)[-1])


def test_a_pretraining_and_a_sweep_have_their_own_entry_points() -> None:
    assert " -m trainer --document " in job().entrypoint
    spec = {"base": {"data": {"dataset": "openmoji"}}}
    assert " -m tune_spaces --document " in job(kind="sweep", spec=spec).entrypoint


def test_embedded_jobs_run_in_this_interpreter_and_others_in_that_of_their_image() -> None:
    assert shlex.split(job().entrypoint)[0] == sys.executable
    assert shlex.split(job(settings=Settings(home=Path("/srv"))).entrypoint)[0] == "python"


def test_whatever_a_user_names_is_inert_in_the_command_and_absent_from_what_ray_shows() -> None:
    request = job(name=HOSTILE, labels={"team": HOSTILE})
    assert shlex.split(request.entrypoint) == request.entrypoint.split(" ")
    assert len(shlex.split(request.entrypoint)) == 5
    assert document(request).name == HOSTILE
    assert HOSTILE not in str(request.metadata)
    assert HOSTILE not in str(request.env)


def test_the_document_says_where_things_are() -> None:
    settings = Settings(home=Path("/srv/state"), cpus=4, mlflow_uri="http://127.0.0.1:5000", datasets=Path("/srv/data"))
    made = document(job(settings=settings))
    assert (made.experiment_id, made.attempt, made.storage) == ("exp_1", 2, "/srv/state/storage")
    assert (made.mlflow_uri, made.datasets_dir) == ("http://127.0.0.1:5000", "/srv/data")


def test_no_secret_is_in_a_job() -> None:
    settings = Settings(
        home=Path("/srv"),
        mlflow_uri="http://ada:hunter2@mlflow.test:5000/ml",
        database_url="postgresql://ada:hunter2@db.test/simclr",
    )
    environ = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "hunter2", "AWS_SECRET_ACCESS_KEY": "hunter2"}
    request = job(settings=settings, environ=environ)
    assert "hunter2" not in f"{request} {document(request)}"
    assert document(request).mlflow_uri == "http://mlflow.test:5000/ml"


def test_authentication_is_always_named() -> None:
    assert job().env["RAY_AUTH_MODE"] == "disabled"
    assert job(environ={"RAY_AUTH_MODE": "token"}).env["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("name", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_an_interface_is_named_only_where_the_operator_did(name: str) -> None:
    assert name not in job().env
    assert job(environ={name: "eth0"}).env[name] == "eth0"


def test_math_libraries_get_the_workers_cpus() -> None:
    scaling = {"scaling": {"num_workers": 2, "cpus_per_worker": 3}}
    assert job(spec=scaling).env["OMP_NUM_THREADS"] == "3"
    assert job(kind="sweep", spec={"base": scaling}).env["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("workers", "waits_s"), [(2, "900"), ({"min": 2, "max": 2}, "900"), ({"min": 1, "max": 2}, "300")]
)
def test_a_team_that_could_be_smaller_waits_less_for_room(workers: Any, waits_s: str) -> None:
    env = job(spec={"scaling": {"num_workers": workers}}).env
    assert env["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == waits_s


def test_a_stop_is_the_signal_that_ray_train_ends_cleanly_on_with_time_to_do_so() -> None:
    assert job().env["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert float(job().env["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30


def test_a_continued_experiment_starts_from_its_parents_trial_and_a_clone_does_not() -> None:
    link = {"experiment_id": "exp_0", "relation": "continue", "trial_id": "t0000"}
    assert document(job(parent=link)).parent == ParentTrial(experiment_id="exp_0", trial_id="t0000")
    assert document(job(parent={"experiment_id": "exp_0", "relation": "clone"})).parent is None
    assert document(job()).parent is None


def test_a_continued_sweep_knows_its_parent() -> None:
    link = {"experiment_id": "exp_0", "relation": "continue"}
    parent = document(job(kind="sweep", spec={"base": {}}, parent=link)).parent
    assert parent is not None
    assert parent.experiment_id == "exp_0"


def test_the_same_attempt_is_the_same_job() -> None:
    assert job() == job()
    first = attempt_job(replace(record("exp_1")), Settings(home=Path("/srv"), cpus=4), attempt=1, environ={})
    assert first != job()


def test_every_value_of_the_environment_is_text() -> None:
    env = job().env
    assert all(isinstance(name, str) and isinstance(value, str) and value for name, value in env.items())
