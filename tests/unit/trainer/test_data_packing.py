"""Packing: one digest whatever the form, the cut and the hands; nothing half-done is taken for whole."""

from __future__ import annotations

import errno
import fcntl
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.harness.packed_data import (
    CLASSES,
    SIDE,
    add,
    pack_until_killed,
    pictures,
    read_within,
    write_folder,
    write_parquet,
    write_tar,
)
from trainer.data.catalogue import describe
from trainer.data.dataset import Dataset
from trainer.data.idx import read_idx
from trainer.data.image_folder import ImageFolderSource
from trainer.data.packed import verify
from trainer.data.packing import Packing, Progress, pack, source_at
from trainer.data.pixels import array_blocks
from trainer.data.prepare import prepare
from trainer.data.source import SourceSplit, SourceSplits
from trainer.errors import DataError, StorageUnavailable


def packed(tmp_path: Path, source: Path | None = None, name: str = "pets", **changes: Any) -> Packing:
    source = source or write_folder(tmp_path / "source")
    arguments: dict[str, Any] = {"image_size": SIDE, "images_per_shard": 3}
    return pack(source_at(source), tmp_path / "sets" / name, **(arguments | changes))


def ready(tmp_path: Path, name: str, image_size: int = SIDE, datasets: str = "sets") -> Dataset:
    return prepare(
        name,
        image_size=image_size,
        cache_dir=tmp_path / "cache",
        datasets_dir=tmp_path / datasets,
        validation_ratio=0.3,
    )


# --- what is packed -------------------------------------------------------------------------------


def test_packed_images_are_the_same_data_set_as_unpacked_ones(tmp_path: Path) -> None:
    write_folder(tmp_path / "plain" / "pets")
    packed(tmp_path, tmp_path / "plain" / "pets")
    plain, mapped = ready(tmp_path, "pets", datasets="plain"), ready(tmp_path, "pets")
    assert plain.digest == mapped.digest
    assert mapped.class_names == CLASSES
    for one, other in (
        (plain.pretrain, mapped.pretrain),
        (plain.validation, mapped.validation),
        (plain.read_test(), mapped.read_test()),
    ):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images, other.images)
    assert len(list((tmp_path / "cache" / "datasets").glob("pets-*"))) == 1, "the packed one is used where it lies"


@pytest.mark.parametrize("images_per_shard", [1, 4, 100, None])
def test_the_digest_does_not_depend_on_the_cut(tmp_path: Path, images_per_shard: int | None) -> None:
    manifest = packed(tmp_path, images_per_shard=images_per_shard).manifest
    assert len(manifest.train) == {1: 10, 4: 3}.get(images_per_shard or 0, 1)
    assert manifest.digest == packed(tmp_path, tmp_path / "source", name="other").manifest.digest


