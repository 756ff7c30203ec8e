"""One request is one experiment, one job and one run, however often it is sent."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import httpx2
import pytest
from mlflow import MlflowClient

from service.client import Client
from tests.conftest import RunningStack
from tests.harness.experiments import SHORT, finish

pytestmark = pytest.mark.ray

NUM_REQUESTS = 50


def test_one_key_in_fifty_requests_at_once_is_one_experiment_one_job_and_one_run(stack: RunningStack) -> None:
    body = {"name": "sent again and again", "kind": "pretrain", "spec": SHORT}

    answers = asyncio.run(_post_at_once(stack.url, body, key=secrets.token_hex(8)))

    assert {answer.status_code for answer in answers} <= {200, 202}
    assert [answer.status_code for answer in answers].count(202) == 1
    (experiment_id,) = {answer.json()["id"] for answer in answers}
    with Client(stack.url, retry_for_s=60) as client:
        finish(client, experiment_id, epochs=SHORT["epochs"])
    jobs = httpx2.get(f"{stack.ray_dashboard}/api/jobs/", timeout=30).json()
    assert [job["metadata"].get("experiment_id") for job in jobs].count(experiment_id) == 1
    mlflow = MlflowClient(stack.mlflow_uri)
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    runs = mlflow.search_runs(experiments, f"tags.`simclr.experiment_id` = '{experiment_id}'")
    assert sorted(run.data.tags["simclr.role"] for run in runs) == ["parent", "trial"]


async def _post_at_once(url: str, body: dict[str, Any], *, key: str) -> list[httpx2.Response]:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        requests = [http.post("/experiments", json=body, headers={"Idempotency-Key": key}) for _ in range(NUM_REQUESTS)]
        return list(await asyncio.gather(*requests))
