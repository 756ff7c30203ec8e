"""Who may call, from where, and how often."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from service.app import describe_app
from service.edge.auth import PUBLIC, ensure_guarded, permission_of
from service.errors import SettingsError
from service.ports import ExperimentRecord, Role
from service.settings import Settings
from tests.harness.http_app import START, HttpApp, assert_problem, http_app, pretrain_body
from trainer.context import experiment_key

pytestmark = pytest.mark.anyio

ROUTES = [route for route in describe_app().routes if isinstance(route, APIRoute)]
OPEN = {"/livez", "/readyz", "/ui/login"}
SECRET = "simclr_canary-0123456789abcdef"  # noqa: S105 - a canary


def test_every_route_declares_its_permission() -> None:
    assert [route for route in describe_app().routes if permission_of(route) is None] == []
    assert {route.path for route in ROUTES if permission_of(route) == PUBLIC} == OPEN


def calls() -> list[tuple[str, str]]:
    return [
        (method, route.path) for route in ROUTES for method in sorted(route.methods or ()) if route.path not in OPEN
    ]


def url_of(path: str) -> str:
    plain = path.replace("{path:path}", "p")
    return plain.format(experiment_id="exp_x", trial_id="t", token_id="t", name="n")  # noqa: S106 - a path


async def test_every_route_needs_a_token_that_is_good_now(service: HttpApp) -> None:
    expired = await service.token(Role.ADMIN, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked = await service.token(Role.ADMIN, revoked_at=START)
    assert len(calls()) > 30
    for method, path in calls():
        for headers in (
            {},
            {"Authorization": "Bearer simclr_wrong"},
            {"Authorization": "Basic YTpi"},
            expired,
            revoked,
        ):
            answer = await service.http.request(method, url_of(path), headers=headers)
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_probes_need_no_token(service: HttpApp) -> None:
    await service.token()

    assert (await service.http.get("/livez")).status_code == 200
    assert (await service.http.get("/readyz")).status_code == 200


async def test_a_route_without_a_permission_is_closed_to_everyone(service: HttpApp) -> None:
    @service.app.get("/new")
    async def new() -> str:
        return "secret"

    assert_problem(await service.http.get("/new"), 403, "permission_undeclared")


async def test_a_viewer_changes_nothing(service: HttpApp) -> None:
    viewer = await service.token(Role.VIEWER)
    changes = [(method, path) for method, path in calls() if method != "GET"]
    assert len(changes) > 8
    for method, path in changes:
        assert_problem(await service.http.request(method, url_of(path), headers=viewer), 403, "role_insufficient")


async def test_tokens_are_for_admins(service: HttpApp) -> None:
    submitter = await service.token(Role.SUBMITTER)

    assert_problem(await service.http.get("/tokens", headers=submitter), 403)


async def test_anothers_experiment_does_not_exist(service: HttpApp) -> None:
    ada, bob, admin = (
        await service.token(owner="ada"),
        await service.token(owner="bob"),
        await service.token(Role.ADMIN, owner="root"),
    )
    created = await service.submit(headers=ada)
    paths = [path for method, path in calls() if method == "GET" and path.startswith("/experiments/{experiment_id}")]
    assert len(paths) > 8
    for path in paths:
        url = path.replace("{path:path}", "p").format(experiment_id=created["id"], trial_id="t0000")
        assert_problem(await service.http.get(url, headers=bob), 404, "experiment_not_found")
    assert_problem(await service.http.delete(f"/experiments/{created['id']}", headers=bob), 404)
    assert_problem(await service.http.get(f"/compare?ids={created['id']}", headers=bob), 404)
    assert (await service.http.get("/experiments", headers=bob)).json()["items"] == []
    assert (await service.http.get(f"/experiments/{created['id']}", headers=admin)).status_code == 200
    assert len((await service.http.get("/experiments", headers=ada)).json()["items"]) == 1


async def test_a_page_token_of_another_owner_is_refused(service: HttpApp) -> None:
    ada, bob = await service.token(owner="ada"), await service.token(owner="bob")
    for _ in range(2):
        await service.submit(headers=ada)
    token = (await service.http.get("/experiments?page_size=1", headers=ada)).json()["next_page_token"]

    assert_problem(await service.http.get(f"/experiments?page_token={token}", headers=bob), 400)


async def test_a_secret_is_shown_once_and_works_until_it_is_revoked(service: HttpApp) -> None:
    made = await service.http.post("/tokens", json={"name": "boss", "role": "admin"})
    assert made.status_code == 201, made.text
    admin = {"Authorization": f"Bearer {made.json()['token']}"}
    assert_problem(await service.http.get("/experiments"), 401)
    listed = await service.http.get("/tokens", headers=admin)
    assert [token["name"] for token in listed.json()["items"]] == ["boss"]
    assert made.json()["token"] not in listed.text
    created = await service.submit(headers={**admin, "Idempotency-Key": "k"})

    assert (await service.http.delete(f"/tokens/{made.json()['id']}", headers=admin)).status_code == 204
    replay = await service.http.post("/experiments", json=pretrain_body(), headers={**admin, "Idempotency-Key": "k"})
    assert_problem(replay, 401)
    assert_problem(await service.http.get(f"/experiments/{created['id']}", headers=admin), 401)


async def test_a_token_request_is_checked(service: HttpApp) -> None:
    for body in ({"name": ""}, {"name": "x", "role": "root"}, {"name": "x", "expires_at": "2001-01-01T00:00:00Z"}):
        assert_problem(await service.http.post("/tokens", json=body), 422)
    assert_problem(await service.http.delete("/tokens/nope"), 404, "token_not_found")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost@evil.example", ""])
async def test_an_unknown_host_is_refused(service: HttpApp, host: str) -> None:
    assert_problem(await service.http.get("/livez", headers={"Host": host}), 403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
async def test_loopback_names_are_served(service: HttpApp, host: str) -> None:
    assert (await service.http.get("/livez", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8000"])
async def test_other_sites_pages_change_nothing(service: HttpApp, origin: str) -> None:
    answer = await service.http.post("/experiments", json=pretrain_body(), headers={"Origin": origin})

    assert_problem(answer, 403, "origin_not_allowed")


async def test_the_services_own_pages_may_post(service: HttpApp) -> None:
    await service.submit(headers={"Origin": "http://127.0.0.1:8000"})


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_other_content_types_are_refused(service: HttpApp, content_type: str) -> None:
    answer = await service.http.post("/experiments", content=b"{}", headers={"Content-Type": content_type})

    assert_problem(answer, 415, "content_type_unsupported")


async def test_callers_are_limited_each_on_their_own(
    tmp_path: Path, migrated_database: Path, datasets_dir: Path
) -> None:
    async with http_app(tmp_path, database=migrated_database, datasets=datasets_dir, rate_limit="5/minute") as service:
        ada, bob = await service.token(owner="ada"), await service.token(owner="bob")
        statuses = [(await service.http.get("/experiments", headers=ada)).status_code for _ in range(6)]
        limited = await service.http.get("/experiments", headers=ada)
        other = await service.http.get("/experiments", headers=bob)

    assert statuses == [200] * 5 + [429]
    assert_problem(limited, 429, "rate_limited")
    assert 1 <= int(limited.headers["retry-after"]) <= 60
    assert other.status_code == 200


async def test_a_malformed_rate_limit_refuses_to_start(tmp_path: Path, migrated_database: Path) -> None:
    with pytest.raises(SettingsError, match="SIMCLR_RATE_LIMIT"):
        async with http_app(tmp_path, database=migrated_database, rate_limit="often"):
            pass


async def test_an_open_address_without_a_token_refuses_to_start(service: HttpApp) -> None:
    with pytest.raises(SettingsError, match=r"0\.0\.0\.0"):
        await ensure_guarded(service.store, Settings(host="0.0.0.0"))  # noqa: S104 - what is refused


async def test_a_bootstrap_token_opens_an_open_address(tmp_path: Path, migrated_database: Path) -> None:
    async with http_app(
        tmp_path, database=migrated_database, host="::", bootstrap_token=SECRET, allowed_hosts=("lab.example",)
    ) as service:
        await ensure_guarded(service.store, service.app.state.services.settings)
        await ensure_guarded(service.store, service.app.state.services.settings)
        bearer = {"Authorization": f"Bearer {SECRET}"}

        assert_problem(await service.http.get("/experiments"), 401)
        assert (await service.http.get("/tokens", headers=bearer)).status_code == 200
        assert len(await service.store.list_tokens()) == 1
        assert (await service.http.get("/livez", headers={"Host": "lab.example"})).status_code == 200
        assert (await service.http.get("/livez", headers={"Host": "10.1.2.3:8000"})).status_code == 200
        assert_problem(await service.http.get("/livez", headers={"Host": "evil.example"}), 403)


async def test_secrets_appear_nowhere(
    tmp_path: Path, migrated_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with http_app(tmp_path, database=migrated_database, bootstrap_token=SECRET) as service:
        await ensure_guarded(service.store, service.app.state.services.settings)
        bearer = {"Authorization": f"Bearer {SECRET}"}
        answers = [
            await service.http.get(path, headers=bearer)
            for path in ("/metrics", "/version", "/tokens", "/experiments", "/openapi.json", "/nope")
        ]
        answers.append(await service.http.get("/experiments", headers={"Authorization": f"Basic {SECRET}"}))
        shown = "".join(answer.text + str(answer.headers) for answer in answers)
        shown += repr(service.app.state.services.settings) + "".join(capsys.readouterr())

    assert SECRET not in shown


async def test_a_failing_route_gives_a_request_id_and_no_trace(service: HttpApp) -> None:
    async def explode(_: str) -> ExperimentRecord:
        raise RuntimeError("/secret/path in a trace")

    service.store.get = explode  # type: ignore[method-assign, assignment]

    answer = await service.http.get("/experiments/exp_x", headers={"X-Request-ID": "abc-1"})

    assert_problem(answer, 500, "internal_error")
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "abc-1"
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text


async def test_what_a_request_logs_names_it_and_its_experiment(
    service: HttpApp, capsys: pytest.CaptureFixture[str]
) -> None:
    created = await service.submit()
    await service.run(created["id"])
    service.blobs.write(experiment_key(created["id"], "trials.json"), b"no JSON")

    for request_id in ("abc-2", "abc-3"):
        await service.http.get(f"/experiments/{created['id']}/trials", headers={"X-Request-ID": request_id})

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [line for line in lines if line["event"] == "blob_unreadable"]
    assert [(line["request_id"], line["experiment_id"]) for line in told] == [
        ("abc-2", created["id"]),
        ("abc-3", created["id"]),
    ]


async def test_a_request_id_that_is_no_word_is_replaced(service: HttpApp) -> None:
    answer = await service.http.get("/livez", headers={"X-Request-ID": "a b<script>"})

    assert answer.headers["x-request-id"].isalnum()
