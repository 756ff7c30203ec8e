"""Errors of the framework, probes, metrics and documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from service.app import describe_app
from service.edge.problems import MEDIA_TYPE
from service.errors import StoreUnavailable
from service.ports import Role
from tests.harness.http_app import HttpApp, assert_problem

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "path", ["/nope", "/experiments/a/b/c", "/api/jobs/", "/static/../app.py", "/static/VENDORED.md"]
)
async def test_an_unknown_route_is_a_problem(service: HttpApp, path: str) -> None:
    assert_problem(await service.http.get(path), 404)


async def test_a_wrong_method_is_a_problem_that_names_the_right_ones(service: HttpApp) -> None:
    answer = await service.http.put("/experiments", json={})

    assert_problem(answer, 405, "method_not_allowed")
    assert "allow" in answer.headers


async def test_a_body_over_the_limit_is_refused_before_it_is_read(service: HttpApp) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": str(50 * 2**20)}

    assert_problem(await service.http.post("/experiments", content=b"{}", headers=headers), 413)


async def test_readiness_names_what_does_not_answer(service: HttpApp) -> None:
    assert (await service.http.get("/readyz")).json()["status"] == "ready"
    service.cluster.is_down = service.tracking.is_down = True

    answer = await service.http.get("/readyz")

    assert_problem(answer, 503, "not_ready")
    assert "ray" in answer.json()["detail"]
    assert "mlflow" in answer.json()["detail"]
    assert "database" not in answer.json()["detail"]
    assert (await service.http.get("/livez")).status_code == 200


def take_database_away(service: HttpApp) -> None:
    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("postgresql://user:password@host is gone")

    for method in ("list", "list_tokens", "find_token", "ping", "count_by_state"):
        setattr(service.store, method, away)


async def test_an_absent_database_is_503_with_a_time_to_come_back(service: HttpApp) -> None:
    take_database_away(service)

    answer = await service.http.get("/experiments")

    assert_problem(answer, 503, "database_unavailable")
    assert answer.json()["retryable"] is True
    assert "password" not in answer.text
    assert_problem(await service.http.get("/readyz"), 503)


async def test_metrics_count_requests_by_route_and_experiments_by_state(service: HttpApp) -> None:
    created = await service.submit()
    await service.http.get(f"/experiments/{created['id']}")

    text = (await service.http.get("/metrics")).text

    assert 'simclr_experiments{state="queued"} 1.0' in text
    assert 'simclr_http_requests_total{method="GET",route="/experiments/{experiment_id}",status="200"} 1.0' in text
    assert created["id"] not in text


async def test_who_was_known_a_moment_ago_still_reads_metrics_while_the_database_is_away(service: HttpApp) -> None:
    known, new = await service.token(Role.ADMIN), await service.token(Role.ADMIN)
    assert (await service.http.get("/metrics", headers=known)).is_success
    take_database_away(service)

    answer = await service.http.get("/metrics", headers=known)

    assert "simclr_dispatcher_lag_seconds" in answer.text
    assert_problem(await service.http.get("/metrics", headers=new), 503, "database_unavailable")
    assert_problem(await service.http.get("/experiments", headers=known), 503, "database_unavailable")
    assert_problem(await service.http.get("/tokens", headers=known), 503, "database_unavailable")


async def test_version_says_which_versions_answer(service: HttpApp) -> None:
    assert set((await service.http.get("/version")).json()) == {"service", "api", "python"}


async def test_the_documentation_asks_no_other_host_for_anything(service: HttpApp) -> None:
    page = await service.http.get("/docs")

    assert "'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        answer = await service.http.get(asset)
        assert answer.status_code == 200, asset
        assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "text/css", "image/svg+xml")


async def test_the_openapi_document_is_valid_and_complete(service: HttpApp) -> None:
    document = (await service.http.get("/openapi.json")).json()

    validate(document)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    for operation in operations:
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert {"400", "401", "403", "422", "429", "500", "503"} <= set(errors)
        assert all(set(answer["content"]) == {MEDIA_TYPE} for answer in errors.values()), operation["operationId"]
        assert operation["summary"]
    body = document["paths"]["/experiments"]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["schema"]["oneOf"]) == len(body["examples"]) == 2
    assert "temperature" in document["components"]["schemas"]["LossSpec"]["properties"]
    assert document == json.loads(json.dumps(describe_app().openapi()))


def test_the_kept_openapi_document_is_that_of_the_code() -> None:
    kept = Path(__file__).parents[3] / "docs" / "openapi.json"

    assert describe_app().openapi() == json.loads(kept.read_text(encoding="utf-8")), "stale: make openapi"
