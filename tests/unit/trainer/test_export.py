"""Encoder bundles: read without this project, the same bytes every time, refused when tampered with."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from trainer.bundle.encoder import ARCHITECTURES, ResNet, build_encoder, load_encoder, to_input
from trainer.encoder import build_encoder as build_trained
from trainer.errors import BundleInvalid
from trainer.export import read_bundle, weights_digest, write_bundle
from trainer.spec import DataSpec, EncoderSpec, PretrainSpec

WEIGHTS, RECORD = "encoder.safetensors", "encoder.json"


def an_encoder(**architecture: Any) -> ResNet:
    torch.manual_seed(0)
    encoder = ResNet(**({"name": "resnet8"} | architecture))
    for name, buffer in encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    return encoder


def a_bundle(encoder: nn.Module | None = None, **architecture: Any) -> bytes:
    encoder = encoder or an_encoder(**architecture)
    spec = PretrainSpec(data=DataSpec(dataset="digits"), encoder=EncoderSpec(**({"name": "resnet8"} | architecture)))
    return write_bundle(
        encoder,
        spec=spec,
        width_of_h=64,
        metrics={"knn_accuracy": 0.5},
        dataset_digest="d" * 64,
        code_version="1.2.3",
        class_names=("zero", "one"),
    )


def unpacked(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder


def test_a_bundle_holds_four_files_one_of_them_weights(tmp_path: Path) -> None:
    folder = unpacked(a_bundle(), tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["MODEL_CARD.md", "encoder.json", "encoder.py", WEIGHTS]
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert not [name for name in weights if name.startswith("fc.")]
    record = json.loads((folder / RECORD).read_text())
    assert record["weights"]["sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert record["width_of_h"] == 64
    assert record["num_parameters"] == sum(parameter.numel() for parameter in an_encoder().parameters())
    assert "knn_accuracy" in (folder / "MODEL_CARD.md").read_text()


def test_the_same_encoder_gives_the_same_bytes() -> None:
    assert a_bundle() == a_bundle()


def test_double_precision_and_memory_layout_leave_no_trace() -> None:
    plain, other = an_encoder(), an_encoder().to(memory_format=torch.channels_last)
    assert a_bundle(plain) == a_bundle(other) == a_bundle(plain.double())


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"name": "resnet14", "width": 2, "norm": "group"},
        {"name": "resnet20", "stem": "imagenet"},
        {"name": "resnet50", "stem": "imagenet", "norm": "group"},
    ],
)
def test_the_loaded_encoder_computes_what_the_trained_one_did(tmp_path: Path, architecture: dict[str, Any]) -> None:
    encoder = an_encoder(**architecture)
    folder = unpacked(a_bundle(encoder, **architecture), tmp_path)
    images = to_input(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    with torch.inference_mode():
        torch.testing.assert_close(load_encoder(folder)(images), encoder.eval()(images), rtol=0, atol=0)
    assert weights_digest(load_encoder(folder)) == json.loads((folder / RECORD).read_text())["weights"]["digest"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [("resnet18", "cifar"), ("resnet18", "imagenet"), pytest.param("resnet50", "imagenet", marks=pytest.mark.slow)],
)
def test_plain_torchvision_loads_the_weights_as_the_card_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stem: str
) -> None:
    encoder = an_encoder(name=name, stem=stem)
    monkeypatch.chdir(unpacked(a_bundle(encoder, name=name, stem=stem), tmp_path))
    _, snippet = re.findall(r"```python\n(.*?)```", Path("MODEL_CARD.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102 - ours
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(names["model"].eval()(images), encoder.eval()(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_torchvisions_keys_and_shapes_or_its_paper_s_depth(name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder({"name": name, "stem": "imagenet", "width": 1, "norm": "batch"})
        if name in {"resnet8", "resnet14", "resnet20"}:
            convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
            assert len(convolutions) + 2 == int(name.removeprefix("resnet"))  # the stem and a classifier complete it
            assert encoder.width_of_h == 64
            return
        reference = getattr(torchvision.models, name)().state_dict()
    expected = {key: tensor.shape for key, tensor in reference.items() if not key.startswith("fc.")}
    assert {key: tensor.shape for key, tensor in encoder.state_dict().items()} == expected


def test_the_bundle_needs_nothing_of_this_project(tmp_path: Path) -> None:
    folder = unpacked(a_bundle(), tmp_path)
    code = (
        "import sys; sys.path.insert(0, '.'); from encoder import load_encoder; import torch;"
        "print(*load_encoder('.')(torch.zeros(1, 3, 32, 32)).shape);"
        "assert not {'trainer', 'ray', 'mlflow', 'service'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, check=True, capture_output=True, timeout=60)
    assert done.stdout.split() == [b"1", b"64"]


def test_the_digest_follows_values_names_and_shapes() -> None:
    encoder = an_encoder()
    before = weights_digest(encoder)
    assert weights_digest(an_encoder()) == before
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert weights_digest(encoder) != before
    assert weights_digest({"a": torch.zeros(2, 3)}) != weights_digest({"a": torch.zeros(3, 2)})


def test_extra_facts_may_not_replace_the_records_own() -> None:
    spec = PretrainSpec(data=DataSpec(dataset="digits"), encoder=EncoderSpec(name="resnet8"))
    arguments: dict[str, Any] = {
        "spec": spec,
        "width_of_h": 64,
        "metrics": {},
        "dataset_digest": "",
        "code_version": "",
    }
    assert read_bundle(write_bundle(an_encoder(), **arguments, extra={"trial": "t0000"})).record["trial"] == "t0000"
    with pytest.raises(ValueError, match="weights"):
        write_bundle(an_encoder(), **arguments, extra={"weights": "others"})


# --- what is refused ------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, bytes]], object]) -> bytes:
    """Return a bundle whose files went through `change`, and whose record fits its weights again."""
    with zipfile.ZipFile(io.BytesIO(a_bundle())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    if WEIGHTS in members and members[RECORD] != b"{":
        record = json.loads(members[RECORD])
        record["weights"]["sha256"] = hashlib.sha256(members[WEIGHTS]).hexdigest()
        members[RECORD] = json.dumps(record).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def safetensors_file(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_at(*offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(offsets[1] - offsets[0]) // 4], "data_offsets": list(offsets)}


def test_an_untouched_bundle_is_read_back() -> None:
    bundle = read_bundle(changed(dict.copy))
    assert bundle.record["dataset"]["class_names"] == ["zero", "one"]
    assert weights_digest(bundle.weights) == weights_digest(an_encoder())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"extra.safetensors": m[WEIGHTS]}), "it has to hold"),
        (lambda m: m.update({"../evil.py": b""}), "it has to hold"),
        (lambda m: m.update({"/etc/evil": b""}), "it has to hold"),
        (lambda m: m.update({"weights.pkl": pickle.dumps(1)}), "it has to hold"),
        (lambda m: m.pop(WEIGHTS), "it has to hold"),
        (lambda m: m.update({WEIGHTS: pickle.dumps({"a": 1})}), "announces a header"),
        (lambda m: m.update({WEIGHTS: b"123"}), "is truncated"),
        (lambda m: m.update({WEIGHTS: struct.pack("<Q", 2**40) + b"{}"}), "announces a header"),
        (
            lambda m: m.update({WEIGHTS: safetensors_file({"a": tensor_at(0, 8), "b": tensor_at(4, 12)}, bytes(12))}),
            "is malformed",
        ),
        (lambda m: m.update({WEIGHTS: safetensors_file({"a": tensor_at(0, 2**50)}, bytes(8))}), "is malformed"),
        (
            lambda m: m.update({WEIGHTS: safetensors.torch.save({"a": torch.zeros(2, dtype=torch.float64)})}),
            "weights are float32",
        ),
        (lambda m: m.update({WEIGHTS: safetensors.torch.save({"a": torch.zeros(2)})}), "not those that"),
        (lambda m: m.update({RECORD: b"{"}), "is damaged"),
    ],
)
def test_a_tampered_bundle_is_refused(change: Callable[[dict[str, bytes]], object], message: str) -> None:
    content = changed(change)
    with pytest.raises(BundleInvalid, match=message):
        read_bundle(content)


def test_weights_that_the_record_does_not_name_are_refused() -> None:
    other = an_encoder()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    swapped = changed(lambda members: members.update({WEIGHTS: read_weights(a_bundle(other))}))
    with pytest.raises(BundleInvalid, match="not those that encoder"):
        read_bundle(swapped)


def read_weights(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(WEIGHTS)


def test_what_is_no_zip_is_refused() -> None:
    for content in (b"", b"PK\x03\x04", pickle.dumps([1]), a_bundle()[:-100]):
        with pytest.raises(BundleInvalid, match="no readable zip"):
            read_bundle(content)


def test_a_zip_that_announces_absurd_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = a_bundle()
    monkeypatch.setattr("trainer.export.MAX_TEXT_BYTES", 100)
    with pytest.raises(BundleInvalid, match="more than 100"):
        read_bundle(content)
    monkeypatch.setattr("trainer.export.MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(BundleInvalid, match="more than 1,000"):
        read_bundle(content)


def test_what_is_trained_is_what_the_bundled_file_defines() -> None:
    assert isinstance(build_trained(EncoderSpec(name="resnet8"), seed=0), ResNet)
