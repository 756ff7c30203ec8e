"""What the catalogue knows of embedded and registered data sets, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.data.catalogue import EMBEDDED, DatasetInfo, describe, list_datasets
from trainer.data.openmoji import OpenMojiSource, drawn_emojis
from trainer.errors import DataError


def write_folder(root: Path, *, classes: int = 2, images: int = 3) -> Path:
    for split in ("train", "test"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(images):
                shade = 20 * index + 5 * label + (100 if split == "test" else 0)
                Image.new("RGB", (8, 8), (shade, shade, label)).save(folder / f"{index}.png")
    return root


def write_npz(path: Path, **arrays: NDArray[Any]) -> Path:
    defaults: dict[str, Any] = {
        "train_images": np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3),
        "train_labels": np.array([0, 1, 0, 1, 0, 1]),
        "test_images": np.full((2, 8, 8, 3), 7, np.uint8),
        "test_labels": np.array([0, 1]),
    }
    np.savez(path, **(defaults | arrays))
    return path


def test_embedded_names_are_listed_with_or_without_an_operators_folder(tmp_path: Path) -> None:
    for datasets_dir in (None, tmp_path, tmp_path / "absent"):
        names = [info.name for info in list_datasets(datasets_dir)]
        assert names == ["openmoji", "digits", "fashion-mnist", "cifar10", "cifar100", "stl10"]


def test_an_unknown_name_says_where_data_sets_would_come_from(tmp_path: Path) -> None:
    whys = {
        None: "; SIMCLR_DATASETS is not set",
        tmp_path / "absent": f"; SIMCLR_DATASETS={tmp_path / 'absent'} is no folder",
        tmp_path: "",
    }
    for datasets_dir, why in whys.items():
        with pytest.raises(DataError) as refused:
            describe("pets", datasets_dir)
        assert refused.value.message == f"there is no data set 'pets'; known are {', '.join(EMBEDDED)}{why}"


def test_openmoji_counts_are_those_of_what_is_drawn() -> None:
    info = describe("openmoji", None)
    assert info.num_train + info.num_test == len(drawn_emojis())
    assert info.num_classes == 9
    assert info.has_labels
    assert "OpenMoji" in info.licence


def test_openmoji_variants_of_one_emoji_stay_on_one_side() -> None:
    splits = OpenMojiSource().open()
    assert splits.test is not None
    assert splits.train.groups is not None
    bases = {emoji.text: emoji.base for emoji in drawn_emojis()}
    assert bases["👩\u200d🚒"] == bases["👨\u200d🚒"] == bases["🧑\u200d🚒"]  # firefighters
    assert bases["🏃\u200d♀️\u200d➡️"] == bases["🏃"]  # a runner, and a woman running to the right
    assert bases["♀️"] != bases["♂️"]  # signs by themselves are emojis of their own
    assert splits.train.labels is not None
    assert np.bincount(splits.train.labels, minlength=9).min() > 10
    assert splits.train.num_images == describe("openmoji", None).num_train


def test_missing_files_are_told_with_a_way_to_get_them(tmp_path: Path) -> None:
    info = describe("cifar10", tmp_path)
    assert info.problem is not None
    assert "cifar-10-batches-py" in info.problem


def test_unknown_ids_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    for name in ("nothing", "../etc", "/etc", "http://169.254.169.254/", "pets/", "", "s3://other/"):
        with pytest.raises(DataError, match=r"known are openmoji, .*pets"):
            describe(name, tmp_path)


def test_registered_folder_is_described_from_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", classes=3, images=4)
    assert describe("pets", tmp_path) == DatasetInfo(
        name="pets",
        description="Image folder registered by the operator",
        num_train=12,
        num_test=12,
        num_classes=3,
        channels=3,
        native_image_size=None,
        has_labels=True,
        licence="unknown",
        source="operator",
    )


def test_registered_arrays_are_described_from_headers(tmp_path: Path) -> None:
    write_npz(tmp_path / "arrays.npz", classes=np.array(["cat", "dog", "unseen"]))
    info = describe("arrays", tmp_path)
    assert (info.num_train, info.num_test, info.num_classes, info.native_image_size) == (6, 2, 3, 8)


def test_arrays_without_labels_are_unlabelled(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", train_images=np.zeros((5, 8, 8, 1), np.uint8))
    info = describe("plain", tmp_path)
    assert (info.has_labels, info.num_classes, info.num_test, info.channels) == (False, None, 0, 1)


def test_a_broken_data_set_is_listed_with_its_problem_and_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    write_folder(tmp_path / "Upper Case")
    write_folder(tmp_path / "pets")
    problems = {info.name: info.problem for info in list_datasets(tmp_path)}
    assert problems["pets"] is None
    assert "broken.npz" in str(problems["broken"])
    assert "rename" in str(problems["Upper Case"])
    with pytest.raises(DataError, match=r"broken\.npz"):
        describe("broken", tmp_path)


def test_one_name_for_a_folder_and_a_file_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "twice")
    write_npz(tmp_path / "twice.npz")
    with pytest.raises(DataError, match=r"both a folder and twice\.npz"):
        describe("twice", tmp_path)
