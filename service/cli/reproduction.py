"""Whether two experiments made the same encoder, and if not, what differs."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.client import Client

__all__ = ["bundle_record", "compare_bundles"]


def compare_bundles(client: Client, first_id: str, second_id: str) -> dict[str, Any]:
    """Return the digests of both encoders' weights and, where they differ, what else does."""
    with tempfile.TemporaryDirectory() as folder:
        records = {}
        for experiment_id in (first_id, second_id):
            path = Path(folder) / f"{experiment_id}.zip"
            client.download_encoder(experiment_id, path)
            records[experiment_id] = bundle_record(path)
    first, second = records[first_id], records[second_id]
    is_identical = first["weights_sha256"] == second["weights_sha256"]
    return {
        "is_identical": is_identical,
        "weights_sha256": {first_id: first["weights_sha256"], second_id: second["weights_sha256"]},
        "differences": {} if is_identical else _differences(first, second),
        "reproduction": second_id,
    }


def bundle_record(path: Path) -> dict[str, Any]:
    """Return a bundle's `encoder.json` with the sha256 of its weights."""
    with zipfile.ZipFile(path) as bundle:
        weights = next(name for name in bundle.namelist() if name.endswith(".safetensors"))
        record: dict[str, Any] = json.loads(bundle.read("encoder.json"))
        return {**record, "weights_sha256": hashlib.sha256(bundle.read(weights)).hexdigest()}


def _differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    one, other = _flat(first), _flat(second)
    names = dict.fromkeys((*one, *other))
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        path = f"{prefix}{name}"
        flat |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat
