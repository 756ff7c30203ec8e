"""What is said to MLflow and how its answers are read; the real thing is met in the conformance suite."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from service.errors import ArtifactNotFound, TrackingUnavailable
from service.public_address import without_userinfo
from service.tracking import MlflowTracking

pytestmark = pytest.mark.anyio

EXPERIMENT = {"experiment": {"experiment_id": "7"}}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """Answers by path, and keeps what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"get-by-name": EXPERIMENT} | answers
        self.seen: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        answer = self.answers[request.url.path.rpartition("/")[2]]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(request)
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)


def mlflow(server: Callable[[httpx2.Request], httpx2.Response], uri: str = "http://mlflow.test:5000") -> MlflowTracking:
    return MlflowTracking(uri, transport=httpx2.MockTransport(server))


def run(run_id: str, status: str = "RUNNING", **tags: str) -> dict[str, Any]:
    pairs = [{"key": key.replace("__", "."), "value": value} for key, value in tags.items()]
    data = {"tags": pairs, "metrics": [{"key": "loss", "value": 0.1, "step": 3, "timestamp": 1}]}
    return {"info": {"run_id": run_id, "status": status}, "data": data}


async def test_before_the_first_job_there_are_no_trials() -> None:
    server = Server(**{"get-by-name": httpx2.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})})
    assert await mlflow(server).trials("exp_1") == []


@pytest.mark.parametrize("is_stray_older", [True, False])
async def test_a_run_that_was_made_twice_is_the_one_that_is_written_to(*, is_stray_older: bool) -> None:
    kept, stray = (run(name, simclr__trial_id="t0000", simclr__role="trial") for name in ("kept", "stray"))
    stray["data"]["metrics"] = []
    found = [stray, kept] if is_stray_older else [kept, stray]
    (trial,) = await mlflow(Server(search={"runs": found})).trials("exp_1")
    assert (trial.mlflow_run_id, trial.metrics) == ("kept", {"loss": 0.1})


async def test_trials_come_by_id_over_all_pages_without_the_parent_and_each_once() -> None:
    first = {"runs": [run("p", simclr__role="parent"), run("r2", simclr__trial_id="t2")], "next_page_token": "next"}
    second = {"runs": [run("r1", simclr__trial_id="t1"), run("twin", simclr__trial_id="t1")]}
    server = Server(search=lambda request: second if b"page_token" in request.content else first)
    trials = await mlflow(server).trials("exp_1")
    assert [(trial.trial_id, trial.mlflow_run_id) for trial in trials] == [("t1", "r1"), ("t2", "r2")]
    assert trials[0].metrics == {"loss": 0.1}
    assert trials[0].steps == {"loss": 3}


async def test_a_quote_in_an_id_stays_inside_the_filter() -> None:
    server = Server(search={})
    await mlflow(server).trials("x' OR tags.a = 'b")
    assert json.loads(server.seen[-1].content)["filter"] == "tags.`simclr.experiment_id` = \"x' OR tags.a = 'b\""


async def test_points_ascend_by_step_each_once_and_the_first_in_time_stays() -> None:
    first = {
        "metrics": [
            {"key": "loss", "value": 0.1 + 0.2, "step": 2, "timestamp": 1000},
            {"key": "loss", "value": 9.0, "timestamp": 2000},
        ],
        "next_page_token": "next",
    }
    second = {"metrics": [{"key": "loss", "value": 5.0, "step": 2, "timestamp": 3000}]}
    server = Server(**{"get-history": lambda request: second if "page_token" in request.url.params else first})
    points = (await mlflow(server).metrics("r1", ["loss"]))["loss"]
    assert [(point.step, point.value) for point in points] == [(0, 9.0), (2, 0.1 + 0.2)]
    assert points[1].at.timestamp() == 1


async def test_a_value_that_is_no_number_is_read_as_such() -> None:
    metric = {"key": "loss", "value": "NaN", "step": 1, "timestamp": 1}
    points = (await mlflow(Server(**{"get-history": {"metrics": [metric]}})).metrics("r1", ["loss"]))["loss"]
    assert math.isnan(points[0].value)


async def test_an_unknown_key_has_no_points() -> None:
    assert await mlflow(Server(**{"get-history": {}})).metrics("r1", ["a", "b"]) == {"a": [], "b": []}


async def test_only_running_runs_are_closed() -> None:
    done, still_open = run("done", "FINISHED", simclr__trial_id="t1"), run("open", simclr__trial_id="t2")
    runs = [run("parent", simclr__role="parent"), done, still_open]
    server = Server(search={"runs": runs}, update={})
    await mlflow(server).close_runs("exp_1", "KILLED")
    updates = [json.loads(request.content) for request in server.seen if request.url.path.endswith("update")]
    assert [(update["run_id"], update["status"]) for update in updates] == [("parent", "KILLED"), ("open", "KILLED")]


