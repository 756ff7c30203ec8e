"""A data set that cannot be trained on is refused at POST, with the file, field or class that is at fault."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness.http_app import assert_problem, http_app, pointers, pretrain_body
from trainer.data.packing import pack, source_at

pytestmark = pytest.mark.anyio

SIDE = 8
LABELS = np.array([0, 1] * 20)
ARRAYS: dict[str, Any] = {"train_images": np.zeros((40, SIDE, SIDE, 3), np.uint8), "train_labels": LABELS}


def arrays(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / "bad.npz", **(ARRAYS | changes))


def cut_short(folder: Path) -> None:
    path = folder / "bad.npz"
    np.savez(path, **ARRAYS)
    path.write_bytes(path.read_bytes()[:-500])


def image_folder(folder: Path, *, side: int = SIDE) -> Path:
    from PIL import Image

    for label in ("cat", "dog"):
        (folder / "bad" / "train" / label).mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (side + index, side)).save(folder / "bad" / "train" / label / f"{index}.png")
    return folder / "bad" / "train"


def truncated_picture(folder: Path) -> None:
    from PIL import Image

    path = image_folder(folder) / "dog" / "3.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])


def empty_class(folder: Path) -> None:
    (image_folder(folder) / "eel").mkdir()


def strange_test_class(folder: Path) -> None:
    train = image_folder(folder)
    (train / "cat").rename(train.parent / "cat")
    (train.parent / "test").mkdir()
    (train.parent / "cat").rename(train.parent / "test" / "cat")


def cut_shard(folder: Path) -> None:
    np.savez(folder / "plain.npz", **ARRAYS)
    pack(source_at(folder / "plain.npz"), folder / "bad", image_size=SIDE, images_per_shard=30)
    os.truncate(folder / "bad" / "train-00001.raw", 100)


@pytest.mark.parametrize(
    ("write", "pointer", "said"),
    [
        (cut_shard, "dataset", "bad/train-00001.raw is damaged: it has 100 bytes and should have 1920"),
        (arrays(train_images=ARRAYS["train_images"][:3], train_labels=LABELS[:3]), "dataset", "3 training images"),
        (arrays(train_labels=np.where(LABELS, 2, 0)), "dataset", "1 (0)"),
        (arrays(train_images=np.array([None] * 40, object)), "dataset", "train_images holds Python objects"),
        (arrays(train_images=ARRAYS["train_images"][:, 0]), "dataset", "train_images is uint8 of shape (40, 8, 3)"),
        (cut_short, "dataset", "bad.npz is no .npz file"),
        (truncated_picture, "dataset", "bad/train/dog/3.png is damaged or truncated"),
        (empty_class, "dataset", "train/eel holds no images"),
        (strange_test_class, "dataset", "test/cat is no class of train/"),
    ],
    ids=[
        "shard cut short",
        *("too few images", "a class missing", "mixed sizes", "one dimension short", "array file cut short"),
        *("picture cut short", "empty class", "class of the test split alone"),
    ],
)
async def test_bad_data_is_refused_by_what_is_wrong_with_it(
    tmp_path: Path, migrated_database: Path, write: Callable[[Path], None], pointer: str, said: str
) -> None:
    datasets = tmp_path / "datasets"
    datasets.mkdir()
    write(datasets)

    async with http_app(tmp_path, database=migrated_database, datasets=datasets, cpus=8) as service:
        answer = await service.http.post(
            "/experiments", json=pretrain_body(data={"dataset": "bad", "image_size": SIDE}, batch_size=8)
        )

    assert_problem(answer, 422, "spec_invalid")
    assert pointers(answer) == [f"/spec/data/{pointer}"]
    assert said in answer.json()["errors"][0]["detail"]
    assert "Traceback" not in answer.text


async def test_pictures_of_mixed_sizes_are_accepted(tmp_path: Path, migrated_database: Path) -> None:
    datasets = tmp_path / "datasets"
    image_folder(datasets)

    async with http_app(tmp_path, database=migrated_database, datasets=datasets, cpus=8) as service:
        answer = await service.http.post(
            "/experiments?validate_only=true",
            json=pretrain_body(data={"dataset": "bad", "image_size": SIDE}, batch_size=8),
        )

    assert answer.status_code == 200, answer.text
