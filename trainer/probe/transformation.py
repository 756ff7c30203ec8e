"""Predict which transformation an image went through, from h or from z (paper, section 4.2, Table 3).

What z cannot tell, the contrastive objective has thrown away. Each image takes one form, drawn
from a fixed stream, so every encoder is asked about the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.metric_names import TRANSFORMATION_TASKS
from trainer.probe.linear import fit_linear_probe

__all__ = ["TASKS", "Task", "TransformationResult", "predict_transformations", "transformed"]

NOISE_STD: Final = 0.1  # of pixels in 0..1; ours, the paper names none
LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's and torchvision's grey

Form = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]  # (M, H, W, 3) in 0..1, likewise
Features = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Task:
    """The forms an image can take, and the probability of each."""

    forms: tuple[Form, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class TransformationResult:
    """How often the form is told, beside always naming the commonest."""

    accuracy: float  # 0..1, on validation images
    chance: float  # 0..1


def _original(images: NDArray[np.float32], _: np.random.Generator) -> NDArray[np.float32]:
    return images


def _grey(images: NDArray[np.float32], _: np.random.Generator) -> NDArray[np.float32]:
    luma: NDArray[np.float32] = images @ np.asarray(LUMA, np.float32)
    return np.repeat(luma[..., None], 3, axis=-1)


def _corrupted(images: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    return images + generator.standard_normal(images.shape, np.float32) * np.float32(NOISE_STD)


def _sobel(images: NDArray[np.float32], _: np.random.Generator) -> NDArray[np.float32]:
    """Return the gradient's magnitude a channel, 1 at a full step along an axis."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, :, 2:] - padded[:, :, :-2]  # (M, H + 2, W, 3)
    down = padded[:, 2:] - padded[:, :-2]
    gradient_x = (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 4
    gradient_y = (down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]) / 4
    magnitude: NDArray[np.float32] = np.hypot(gradient_x, gradient_y)
    return magnitude


def _rotated(turns: int) -> Form:
    return lambda images, _: np.rot90(images, turns, axes=(1, 2))


TASKS: Final[dict[str, Task]] = dict(
    zip(
        TRANSFORMATION_TASKS,
        (
            Task((_original, _grey), (0.8, 0.2)),  # Table 3: a random guess is right in 80 %
            Task(tuple(_rotated(turns) for turns in range(4)), (0.25,) * 4),
            Task((_original, _corrupted), (0.5, 0.5)),
            Task((_original, _sobel), (0.5, 0.5)),
        ),
        strict=True,
    )
)


def transformed(
    images_MHWC: NDArray[np.uint8], *, task: str, stream: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return each image in one of the task's forms, uint8, and which, (M,); the same at every call.

    Args:
        images_MHWC: uint8 RGB; square where the task is rotation.
        task: One of TRANSFORMATION_TASKS.
        stream: Which stream of draws: 0 for training images, 1 for validation images.
    """
    forms, probabilities = TASKS[task].forms, TASKS[task].probabilities
    generator = np.random.Generator(np.random.Philox(key=[TRANSFORMATION_TASKS.index(task), stream]))
    chosen_M = generator.choice(len(forms), size=len(images_MHWC), p=probabilities)
    result = np.empty_like(images_MHWC)
    for index, form in enumerate(forms):
        pixels = form(images_MHWC[chosen_M == index].astype(np.float32) / 255, generator)
        result[chosen_M == index] = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    return result, chosen_M.astype(np.int64)


def predict_transformations(
    features: Features,
    *,
    train_images_MHWC: NDArray[np.uint8],
    validation_images_VHWC: NDArray[np.uint8],
    device: torch.device | str = "cpu",
) -> dict[str, TransformationResult]:
    """Return, for each task, how well a linear probe on `features` tells the forms apart.

    Args:
        features: From uint8 images (M, H, W, 3) to features (M, R): h, or z = g(h).
        train_images_MHWC: Images the probe is fitted on.
        validation_images_VHWC: Images that choose its penalty and give the accuracy.
        device: Where the probe computes.
    """
    results = {}
    for task in TASKS:
        train, train_forms = transformed(train_images_MHWC, task=task, stream=0)
        validation, validation_forms = transformed(validation_images_VHWC, task=task, stream=1)
        probe = fit_linear_probe(
            features(train),
            train_forms,
            validation_features_VR=features(validation),
            validation_labels_V=validation_forms,
            device=device,
        )
        commonest = np.bincount(validation_forms).max() / len(validation_forms)
        results[task] = TransformationResult(accuracy=probe.validation_accuracy, chance=float(commonest))
    return results
