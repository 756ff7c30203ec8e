"""What is said to Ray and how its answers are read; the real thing is met in the conformance suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from service.cluster import RayJobs
from service.errors import ClusterUnavailable
from service.ports import JobStatus

pytestmark = pytest.mark.anyio

Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def ray(handler: Handler, **arguments: Any) -> RayJobs:
    return RayJobs("http://ray.test:8265", transport=httpx2.MockTransport(handler), **arguments)


async def test_a_submit_carries_id_command_environment_and_metadata() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"job_id": "e-a1", "submission_id": "e-a1"})

    await ray(answer).submit("e-a1", entrypoint="true", env={"A": "1"}, metadata={"attempt": "1"})
    assert (seen[0].method, seen[0].url.path) == ("POST", "/api/jobs/")
    assert json.loads(seen[0].content) == {
        "submission_id": "e-a1",
        "entrypoint": "true",
        "runtime_env": {"env_vars": {"A": "1"}},
        "metadata": {"attempt": "1"},
    }


async def test_an_id_that_exists_is_success() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            return httpx2.Response(500, text="Traceback ...\nRuntimeError: Job with submission_id e-a1 already exists.")
        return httpx2.Response(200, json={"status": "RUNNING", "message": None})

    await ray(answer).submit("e-a1", entrypoint="true", env={}, metadata={})


async def test_a_refused_submit_says_why_in_one_line() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            return httpx2.Response(500, text="Traceback (most recent call last):\n  File ...\nValueError: no agent\n")
        return httpx2.Response(404, text="Job e-a1 does not exist")

    with pytest.raises(ClusterUnavailable, match=r"Ray answers 500: ValueError: no agent$"):
        await ray(answer).submit("e-a1", entrypoint="true", env={}, metadata={})


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"])
async def test_each_status_of_ray_is_known(status: str) -> None:
    cluster = ray(lambda _: httpx2.Response(200, json={"status": status, "message": "two\nlines"}))
    observation = await cluster.observe("e-a1")
    assert (observation.status, observation.message) == (JobStatus(status.lower()), "two lines")


@pytest.mark.parametrize(
    ("status", "state", "seen_as"),
    [
        ("RUNNING", "ALIVE", "running"),
        ("RUNNING", "DEAD", "missing"),
        ("PENDING", "DEAD", "missing"),
        ("SUCCEEDED", "DEAD", "succeeded"),
        ("FAILED", "DEAD", "failed"),
        ("RUNNING", None, "running"),  # the head has not heard of its nodes yet
    ],
)
async def test_a_job_whose_driver_was_on_a_dead_node_runs_no_more(status: str, state: str | None, seen_as: str) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/api/v0/nodes":
            assert request.url.params["filter_values"] == "n1"
            nodes = [] if state is None else [{"node_id": "n1", "state": state}]
            return httpx2.Response(200, json={"result": True, "data": {"result": {"result": nodes}}})
        return httpx2.Response(200, json={"status": status, "message": "", "driver_node_id": "n1"})

    assert (await ray(answer).observe("e-a1")).status is JobStatus(seen_as)


async def test_many_jobs_on_one_living_node_ask_for_it_once() -> None:
    paths: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.path)
        if request.url.path == "/api/v0/nodes":
            nodes = [{"node_id": "n1", "state": "ALIVE"}]
            return httpx2.Response(200, json={"result": True, "data": {"result": {"result": nodes}}})
        return httpx2.Response(200, json={"status": "RUNNING", "driver_node_id": "n1"})

    cluster = ray(answer)
    for number in range(5):
        await cluster.observe(f"e{number}-a1")
    assert paths.count("/api/v0/nodes") == 1


async def test_the_token_is_sent_and_never_told() -> None:
    seen: list[str | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("authorization"))
        return httpx2.Response(401, text="missing token hunter2")

    with pytest.raises(ClusterUnavailable, match="refuses the service's token") as caught:
        await ray(answer, token=SecretStr("hunter2")).observe("e-a1")
    assert seen == ["Bearer hunter2"]
    assert "hunter2" not in str(caught.value)


async def test_a_wrong_token_is_no_readiness_though_the_health_check_is_open_to_all() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        is_right = request.headers.get("authorization") == "Bearer right"
        if request.url.path == "/api/gcs_healthz":
            return httpx2.Response(200, text="success")
        return httpx2.Response(404 if is_right else 403, text="no such job")

    await ray(answer, token=SecretStr("right")).ping()
    for token in (SecretStr("wrong"), None):
        with pytest.raises(ClusterUnavailable, match="refuses the service's token"):
            await ray(answer, token=token).ping()


async def test_capacity_is_the_sum_of_living_nodes_less_what_is_used() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/api/v0/nodes":
            assert request.url.params["filter_values"] == "ALIVE"
            nodes = [{"resources_total": {"CPU": 4.0, "GPU": 1.0}}, {"resources_total": {"CPU": 2.0}}]
            return httpx2.Response(200, json={"result": True, "data": {"result": {"result": nodes}}})
        usage = {"CPU": [1.5, 6.0], "memory": [0, 1]}
        return httpx2.Response(200, json={"data": {"clusterStatus": {"loadMetricsReport": {"usage": usage}}}})

    capacity = await ray(answer).capacity()
    assert (capacity.cpus_total, capacity.cpus_free, capacity.gpus_total, capacity.gpus_free) == (6, 4.5, 1, 1)
    assert capacity.nodes == 2


async def test_a_cluster_that_reports_no_load_has_all_of_it_free() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/api/v0/nodes":
            return httpx2.Response(200, json={"data": {"result": {"result": [{"resources_total": {"CPU": 4.0}}]}}})
        return httpx2.Response(200, json={"data": {"clusterStatus": None, "autoscalingStatus": None}})

    assert (await ray(answer).capacity()).cpus_free == 4


@pytest.mark.parametrize("error", [httpx2.ConnectError("refused"), httpx2.ReadTimeout("late"), httpx2.ReadError("cut")])
async def test_what_does_not_answer_is_unavailable(error: Exception) -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        raise error

    cluster = ray(answer)
    with pytest.raises(ClusterUnavailable, match="Ray does not answer"):
        await cluster.observe("e-a1")
    with pytest.raises(ClusterUnavailable):
        await cluster.submit("e-a1", entrypoint="true", env={}, metadata={})
    with pytest.raises(ClusterUnavailable):
        await cluster.ping()


@pytest.mark.parametrize("body", ["<html>", "[]"])
async def test_another_server_at_the_address_is_no_ray(body: str) -> None:
    with pytest.raises(ClusterUnavailable, match="is not Ray"):
        await ray(lambda _: httpx2.Response(200, text=body)).observe("e-a1")


async def test_stopping_what_is_not_there_is_no_error_and_a_failed_stop_is() -> None:
    await ray(lambda _: httpx2.Response(404, text="Job e-a1 does not exist")).stop("e-a1")
    with pytest.raises(ClusterUnavailable):
        await ray(lambda _: httpx2.Response(500, text="trace")).stop("e-a1")


@pytest.mark.parametrize("status", [404, 500])
async def test_a_log_that_is_lost_is_empty(status: int) -> None:
    assert await ray(lambda _: httpx2.Response(status, text="gone")).logs("e-a1") == ""
