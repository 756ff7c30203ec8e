"""docs/api.md: every request in it is sent as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import httpx2
import pytest

from service.experiment import State
from service.ports import Role
from tests.harness.http_app import HttpApp

pytestmark = pytest.mark.anyio

GUIDE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^curl (?:.*\\\n)*.*$", GUIDE, flags=re.MULTILINE)


def as_request(command: str, **places: str) -> httpx2.Request:
    """Return what curl would send."""
    words = iter(shlex.split(command.replace("\\\n", " "), comments=True)[1:])
    method, body, url = None, None, ""
    headers: dict[str, str] = {}
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers |= {name: value} if value else {"Content-Type": "application/json"} if name == "$JSON" else {}
        elif word in ("-X", "-d", "-o"):
            method, body = (next(words), body) if word == "-X" else (method, next(words) if word == "-d" else body)
        elif word != "-N":
            url = word
    for name, value in places.items():
        url = url.replace(f"${name}", value)
    return httpx2.Request(method or ("POST" if body else "GET"), url, headers=headers, content=body)


async def test_every_command_does_what_it_says(service: HttpApp) -> None:
    statuses: list[tuple[str, int]] = []
    for command in COMMANDS:
        if "/events" in command:
            continue  # it goes on until its experiment has ended
        subject = await service.submit()
        if "/continue" in command or "/resume" in command:
            await service.move(subject["id"], State.PAUSED)
            service.leave_checkpoint(subject["id"])
        request = as_request(command, ID=subject["id"], TOKEN_ID="tok_x", URL="http://127.0.0.1:8000")  # noqa: S106 - an id
        request.headers.update(service.http.headers)
        answer = await service.http.send(request)
        if answer.status_code == 201:
            service.http.headers = await service.token(Role.ADMIN)  # from here on one is needed
        statuses.append((f"{request.method} {request.url.path.replace(subject['id'], 'ID')}", answer.status_code))

    assert statuses == [
        ("POST /experiments", 200),
        ("POST /experiments", 202),
        ("POST /experiments", 202),
        ("GET /experiments", 200),
        ("GET /experiments/ID", 200),
        ("GET /experiments/ID/metrics", 200),
        ("GET /experiments/ID/logs", 200),
        ("GET /experiments/ID/timeline", 200),
        ("PATCH /experiments/ID", 200),
        ("POST /experiments/ID/pause", 200),
        ("POST /experiments/ID/resume", 200),
        ("POST /experiments/ID/cancel", 200),
        ("POST /experiments/ID/clone", 202),
        ("POST /experiments/ID/continue", 202),
        ("GET /experiments/ID/encoder", 409),
        ("DELETE /experiments/ID", 204),
        ("POST /tokens", 201),
        ("GET /tokens", 200),
        ("DELETE /tokens/tok_x", 404),
    ]


async def test_the_problem_that_it_shows_is_the_one_that_is_sent(service: HttpApp) -> None:
    shown = json.loads(re.findall(r"```json\n(.*?)```", GUIDE, flags=re.DOTALL)[0])
    body = {"name": "x", "kind": "pretrain", "spec": {"data": {"dataset": "digits"}, "epochs": 0}}

    answer = await service.http.post("/experiments", json=body)

    assert answer.json() == shown
