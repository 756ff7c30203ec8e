"""What the pages tell a user to send and to run is what the service takes and what runs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from service.cli.demo import DEMO
from service.client import Client
from service.schemas import PretrainSubmission, SweepSubmission
from trainer.bundle.encoder import ResNet
from trainer.export import write_bundle
from trainer.spec import PretrainSpec

ROOT = Path(__file__).parents[3]
MIDNIGHT = "2026-01-01T00:00:00Z"
DIGEST = f"sha-256=:{base64.b64encode(hashlib.sha256(b'zip').digest()).decode()}:"


def samples(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page} shows no {language}"
    return found


def test_the_first_experiment_of_the_readme_is_the_demo_s_recipe_and_its_sweep_is_one() -> None:
    experiment, sweep = (json.loads(text) for text in samples("README.md", "json"))
    told = PretrainSubmission.model_validate(experiment).spec
    demo = PretrainSpec.model_validate(DEMO["spec"])
    for part in ("data", "encoder", "loss", "optim", "batch_size", "epochs", "scaling"):
        assert getattr(told, part) == getattr(demo, part), part
    assert SweepSubmission.model_validate(sweep).spec.study == "temperature"


def test_the_encoder_loads_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PretrainSpec.model_validate(DEMO["spec"])
    bundle = write_bundle(
        ResNet(name="resnet8"), spec=spec, width_of_h=64, metrics={}, dataset_digest="d" * 64, code_version="1"
    )
    zipfile.ZipFile(io.BytesIO(bundle)).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    (sample,) = samples("README.md", "python")

    exec(sample, names)  # noqa: S102 - ours

    assert names["images"].shape[1] == json.loads(Path("encoder.json").read_text())["input"]["size"]
    assert names["h"].shape == torch.Size([1, 64])


def test_the_python_of_the_api_s_page_submits_waits_and_saves_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def service(request: httpx2.Request) -> httpx2.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "POST":
            PretrainSubmission.model_validate_json(request.content)
            return httpx2.Response(202, json={"id": "exp_1", "state": "queued"})
        if request.url.path.endswith("/encoder"):
            return httpx2.Response(200, content=b"zip", headers={"Repr-Digest": DIGEST})
        if request.url.path.endswith("/metrics"):
            assert request.url.params["keys"] == "loss"
            points = [
                {"step": step, "value": value, "at": "2026-01-01T00:00:00Z"} for step, value in ((1, 5.0), (2, 4.5))
            ]
            return httpx2.Response(200, json={"series": {"loss": points}})
        return httpx2.Response(200, json={"id": "exp_1", "state": "succeeded"})

    monkeypatch.setattr("service.client.Client", partial(Client, transport=httpx2.MockTransport(service)))
    monkeypatch.chdir(tmp_path)
    (sample,) = samples("docs/api.md", "python")

    exec(sample, {})  # noqa: S102 - ours

    path = "/experiments/exp_1"
    assert asked == ["POST /experiments", f"GET {path}", f"GET {path}/metrics", f"GET {path}/encoder"]
    assert capsys.readouterr().out == "succeeded 4.5\n"
    assert Path("encoder.zip").read_bytes() == b"zip"
