"""Refusals that no other file shows: hostile text, slow clients, races, strangers' verbs, secrets everywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from service.cluster import RayJobs
from service.dispatch.dispatcher import Dispatcher
from service.edge import deps, middleware
from service.edge.auth import ensure_guarded
from service.edge.observability import RequestMetrics, configure_logging
from service.edge.slow_client import SlowClient
from service.experiment import State
from service.ports import Role
from service.settings import Settings
from service.tracking import MlflowTracking
from tests.harness.http_app import HttpApp, assert_problem, http_app, pointers, pretrain_body

pytestmark = pytest.mark.anyio

CANARY = "canary-0123456789abcdef"
NUL_PATHS = [
    "/experiments/exp%00x",
    "/experiments/exp%00x/trials",
    "/experiments?name=a%00b",
    "/experiments?label=a:b%00",
    "/compare?ids=a,b%00",
]


@pytest.mark.parametrize("path", NUL_PATHS)
async def test_a_nul_that_no_database_text_holds_is_refused(service: HttpApp, path: str) -> None:
    assert_problem(await service.http.get(path), 422, "parameters_invalid")


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/experiments", {**pretrain_body(), "name": "a\0b"}, "/name"),
        ("/experiments", {**pretrain_body(), "labels": {"k": "\0"}}, "/labels/k"),
        ("/experiments", {**pretrain_body(), "labels": {"\0": "v"}}, "/labels/\0"),
        ("/experiments", {**pretrain_body(), "priority": 2**40}, "/priority"),
        ("/tokens", {"name": "a\0"}, "/name"),
        ("/tokens", {"name": "a", "owner": "a\0"}, "/owner"),
        ("/tokens", {"name": "a", "expires_at": "9999-12-31T23:59:59-12:00"}, "/expires_at"),
        ("/tokens", {"name": "a", "expires_at": "2099-01-01T00:00:00"}, "/expires_at"),
        ("/tokens", {"name": "a", "expires_at": 4_000_000_000}, "/expires_at"),
    ],
)
async def test_what_no_column_holds_is_refused_in_a_body(
    service: HttpApp, path: str, body: dict[str, Any], pointer: str
) -> None:
    answer = await service.http.post(path, json=body)

    assert_problem(answer, 422)
    assert pointers(answer) == [pointer]


async def test_a_nul_in_a_token_id_or_a_key_is_refused(service: HttpApp) -> None:
    assert_problem(await service.http.delete("/tokens/a%00"), 422)
    headers = [(b"Idempotency-Key", b"a\x00b")]
    assert_problem(await service.http.post("/experiments", json=pretrain_body(), headers=headers), 400)


@pytest.mark.parametrize(
    "word", ["artifact_location", "env_vars", "runtime_env", "import_path", "callbacks", "trainer.loop.train"]
)
async def test_a_sweeps_space_names_fields_of_a_spec_and_nothing_that_runs(service: HttpApp, word: str) -> None:
    spec = {"base": pretrain_body()["spec"], "space": {word: {"choice": ["x"]}}}

    answer = await service.http.post("/experiments", json={"name": "s", "kind": "sweep", "spec": spec})

    assert pointers(answer) == [f"/spec/space/{word}"]


async def test_a_grid_of_a_million_points_is_refused_without_being_counted_out(service: HttpApp) -> None:
    values = {"choice": [step / 1000 for step in range(1, 101)]}
    space = {"loss.temperature": values, "optim.base_lr": values, "optim.weight_decay": values}
    body = {"name": "s", "kind": "sweep", "spec": {"base": pretrain_body()["spec"], "space": space}}

    answer = await service.http.post("/experiments", json=body)

    assert pointers(answer) == ["/spec/space"]
    assert "more than 32" in answer.json()["detail"]


async def test_a_wrong_method_names_every_right_one(service: HttpApp) -> None:
    created = await service.submit()

    assert (await service.http.put("/experiments")).headers["allow"] == "GET, POST"
    assert (await service.http.post(f"/experiments/{created['id']}")).headers["allow"] == "DELETE, GET, PATCH"


async def test_anothers_verbs_find_no_experiment(service: HttpApp) -> None:
    ada, bob = await service.token(owner="ada"), await service.token(owner="bob")
    url = f"/experiments/{(await service.submit(headers=ada))['id']}"

    for verb, body in (("cancel", None), ("pause", None), ("resume", None), ("clone", {}), ("continue", {"epochs": 9})):
        assert_problem(await service.http.post(f"{url}/{verb}", json=body, headers=bob), 404, "experiment_not_found")
    assert_problem(await service.http.patch(url, json={}, headers={**bob, "If-Match": "*"}), 404)
    assert (await service.http.get(url, headers=ada)).json()["state"] == "queued"


async def test_of_two_verbs_at_once_one_wins_and_the_state_is_legal(service: HttpApp) -> None:
    for _ in range(5):
        url = f"/experiments/{(await service.submit())['id']}"
        answers = await asyncio.gather(*(service.http.post(f"{url}/{verb}") for verb in ("pause", "cancel")))

        assert {answer.status_code for answer in answers} <= {200, 409}
        assert (await service.http.get(url)).json()["state"] == "cancelled"


async def test_a_verb_that_comes_after_the_end_changes_nothing(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    await service.succeed(created["id"])

    assert_problem(await service.http.post(f"/experiments/{created['id']}/cancel"), 409, "illegal_transition")
    assert (await service.store.get(created["id"])).state is State.SUCCEEDED


# --- slow clients ---------------------------------------------------------------------------------


async def test_a_body_that_trickles_in_is_given_up(service: HttpApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deps, "BODY_TIMEOUT_S", 0.05)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await service.http.post("/experiments", content=trickle(), headers={"Content-Type": "application/json"})

    assert_problem(answer, 408, "body_too_slow")


async def test_a_client_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "SLOW_CLIENT_TIMEOUT_S", 0.05)

    async def answers(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def never(_: Message) -> None:
        await asyncio.Event().wait()

    async def nothing() -> Message:
        return {"type": "http.request", "body": b""}

    app = middleware.Edge(answers, settings=Settings(), metrics=RequestMetrics(CollectorRegistry()))
    scope = {"type": "http", "method": "GET", "path": "/livez", "headers": [(b"host", b"127.0.0.1")]}
    with pytest.raises(SlowClient):
        await app(scope, nothing, never)


# --- logs and secrets -----------------------------------------------------------------------------


@pytest.fixture
def service_logs() -> Iterator[None]:
    """Log as the service does, and as before afterwards."""
    config, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logging()
    yield
    structlog.configure(**config)
    root.handlers, root.level = handlers, level


@pytest.mark.usefixtures("service_logs")
def test_a_log_line_stays_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()  # to the stream that is captured
    structlog.get_logger("service").warning("refused", path="/a\r\n{}\x1b[31m\u2028")
    logging.getLogger("uvicorn").warning("a\nb")

    lines = capsys.readouterr().err.split("\n")

    assert [json.loads(line)["event"] for line in lines if line] == ["refused", "a\nb"]
    assert "\x1b" not in "".join(lines)


def test_nothing_has_a_default_password() -> None:
    settings = Settings()
    assert (settings.database_url, settings.ray_token, settings.bootstrap_token, settings.mlflow_uri) == (None,) * 4


async def test_secrets_are_in_no_answer_log_metric_or_job(
    tmp_path: Path, migrated_database: Path, datasets_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = {
        "database_url": f"postgresql://ada:{CANARY}@db.test/simclr",
        "mlflow_uri": f"http://ada:{CANARY}@mlflow.test:5000",
        "ray_address": f"http://ada:{CANARY}@ray.test:8265",
        "ray_token": f"ray-{CANARY}",
        "bootstrap_token": f"simclr_{CANARY}",
    }
    async with http_app(tmp_path, database=migrated_database, datasets=datasets_dir, **secrets) as service:
        settings: Settings = service.app.state.services.settings
        await ensure_guarded(service.store, settings)
        bearer = {"Authorization": f"Bearer simclr_{CANARY}"}
        made = await service.http.post("/tokens", json={"name": "ci", "role": "viewer"}, headers=bearer)
        submitted = await service.submit(headers=bearer)
        dispatcher = Dispatcher(
            store=service.store,
            cluster=service.cluster,
            tracking=service.tracking,
            blobs=service.blobs,
            settings=settings,
            claim="test",
        )
        await dispatcher.step()
        url = f"/experiments/{submitted['id']}"
        parts = (
            "",
            "/trials",
            "/metrics",
            "/logs",
            "/timeline",
            "/report",
            "/report?format=html",
            "/encoder",
            "/artifacts",
        )
        paths = [
            "/metrics",
            "/version",
            "/tokens",
            "/experiments",
            "/encoders",
            "/openapi.json",
            "/ui",
            "/readyz",
            "/nope",
        ]
        answers = [await service.http.get(path, headers=bearer) for path in [*paths, *(url + part for part in parts)]]
        answers.append(await service.http.post("/ui/login", data={"token": f"wrong-{CANARY}"}))
        answers.append(await service.http.get("/experiments", headers={"Authorization": f"Basic {CANARY}"}))
        cookie = await service.http.get("/experiments", headers={"Cookie": f"simclr_token=x{CANARY}"})
        answers.append(cookie)
        told = [answer.text + str(answer.headers) for answer in answers]
        jobs = [f"{job.entrypoint} {job.env} {job.metadata} {job.document!r}" for job in service.cluster.jobs.values()]
        adapters = [
            repr(RayJobs(str(settings.ray_address), token=settings.ray_token)),
            repr(MlflowTracking(secrets["mlflow_uri"])),
        ]
    shown = "\n".join([*told, *jobs, *adapters, repr(settings), str(settings), *capfd.readouterr()])

    assert made.status_code == 201
    assert len(jobs) == 1
    assert CANARY not in shown
    assert made.json()["token"] not in shown


async def test_a_viewers_token_opens_nothing_that_changes_tokens(service: HttpApp) -> None:
    viewer = await service.token(Role.VIEWER)

    assert_problem(await service.http.post("/tokens", json={"name": "x", "role": "admin"}, headers=viewer), 403)


def test_every_refusal_in_the_table_is_shown_by_tests_that_exist() -> None:
    root = Path(__file__).parents[3]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "refusals.md").read_text(encoding="utf-8")))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))

    assert len(named) > 60
    assert named - set(re.findall(r"def (test_\w+)\(", sources)) == set()
