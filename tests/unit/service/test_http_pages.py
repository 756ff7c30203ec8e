"""The pages for people: what they show, escaped, and how one logs in."""

from __future__ import annotations

import pytest

from tests.harness.http_app import HttpApp, assert_problem, pretrain_body

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html,application/xhtml+xml"}


async def test_the_pages_show_experiments_with_names_escaped(service: HttpApp) -> None:
    created = await service.submit({**pretrain_body(), "name": "<script>alert(1)</script>"})
    await service.run(created["id"])

    listed = await service.http.get("/ui")
    shown = await service.http.get(f"/ui/experiments/{created['id']}")

    for page in (listed, shown):
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;" in page.text
        assert "'unsafe" not in page.headers["content-security-policy"]
    assert "running" in shown.text
    assert (await service.http.get("/static/experiment.js")).status_code == 200


async def test_a_page_survives_mlflows_silence(service: HttpApp) -> None:
    created = await service.submit()
    await service.run(created["id"])
    service.tracking.is_down = True

    shown = await service.http.get(f"/ui/experiments/{created['id']}")

    assert shown.status_code == 200
    assert "MLflow does not answer" in shown.text


async def test_a_browser_without_a_token_is_asked_for_one(service: HttpApp) -> None:
    await service.token()

    for path in ("/ui", "/ui/login"):
        page = await service.http.get(path, headers=BROWSER)
        assert page.status_code == 401
        assert "<form" in page.text
        assert "simclr token create NAME --owner YOU" in page.text
    assert_problem(await service.http.get("/ui"), 401)


async def test_a_good_token_becomes_a_cookie_that_scripts_cannot_read(service: HttpApp) -> None:
    secret = (await service.token())["Authorization"].removeprefix("Bearer ")
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    wrong = await service.http.post("/ui/login", content="token=simclr_wrong", headers={**form, **BROWSER})
    assert (wrong.status_code, "<form" in wrong.text) == (401, True)
    assert_problem(await service.http.post("/ui/login", content="token=x", headers=form), 401)
    right = await service.http.post("/ui/login", content=f"token={secret}", headers=form)
    assert right.status_code == 303
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert (await service.http.get("/ui", headers=BROWSER)).status_code == 200


async def test_the_cookie_works_from_the_services_own_pages_only(service: HttpApp) -> None:
    secret = (await service.token())["Authorization"].removeprefix("Bearer ")
    cookie = {"Cookie": f"simclr_token={secret}"}

    other_site = await service.http.post(
        "/experiments", json=pretrain_body(), headers={**cookie, "Sec-Fetch-Site": "cross-site"}
    )
    assert_problem(other_site, 403, "origin_not_allowed")
    await service.submit(headers={**cookie, "Origin": "http://127.0.0.1:8000"})
