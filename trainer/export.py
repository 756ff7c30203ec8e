"""The encoder bundle: f without its head, as a zip that needs nothing of this project to be read.

    encoder.safetensors   float32 weights under torchvision's names
    encoder.json          architecture, input, width of h, digests, spec, metrics
    encoder.py            builds the module and loads the weights, in plain torch
    MODEL_CARD.md         the same for people

The same encoder and record give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from trainer.errors import BundleInvalid
from trainer.model_card import model_card
from trainer.spec import PretrainSpec

__all__ = ["Bundle", "exported_weights", "read_bundle", "weights_digest", "write_bundle"]

FORMAT_VERSION: Final = 1
WEIGHTS, RECORD, CODE, CARD = "encoder.safetensors", "encoder.json", "encoder.py", "MODEL_CARD.md"
ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
FILE_MODE: Final = 0o100644
MAX_BUNDLE_BYTES: Final = 4 * 2**30  # resnet152 of width 4 has 3.7 GB
MAX_TEXT_BYTES: Final = 16 * 2**20
MAX_HEADER_BYTES: Final = 16 * 2**20  # of safetensors: names and shapes alone


@dataclass(frozen=True, eq=False)
class Bundle:
    """What a bundle holds, once it is found to be what it says."""

    record: dict[str, Any]  # encoder.json
    weights: dict[str, Tensor]  # float32
    code: str  # encoder.py, never run by reading


def exported_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the state of f that a bundle holds: float32, on the CPU, without heads and counters."""
    return {
        name: tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        for name, tensor in sorted(encoder.state_dict().items())
        if tensor.is_floating_point() and not name.startswith("fc.")  # num_batches_tracked is an integer
    }


def weights_digest(module: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes and float32 bytes of a module's state, or of such a state."""
    weights = exported_weights(module) if isinstance(module, nn.Module) else module
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_bundle(
    encoder: nn.Module,
    *,
    spec: PretrainSpec,
    width_of_h: int,
    metrics: Mapping[str, float],
    dataset_digest: str,
    code_version: str,
    class_names: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the bundle of an encoder as the bytes of a zip.

    Args:
        encoder: f, on any device, in any float type.
        spec: What it was trained by.
        width_of_h: R.
        metrics: Last values by name.
        dataset_digest: Of the data it was trained on.
        code_version: Of this project.
        class_names: Of the data's labels, if it has any.
        extra: More for encoder.json, JSON values; must not name a key of it.
    """
    weights = exported_weights(encoder)
    stored = save(weights)
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "architecture": spec.encoder.model_dump(mode="json"),
        "input": {
            "channels": "RGB",
            "size": spec.data.image_size,
            "layout": "NCHW",
            "normalisation": {"scale": "pixels / 255", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
        },
        "width_of_h": width_of_h,
        "num_parameters": sum(parameter.numel() for name, parameter in encoder.named_parameters() if name in weights),
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(stored).hexdigest(), "digest": weights_digest(weights)},
        "spec": spec.resolved(),
        "spec_digest": spec.digest(),
        "dataset": {"name": spec.data.dataset, "digest": dataset_digest, "class_names": class_names and [*class_names]},
        "metrics": dict(sorted(metrics.items())),
        "code_version": code_version,
    }
    clashes = record.keys() & (extra or {}).keys()
    if clashes:
        raise ValueError(f"extra names {sorted(clashes)}, which encoder.json has itself")
    record |= extra or {}
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"
    code = files("trainer.bundle").joinpath(CODE).read_bytes()
    return _zip({WEIGHTS: stored, RECORD: text.encode(), CODE: code, CARD: model_card(record).encode()})


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name, date_time=ZIP_TIME)
            entry.external_attr = FILE_MODE << 16
            # weights do not shrink; text does
            entry.compress_type = zipfile.ZIP_STORED if name == WEIGHTS else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def read_bundle(content: bytes) -> Bundle:
    """Return what a bundle holds. Nothing in it is run or unpickled.

    Raises:
        BundleInvalid: If it is no such zip, has other files, absurd sizes, weights that are
            malformed or not the ones its record names.
    """
    members = _unzip(content)
    try:
        record = json.loads(members[RECORD])
        sha256, digest = record["weights"]["sha256"], record["weights"]["digest"]
        code = members[CODE].decode()
    except (ValueError, KeyError, TypeError) as error:
        raise BundleInvalid(f"{RECORD} is damaged: {error}", file=RECORD) from error
    stored = members[WEIGHTS]
    if hashlib.sha256(stored).hexdigest() != sha256:
        raise BundleInvalid(f"{WEIGHTS} is not the file that {RECORD} names", file=WEIGHTS)
    weights = _read_weights(stored)
    if weights_digest(weights) != digest:
        raise BundleInvalid(f"the weights are not those that {RECORD} names", file=WEIGHTS)
    return Bundle(record=record, weights=weights, code=code)


def _unzip(content: bytes) -> dict[str, bytes]:
    if len(content) > MAX_BUNDLE_BYTES:
        raise BundleInvalid(f"the bundle has {len(content):,} bytes, more than {MAX_BUNDLE_BYTES:,}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = sorted(entry.filename for entry in archive.infolist())
            if names != sorted((WEIGHTS, RECORD, CODE, CARD)):
                raise BundleInvalid(
                    f"the bundle holds {names[:10]}; it has to hold {WEIGHTS}, {RECORD}, {CODE}, {CARD}"
                )
            for entry in archive.infolist():
                limit = MAX_BUNDLE_BYTES if entry.filename == WEIGHTS else MAX_TEXT_BYTES
                if entry.file_size > limit:
                    raise BundleInvalid(f"{entry.filename} has {entry.file_size:,} bytes, more than {limit:,}")
            return {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BundleInvalid(f"the bundle is no readable zip: {error}") from error


def _read_weights(stored: bytes) -> dict[str, Tensor]:
    length_bytes = struct.calcsize("<Q")
    if len(stored) < length_bytes:
        raise BundleInvalid(f"{WEIGHTS} is truncated", file=WEIGHTS)
    (header_bytes,) = struct.unpack("<Q", stored[:length_bytes])
    if header_bytes > min(MAX_HEADER_BYTES, len(stored) - length_bytes):
        raise BundleInvalid(f"{WEIGHTS} announces a header of {header_bytes:,} bytes", file=WEIGHTS)
    try:
        weights = load(stored)  # checks names, types and that offsets neither overlap nor leave holes
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleInvalid(f"{WEIGHTS} is malformed: {error}", file=WEIGHTS) from error
    wrong = [name for name, tensor in weights.items() if tensor.dtype != torch.float32]
    if wrong:
        raise BundleInvalid(
            f"{WEIGHTS} holds {wrong[0]} as {weights[wrong[0]].dtype}; weights are float32", file=WEIGHTS
        )
    return weights
