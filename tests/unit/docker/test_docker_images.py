"""The Dockerfile: linted, and its service image holds what the service imports and nothing heavy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.harness.image_packages import REFUSE, closure, listed, not_in_image

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
HEAVY = {"torch", "torchvision", "ray", "mlflow", "optuna", "matplotlib"}

# Serves, in a process where only the packages of the image can be imported, what reaches furthest.
SERVE = """
import asyncio, importlib, pkgutil, tempfile
from pathlib import Path

import service
SCRIPTS = ("service.cli.__main__", "service.store.migrations.env")  # run, not imported: both are run below
for module in pkgutil.walk_packages(service.__path__, "service."):
    if module.name not in SCRIPTS:
        importlib.import_module(module.name)

import boto3
import psycopg
from service.store import migrations
from service.cli import main
from tests.harness.http_app import http_app, pretrain_body

SWEEP = {
    "base": pretrain_body(data={"dataset": "digits", "image_size": 8})["spec"],
    "space": {"loss.temperature": {"choice": [0.1, 0.5]}},
}
REQUESTS = [
    ("GET", "/datasets", None),
    ("GET", "/studies", None),
    ("GET", "/openapi.json", None),
    ("GET", "/ui", None),
    ("POST", "/experiments?validate_only=true", pretrain_body(data={"dataset": "openmoji", "image_size": 8})),
    ("POST", "/experiments?validate_only=true", pretrain_body(data={"dataset": "digits", "image_size": 8})),
    ("POST", "/experiments?validate_only=true", {"name": "s", "kind": "sweep", "spec": SWEEP}),
    ("POST", "/experiments", pretrain_body(data={"dataset": "digits", "image_size": 8})),
    ("GET", "/metrics", None),
]

async def serve(folder):
    database = folder / "template.db"
    migrations.upgrade(f"sqlite:///{database}")
    work = folder / "work"
    work.mkdir()
    async with http_app(work, database=database) as app:
        for method, path, body in REQUESTS:
            answer = await app.http.request(method, path, json=body, follow_redirects=True)
            assert answer.is_success, (path, answer.text[:500])
            problems = [item["problem"] for item in answer.json()["items"]] if path == "/datasets" else []
            assert not any("import" in (text or "").lower() for text in problems), problems

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(serve(Path(folder)))
boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
print("served")
"""


def locked() -> dict[str, str]:
    """Return name and version of each entry of the lock."""
    text = (ROOT / "requirements.lock").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE))


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_service_runs_on_its_image_s_packages_alone() -> None:
    refused = not_in_image("service.in", "simclr-service")
    assert set(refused) >= HEAVY
    code = [sys.executable, "-c", REFUSE.format(modules=refused) + SERVE]
    result = subprocess.run(code, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith("served\n")


def test_the_service_image_holds_nothing_heavy() -> None:
    assert not closure(listed("service.in")) & HEAVY


def test_every_package_of_the_service_image_is_locked_with_hashes() -> None:
    assert closure(listed("service.in")) <= set(locked())


def test_every_package_of_the_mlflow_image_is_locked_with_hashes() -> None:
    assert {canonicalize_name(Requirement(line).name) for line in listed("mlflow.in")} <= set(locked())


def test_the_images_use_the_locked_uv() -> None:
    assert f"ghcr.io/astral-sh/uv:{locked()['uv']} " in (DOCKER / "Dockerfile").read_text()


def test_every_final_image_runs_as_an_unprivileged_number_and_reports_its_health() -> None:
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    finals = {stage.split(" AS ")[1].split()[0]: stage for stage in stages if stage.startswith("base AS ")}
    for name in ("service", "trainer", "mlflow"):
        assert "\nUSER 10001\n" in finals[name]
        assert "\nHEALTHCHECK " in finals[name]
