"""The command line against the real service, as a person or a script uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningStack
from tests.harness.experiments import SHORT

pytestmark = pytest.mark.ray


def simclr(stack: RunningStack, *words: str, status: int = 0) -> Any:
    """Run `simclr WORDS --json`, check its exit status, and return what it printed last."""
    environment = os.environ | {"SIMCLR_URL": stack.url}
    command = [sys.executable, "-m", "service.cli", *words, "--json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == status, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return json.loads(run.stdout or run.stderr)  # an error is no result: it goes to stderr


@pytest.fixture(scope="module")
def request_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cli") / "experiment.json"
    file.write_text(json.dumps({"name": "by-hand", "kind": "pretrain", "spec": SHORT | {"epochs": 2}}))
    return file


@pytest.fixture(scope="module")
def submitted(stack: RunningStack, request_file: Path) -> dict[str, Any]:
    experiment: dict[str, Any] = simclr(stack, "submit", str(request_file), "--wait")
    assert experiment["state"] == "succeeded"
    return experiment


def test_what_was_submitted_is_listed_and_shown(stack: RunningStack, submitted: dict[str, Any]) -> None:
    listed = simclr(stack, "list")
    items = listed["items"] if isinstance(listed, dict) else listed
    assert submitted["id"] in [item["id"] for item in items]
    assert simclr(stack, "show", submitted["id"])["spec_digest"] == submitted["spec_digest"]


def test_its_encoder_is_fetched(stack: RunningStack, submitted: dict[str, Any], tmp_path: Path) -> None:
    simclr(stack, "encoder", submitted["id"], "-o", str(tmp_path / "f.zip"))
    with zipfile.ZipFile(tmp_path / "f.zip") as bundle:
        assert "encoder.safetensors" in bundle.namelist()


def test_it_is_reproduced_to_the_bit(stack: RunningStack, submitted: dict[str, Any]) -> None:
    outcome = simclr(stack, "reproduce", submitted["id"])
    assert outcome["is_identical"] is True, outcome
    assert len(set(outcome["weights_sha256"].values())) == 1


def test_what_cannot_work_is_refused_with_its_field(stack: RunningStack, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({"name": "bad", "kind": "pretrain", "spec": SHORT | {"loss": {"temperature": 0}}}))
    refused = simclr(stack, "submit", str(file), status=2)
    assert "/spec/loss/temperature" in json.dumps(refused)


def test_data_sets_and_studies_are_named(stack: RunningStack) -> None:
    for word, name in (("datasets", "openmoji"), ("studies", "temperature")):
        assert name in json.dumps(simclr(stack, word))
