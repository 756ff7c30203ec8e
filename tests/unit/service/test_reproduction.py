"""What is said of two encoders: the same weights, or where their records differ."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from typing import Any

import httpx2
import pytest

from service.cli.reproduction import compare_bundles
from service.client import Client


def bundle(weights: bytes, **record: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("encoder.safetensors", weights)
        archive.writestr("encoder.json", json.dumps(record))
    return file.getvalue()


@pytest.fixture
def bundles() -> dict[str, bytes]:
    return {}


@pytest.fixture
def client(bundles: dict[str, bytes]) -> Client:
    def answer(request: httpx2.Request) -> httpx2.Response:
        content = bundles[request.url.path.split("/")[2]]
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        return httpx2.Response(200, content=content, headers={"Repr-Digest": f"sha-256=:{digest}:"})

    return Client("http://service.test", transport=httpx2.MockTransport(answer))


def test_the_same_weights_are_identical_whatever_else_the_record_says(
    client: Client, bundles: dict[str, bytes]
) -> None:
    bundles |= {"one": bundle(b"w", made_at="1"), "two": bundle(b"w", made_at="2")}

    verdict = compare_bundles(client, "one", "two")

    sha256 = hashlib.sha256(b"w").hexdigest()
    assert verdict["is_identical"] is True
    assert verdict["weights_sha256"] == {"one": sha256, "two": sha256}
    assert verdict["differences"] == {}
    assert verdict["reproduction"] == "two"


def test_other_weights_are_told_with_all_that_differs_and_nothing_else(
    client: Client, bundles: dict[str, bytes]
) -> None:
    same = {"architecture": "resnet8", "spec": {"seed": 0}}
    bundles |= {
        "one": bundle(b"w", **same, digests={"data": "a"}, num_workers=1),
        "two": bundle(b"v", **same, digests={"data": "b"}, torch="2.8"),
    }

    verdict = compare_bundles(client, "one", "two")

    weights = [hashlib.sha256(each).hexdigest() for each in (b"w", b"v")]
    assert verdict["is_identical"] is False
    assert verdict["differences"] == {
        "digests.data": ["a", "b"],
        "num_workers": [1, None],
        "torch": [None, "2.8"],
        "weights_sha256": weights,
    }