async def test_userinfo_becomes_basic_auth_and_is_told_nowhere() -> None:
    server = Server(search=httpx2.ConnectError("no route to ada:hunter2@mlflow.test"))
    tracking = mlflow(server, "http://ada:hunter2@mlflow.test:5000/ml")
    with pytest.raises(TrackingUnavailable) as caught:
        await tracking.trials("exp_1")
    assert server.seen[0].headers["authorization"] == "Basic " + b64encode(b"ada:hunter2").decode()
    assert str(server.seen[0].url).startswith("http://mlflow.test:5000/ml/api/2.0/mlflow/")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(tracking.run_url("exp_1", "r1"))


async def test_a_wrong_password_is_no_readiness_and_an_empty_server_is() -> None:
    await mlflow(Server(**{"get-by-name": httpx2.Response(404, json={})})).ping()
    with pytest.raises(TrackingUnavailable, match="401"):
        await mlflow(Server(**{"get-by-name": httpx2.Response(401, text="who?")})).ping()


async def test_a_read_is_tried_twice_after_a_cut_connection_and_once_after_a_timeout() -> None:
    for error, num_calls in ((httpx2.ReadError("cut"), 2), (httpx2.ReadTimeout("late"), 1)):
        server = Server(**{"get-by-name": error})
        with pytest.raises(TrackingUnavailable):
            await mlflow(server).ping()
        assert len(server.seen) == num_calls


async def test_a_write_is_tried_once() -> None:
    server = Server(search={"runs": [run("open")]}, update=httpx2.ReadError("cut"))
    with pytest.raises(TrackingUnavailable):
        await mlflow(server).close_runs("exp_1", "FINISHED")
    assert [request.url.path.rpartition("/")[2] for request in server.seen].count("update") == 1


@pytest.mark.parametrize("answer", [httpx2.Response(200, text="<html>"), httpx2.Response(200, text="[]")])
async def test_another_server_at_the_address_is_no_mlflow(answer: httpx2.Response) -> None:
    with pytest.raises(TrackingUnavailable, match="is not MLflow"):
        await mlflow(Server(search=answer)).trials("exp_1")


async def test_an_artifact_that_is_not_listed_is_not_found_and_one_that_is_could_not_be_read() -> None:
    broken = httpx2.Response(500)
    files = {"files": [{"path": "a/b.zip", "is_dir": False, "file_size": 3}]}
    tracking = mlflow(Server(**{"get-artifact": broken, "list": files}))
    with pytest.raises(ArtifactNotFound):
        [chunk async for chunk in tracking.open_artifact("r1", "a/other.zip")]
    with pytest.raises(TrackingUnavailable):
        [chunk async for chunk in tracking.open_artifact("r1", "a/b.zip")]


async def test_a_refused_folder_is_not_found() -> None:
    tracking = mlflow(Server(list=httpx2.Response(400, json={"error_code": "INVALID_PARAMETER_VALUE"})))
    with pytest.raises(ArtifactNotFound):
        await tracking.artifacts("r1", "../..")


async def test_the_page_of_the_parent_run_is_known_once_the_runs_were_read() -> None:
    server = Server(search={"runs": [run("p", simclr__role="parent")]})
    tracking = mlflow(server)
    assert tracking.run_url("exp_1", None) is None
    await tracking.trials("exp_1")
    assert tracking.run_url("exp_1", None) == "http://mlflow.test:5000/#/experiments/7/runs/p"
    assert tracking.run_url("exp_1", "r1") == "http://mlflow.test:5000/#/experiments/7/runs/r1"


async def test_a_run_s_page_is_where_people_reach_mlflow_if_that_is_elsewhere() -> None:
    transport = httpx2.MockTransport(Server(search={"runs": []}))
    tracking = MlflowTracking("http://mlflow:5000", ui_url="https://mlflow.lab.example/", transport=transport)
    await tracking.trials("exp_1")
    assert tracking.run_url("exp_1", "r1") == "https://mlflow.lab.example/#/experiments/7/runs/r1"


@pytest.mark.parametrize(
    ("uri", "bare"),
    [
        ("http://a:b@host:5000/p", "http://host:5000/p"),
        ("http://host:5000", "http://host:5000"),
        ("https://user@[::1]:5000/", "https://[::1]:5000/"),
    ],
)
def test_userinfo_is_taken_out_of_an_address(uri: str, bare: str) -> None:
    assert without_userinfo(uri) == bare
