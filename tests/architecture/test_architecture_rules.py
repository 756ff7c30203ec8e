"""The import rules of pyproject.toml hold, and the service at work loads nothing that trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.harness.http_app import pretrain_body

ROOT = Path(__file__).parents[2]

# Real adapters over addresses where nothing listens: what a request loads, it loads nevertheless.
SERVE_SOME_REQUESTS = """
import asyncio, json, sys
import httpx2
import service.__main__
from service.app import build
from service.settings import Settings

async def main(home, datasets, body):
    at_start = list(sys.modules)
    nowhere = "http://127.0.0.1:9"
    app = build(Settings(home=home, datasets=datasets, ray_address=nowhere, mlflow_uri=nowhere))
    sweep = {**body, "kind": "sweep", "spec": {"base": body["spec"], "study": "temperature"}}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000") as http:
        answers = [await http.post("/experiments?validate_only=true", json=each) for each in (body, sweep)]
        answers += [await http.get(path) for path in ("/experiments", "/studies", "/datasets")]
    print(json.dumps([[answer.status_code for answer in answers], at_start, list(sys.modules)]))

asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
"""


def test_the_import_rules_hold() -> None:
    # In a process of its own: it sets up logging for all.
    words = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    report = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    assert report.returncode == 0, report.stdout


def test_a_service_at_work_loads_nothing_that_trains(tmp_path: Path, datasets_dir: Path) -> None:
    words = [sys.executable, "-c", SERVE_SOME_REQUESTS, str(tmp_path), str(datasets_dir), json.dumps(pretrain_body())]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)

    statuses, at_start, at_work = json.loads(shown.stdout)
    assert set(statuses) == {200}
    never = {"torch", "torchvision", "ray", "mlflow", "matplotlib", "optuna"}
    assert never.isdisjoint(packages(at_work))
    assert (never | {"numpy", "scipy", "sklearn", "PIL", "boto3"}).isdisjoint(packages(at_start))


def packages(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}