@pytest.mark.parametrize(
    "write",
    [write_parquet, lambda root: write_parquet(root, are_names=True), write_tar],
    ids=["numbers", "names", "tar"],
)
def test_parquet_and_tar_files_give_the_digest_of_the_same_image_folder(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    folder = packed(tmp_path).manifest
    other = packed(tmp_path, write(tmp_path / "other"), name="other", images_per_shard=4).manifest
    assert other.class_names == CLASSES
    assert other.digest == folder.digest


def test_rows_are_found_across_shards_in_any_order(tmp_path: Path) -> None:
    packed(tmp_path)
    images = ready(tmp_path, "pets").pretrain.array
    rows = np.random.default_rng(0).permutation(10)
    expected = np.concatenate(list(ImageFolderSource(tmp_path / "source").open().train.blocks(SIDE)))
    np.testing.assert_array_equal(images[rows], expected[rows])
    for row in (-1, 10):
        with pytest.raises(IndexError, match="of 10 images"):
            images[np.array([row])]


def test_a_packed_data_set_is_listed_and_decoded_again_at_another_size(tmp_path: Path) -> None:
    packed(tmp_path)
    info = describe("pets", tmp_path / "sets")
    assert (info.num_train, info.num_test, info.num_classes, info.native_image_size) == (10, 4, 2, SIDE)
    smaller = ready(tmp_path, "pets", image_size=4)
    assert smaller.pretrain.images.shape == (len(smaller.pretrain), 4, 4, 3)
    assert smaller.digest != ready(tmp_path, "pets").digest


def test_progress_is_told_after_each_shard(tmp_path: Path) -> None:
    told: list[Progress] = []
    packed(tmp_path, on_shard=told.append)
    assert [(at.num_shards, at.num_images) for at in told] == [(1, 3), (2, 6), (3, 9), (4, 10), (5, 13), (6, 14)]
    assert {(at.num_shards_in_all, at.num_images_in_all) for at in told} == {(6, 14)}


# --- what was ended or damaged --------------------------------------------------------------------


def test_a_killed_packing_goes_on_with_what_it_has(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    target = tmp_path / "sets" / "pets"
    process = get_context("spawn").Process(target=pack_until_killed, args=(source, target))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert sorted(path.name for path in target.glob("*.raw")) == ["train-00000.raw", "train-00001.raw"]
    assert list(target.glob(".train-00002.raw.*.partial"))
    with pytest.raises(DataError, match="there is no data set 'pets'"):
        describe("pets", tmp_path / "sets")
    first = (target / "train-00000.raw").stat()

    packing = packed(tmp_path, source, images_per_shard=2, resumes=True)

    assert (packing.num_kept, packing.num_written) == (2, 5)
    assert (target / "train-00000.raw").stat().st_ino == first.st_ino
    assert packing.manifest.digest == packed(tmp_path, source, name="whole").manifest.digest
    assert not list(target.glob(".*"))


def test_a_damaged_shard_is_named_and_it_alone_is_written_again(tmp_path: Path) -> None:
    before = packed(tmp_path).manifest
    target = tmp_path / "sets" / "pets"
    content = bytearray((target / "train-00001.raw").read_bytes())
    content[100] ^= 1
    (target / "train-00001.raw").write_bytes(content)
    with pytest.raises(DataError, match=r"pets/train-00001\.raw is damaged"):
        verify(target)
    packing = packed(tmp_path, tmp_path / "source", resumes=True)
    assert (packing.num_kept, packing.num_written) == (5, 1)
    assert verify(target) == packing.manifest == before


def test_damaged_labels_are_noticed(tmp_path: Path) -> None:
    packed(tmp_path)
    path = tmp_path / "sets" / "pets" / "train_labels.npy"
    np.save(path, 1 - np.load(path))
    with pytest.raises(DataError, match="labels or manifest"):
        verify(path.parent)
    os.truncate(path, 140)
    with pytest.raises(DataError, match=r"pets/train_labels\.npy is damaged"):
        ready(tmp_path, "pets")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: os.truncate(folder / "test-00001.raw", 100), "test-00001.raw is damaged: it has 100 bytes"),
        (lambda folder: (folder / "train-00002.raw").unlink(), "train-00002.raw is damaged: No such file"),
        (lambda folder: os.truncate(folder / "manifest.json", 50), "manifest.json is damaged or of another version"),
    ],
    ids=["cut short", "missing", "manifest"],
)
def test_a_data_set_that_is_not_whole_is_refused_with_the_file_and_the_way_out(
    tmp_path: Path, damage: Callable[[Path], Any], said: str
) -> None:
    packed(tmp_path)
    damage(tmp_path / "sets" / "pets")
    for use in (lambda: describe("pets", tmp_path / "sets"), lambda: ready(tmp_path, "pets")):
        with pytest.raises(DataError) as refused:
            use()
        assert f"pets/{said}" in refused.value.message
        assert "--resume" in refused.value.message or "pack it again" in refused.value.message


# --- what is refused ------------------------------------------------------------------------------


def test_a_folder_that_is_taken_is_refused_with_the_way_out(tmp_path: Path) -> None:
    packed(tmp_path)
    source = tmp_path / "source"
    with pytest.raises(DataError, match="is a packed data set; --resume mends it"):
        packed(tmp_path, source)
    with pytest.raises(DataError, match="image_size was 8 and is 16"):
        packed(tmp_path, source, image_size=16, resumes=True)
    os.utime(source / "train" / CLASSES[0] / "0.png", (1, 1))
    with pytest.raises(DataError, match="the source has changed; remove it"):
        packed(tmp_path, source, resumes=True)
    with pytest.raises(DataError, match="is not empty, and no packed data set"):
        pack(source_at(source), source, image_size=SIDE, resumes=True)
    with pytest.raises(DataError, match="'A B' is no name for a data set"):
        packed(tmp_path, source, name="A B")


def test_more_shards_than_can_be_mapped_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.packing.MAX_SHARDS", 3)
    with pytest.raises(DataError, match="3 images a shard are more than 3 shards; put 4 or more"):
        packed(tmp_path, images_per_shard=3)
    assert len(packed(tmp_path, tmp_path / "source", images_per_shard=None).manifest.train) == 1


def test_two_do_not_pack_into_one_folder(tmp_path: Path) -> None:
    work = tmp_path / "sets" / "pets" / ".packing"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="is being packed by another process"):
            packed(tmp_path)
    packed(tmp_path, tmp_path / "source")


