"""The model card of an encoder bundle: what encoder.json says, for people."""

from __future__ import annotations

from typing import Any

__all__ = ["model_card"]

TEMPLATE = """\
# {name}, stem {stem}, width {width}: representations of `{dataset}`

An image encoder pretrained {method}. It maps RGB images to representations
h of {width_of_h} numbers; it is no classifier, and its training head is not part of it.

## Use

```python
import torch
from encoder import load_encoder, to_input  # encoder.py, beside this file; needs torch and safetensors

f = load_encoder(".")
images = torch.zeros(1, {size}, {size}, 3, dtype=torch.uint8)  # RGB, (B, H, W, 3)
with torch.inference_mode():
    h = f(to_input(images))  # (B, {width_of_h})
```

Input: {size} x {size} RGB, pixels / 255, no further normalisation.{torchvision}

## Training

| | |
|---|---|
| data | `{dataset}`, sha256 `{dataset_digest}` |
| global batch, epochs, seed | {batch_size}, {epochs}, {seed} |
| optimiser | {optimizer}, base learning rate {base_lr} |
| parameters | {num_parameters:,} |
| spec digest | `{spec_digest}` |
| weights, sha256 | `{sha256}` |
| code version | {code_version} |

## Results

Accuracies are shares 0..1. A name that starts with `test_` is of images that chose nothing;
the others are of images that a choice may have looked at.

| metric | value |
|---|---|
{metrics}

{verdict}An encoder is worth something where it beats `raw_pixel_knn_accuracy` and `random_encoder_knn_accuracy`.

## Limits

It has seen one data set at one image size. Expect less on other images, and judge it on yours.
The licence of the data binds what is learned from it where the law says so.
"""

TORCHVISION = """ The weights also load into plain torchvision:

```python
import safetensors.torch, torch, torchvision

model = torchvision.models.{name}()
model.fc = torch.nn.Identity(){stem}
model.load_state_dict(safetensors.torch.load_file("encoder.safetensors"))
```"""
CIFAR_STEM = """
model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()"""
TORCHVISION_NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def model_card(record: dict[str, Any]) -> str:
    """Return the card of an encoder, in Markdown, from its encoder.json."""
    spec, architecture = record["spec"], record["architecture"]
    is_supervised = spec["method"] == "supervised"
    return TEMPLATE.format(
        **architecture,
        method="with labels (the supervised baseline)" if is_supervised else "without labels by SimCLR",
        dataset=record["dataset"]["name"],
        dataset_digest=record["dataset"]["digest"],
        width_of_h=record["width_of_h"],
        size=record["input"]["size"],
        torchvision=_torchvision(architecture),
        batch_size=spec["batch_size"],
        epochs=spec["epochs"],
        seed=spec["seed"],
        optimizer=spec["optim"]["kind"],
        base_lr=spec["optim"]["base_lr"],
        num_parameters=record["num_parameters"],
        spec_digest=record["spec_digest"],
        sha256=record["weights"]["sha256"],
        code_version=record["code_version"],
        verdict=f"{record['verdict']}. " if record.get("verdict") else "",
        metrics="\n".join(f"| `{name}` | {value:.4g} |" for name, value in record["metrics"].items()),
    )


def _torchvision(architecture: dict[str, Any]) -> str:
    name, is_plain = architecture["name"], architecture["width"] == 1 and architecture["norm"] == "batch"
    if name not in TORCHVISION_NAMES or not is_plain:
        return ""
    return TORCHVISION.format(name=name, stem=CIFAR_STEM if architecture["stem"] == "cifar" else "")