def test_an_unreadable_image_is_refused_by_name_or_left_out_by_name(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    (source / "train" / CLASSES[0] / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"source/train/ant/1\.png is no image"):
        packed(tmp_path, source)
    with pytest.raises(DataError, match="holds an unfinished packing; --resume ends it"):
        packed(tmp_path, source)
    packing = packed(tmp_path, source, leaves_out_unreadable=True, resumes=True)
    (warning,) = packing.manifest.warnings
    assert warning.startswith("1 images could not be read and were left out: source/train/ant/1.png is no image")
    assert np.load(tmp_path / "sets" / "pets" / "train_labels.npy").tolist() == [0] * 4 + [1] * 5
    (source / "train" / CLASSES[0] / "1.png").unlink()
    assert packed(tmp_path, source, name="without").manifest.digest == packing.manifest.digest


def test_too_little_left_to_train_on_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    for index in range(4):
        (source / "train" / CLASSES[1] / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"without what cannot be read, has classes .* bee \(1\)"):
        packed(tmp_path, source, leaves_out_unreadable=True)


def stale(*_arguments: object, **_options: object) -> Any:
    raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize(
    ("write", "where"),
    [(write_parquet, "pyarrow.parquet.ParquetFile"), (write_tar, "trainer.data.web_dataset._headers")],
)
def test_a_file_that_cannot_be_reached_at_present_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path], where: str
) -> None:
    source = source_at(write(tmp_path / "pets"))
    monkeypatch.setattr(where, stale)
    with pytest.raises(StorageUnavailable, match=r"pets/.* cannot be read at present: Stale file handle"):
        source.open()


def test_a_packed_data_set_that_cannot_be_reached_at_present_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.data.packed_files.FolderFiles.sizes", stale)
        with pytest.raises(StorageUnavailable, match="pets cannot be read at present"):
            ready(tmp_path, "pets")
    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(StorageUnavailable, match=r"pets/manifest\.json cannot be read at present"):
        ready(tmp_path, "pets")
    with pytest.raises(StorageUnavailable, match=r"train\.gz cannot be read at present"):
        read_idx(tmp_path / "train.gz", num_dims=1)


def test_an_image_that_cannot_be_reached_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "source")
    monkeypatch.setattr("PIL.Image.open", stale)
    with pytest.raises(StorageUnavailable, match="cannot be read at present: Stale file handle"):
        packed(tmp_path, source, leaves_out_unreadable=True)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="0 training images"):
        packed(tmp_path, tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere is not there"):
        packed(tmp_path, tmp_path / "nowhere")


def test_labels_that_only_some_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/0\.tar: ant/3\.png has no \.cls and others have"):
        packed(tmp_path, write_tar(tmp_path / "some", labelled=3))
    folder = write_parquet(tmp_path / "rows")
    bare = pq.read_table(folder / "train-00001-of-00002.parquet").drop_columns("label")
    pq.write_table(bare, folder / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match="has no column 'label' and others have"):
        packed(tmp_path, folder)
    pq.write_table(bare, folder / "train-00000-of-00002.parquet")
    with pytest.raises(DataError, match="train has no labels, test has labels that are numbers"):
        packed(tmp_path, folder)


def test_files_that_are_not_what_they_are_called_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("train.parquet", "train.tar"):
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir()
        (folder / name).write_bytes(b"something else" * 100)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            packed(tmp_path, folder)


def test_rows_without_an_image_or_a_label_are_refused_by_number(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [{"image": content, "label": 0} for _, _, content in pictures("train")]
    rows[3]["image"] = None
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    with pytest.raises(DataError, match=r"rows/train\.parquet row 3 holds no bytes of an image"):
        packed(tmp_path, folder)
    rows[2]["label"] = None
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    with pytest.raises(DataError, match="1 rows have no label"):
        packed(tmp_path, folder)
    with pytest.raises(DataError, match="has no column 'img'; it has image, label: name one by --image-column"):
        pack(source_at(folder, image_column="img"), tmp_path / "sets" / "x", image_size=SIDE)


def test_an_image_cut_short_in_a_tar_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "train.tar", "w") as tar:
        for name, index, content in pictures("train"):
            add(tar, f"{name}-{index}.png", content[:60] if index == 1 else content)
    with pytest.raises(DataError, match=r"tars/train\.tar: ant-1\.png is "):
        packed(tmp_path, folder)


# --- memory ---------------------------------------------------------------------------------------


class Wide:
    """A hundred megabytes of pixels, made as they are asked for."""

    SIDE = 64
    NUM_IMAGES = 8000

    def fingerprint(self) -> str:
        return "wide"

    def open(self) -> SourceSplits:
        images = np.broadcast_to(np.arange(self.SIDE, dtype=np.uint8)[:, None, None], (self.NUM_IMAGES, 64, 64, 3))
        return SourceSplits(
            train=SourceSplit(num_images=len(images), blocks=array_blocks(images)), test=None, class_names=None
        )


def test_an_epoch_is_read_within_a_third_of_the_memory_that_the_images_would_take(tmp_path: Path) -> None:
    manifest = pack(Wide(), tmp_path / "wide", image_size=Wide.SIDE, images_per_shard=1500).manifest
    size_bytes = manifest.num_train * Wide.SIDE**2 * 3
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        found = process.submit(
            read_within, tmp_path, "wide", Wide.SIDE, size_bytes // 3
        ).result()  # the stack of a thread is 8 MB of it
    assert found["sum"] == round(7200 * 64 * 3 * 64 * 31.5)
    assert not found["fits"], "the limit has to bite where all images are read at once"
