"""Decoding once a node: what is converted, what is refused, and what the cache promises."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.catalogue import list_datasets
from trainer.data.dataset import Dataset
from trainer.data.idx import FashionMnistSource
from trainer.data.image_folder import FileBlocks, ImageFolderSource
from trainer.data.prepare import prepare
from trainer.data.torchvision_folders import CIFAR10, CifarSource, Stl10Source
from trainer.errors import DataError, StorageUnavailable

SIZE = 8


def picture(seed: int, side: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def write_folder(root: Path, *, classes: int = 2, images: int = 4, test_images: int = 2) -> Path:
    for split, count, offset in (("train", images, 0), ("test", test_images, 1000)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                picture(offset + 100 * label + index).save(folder / f"{index}.png")
    return root


def ready(name: str, tmp_path: Path, **overrides: Any) -> Dataset:
    arguments: dict[str, Any] = {
        "image_size": SIZE,
        "cache_dir": tmp_path / "cache",
        "datasets_dir": tmp_path,
        "validation_ratio": 0.3,
    }
    return prepare(name, **(arguments | overrides))


def colour_of(tmp_path: Path, image: Image.Image, name: str, **options: Any) -> tuple[int, ...]:
    """Return the middle pixel of an image file after a round through `prepare`."""
    folder = write_folder(tmp_path / "shown", test_images=0) / "test" / "class0"
    image.save(folder / name, **options)
    test = ready("shown", tmp_path).read_test()
    assert test is not None
    return tuple(int(value) for value in test.images[0, SIZE // 2, SIZE // 2])


# --- what is converted ----------------------------------------------------------------------------


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    assert colour_of(tmp_path, Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)), "a.png") == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((SIZE, SIZE), 0x4321, np.uint16))
    assert colour_of(tmp_path, grey, "a.png") == (0x43, 0x43, 0x43)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    red, green, blue = colour_of(tmp_path, Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), "a.tif")
    assert red > 200
    assert max(green, blue) < 60


def test_palettes_become_rgb(tmp_path: Path) -> None:
    assert colour_of(tmp_path, Image.new("RGB", (SIZE, SIZE), (10, 200, 30)).convert("P"), "a.gif")[1] > 150


def test_the_cameras_turn_is_undone(tmp_path: Path) -> None:
    upright = Image.new("RGB", (SIZE, SIZE), "black")
    upright.paste("white", (0, 0, SIZE, SIZE // 2))  # white above black
    folder = write_folder(tmp_path / "turned", test_images=0) / "test" / "class0"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "a.png", exif=exif)
    test = ready("turned", tmp_path).read_test()
    assert test is not None
    np.testing.assert_array_equal(test.images[0], np.asarray(upright))


def test_short_side_is_resized_and_the_centre_cut_out(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), "blue")
    wide.paste("red", (32, 0, 64, 32))
    assert colour_of(tmp_path, wide, "a.png") == (255, 0, 0)


def test_images_of_mixed_sizes_become_one_size(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mixed") / "train" / "class0"
    for index, size in enumerate([(5, 9), (64, 17), (1, 1), (SIZE, SIZE)]):
        picture(index, side=64).resize(size).save(folder / f"{index}.png")
    dataset = ready("mixed", tmp_path)
    assert dataset.pretrain.array[np.arange(8)].shape == (8, SIZE, SIZE, 3)


def test_splits_of_two_sizes_become_one_size(tmp_path: Path) -> None:
    labels = np.array([0, 1] * 3)
    larger = np.zeros((6, 2 * SIZE, 3 * SIZE, 3), np.uint8)
    np.savez(tmp_path / "mixed.npz", **GOOD, test_images=larger, test_labels=labels)
    test = ready("mixed", tmp_path).read_test()
    assert test is not None
    assert test.images.shape == (6, SIZE, SIZE, 3)


def test_grey_arrays_get_three_equal_channels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 1), np.uint8)
    np.savez(tmp_path / "grey.npz", train_images=images)
    dataset = ready("grey", tmp_path)
    everything = dataset.pretrain.array[np.arange(9)]
    np.testing.assert_array_equal(everything, np.repeat(images, 3, axis=3))
    assert dataset.pretrain.labels is None
    assert dataset.class_names is None
    assert dataset.read_test() is None


# --- what is refused, by name ---------------------------------------------------------------------


def refused(tmp_path: Path, name: str = "bad") -> str:
    with pytest.raises(DataError) as caught:
        ready(name, tmp_path)
    left = [path for path in (tmp_path / "cache").glob("datasets/*") if path.suffix != ".lock"]
    assert not left, "nothing half-decoded may stay, let alone be taken for whole"
    return caught.value.message


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bad")
    (folder / "train" / "class1" / "link.png").symlink_to("/etc/passwd")
    assert "train/class1/link.png is a symbolic link" in refused(tmp_path)


def test_a_linked_class_folder_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bad")
    (folder / "train" / "class9").symlink_to(folder / "train" / "class1")
    assert "class9 is a symbolic link" in refused(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 13_400])  # over Pillow's limit, and over twice of it
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    folder = write_folder(tmp_path / "bad")
    Image.new("1", (side, side)).save(folder / "train" / "class0" / "bomb.png")
    assert "bomb.png has more than" in refused(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "bad") / "train" / "class0" / "cut.jpg"
    picture(1, side=64).save(path)
    path.write_bytes(path.read_bytes()[:800])
    assert "bad/train/class0/cut.jpg is damaged or truncated" in refused(tmp_path)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (write_folder(tmp_path / "bad") / "train" / "class0" / "text.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    assert "text.png is no image" in refused(tmp_path)


def test_a_class_of_one_image_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bad") / "train" / "lonely"
    folder.mkdir()
    picture(3).save(folder / "0.png")
    assert "lonely (1)" in refused(tmp_path)


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    (write_folder(tmp_path / "bad") / "train" / "empty").mkdir()
    assert "train/empty holds no images" in refused(tmp_path)


def test_a_test_class_that_is_not_trained_on_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bad") / "test" / "other"
    folder.mkdir()
    picture(3).save(folder / "0.png")
    assert "test/other is no class of train/" in refused(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    picture(3).save(write_folder(tmp_path / "bad") / "train" / "stray.png")
    assert "stray.png lies beside class folders" in refused(tmp_path)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "bad", classes=1, images=3)
    assert "3 training images" in refused(tmp_path)


GOOD: dict[str, Any] = {"train_images": np.zeros((6, SIZE, SIZE, 3), np.uint8), "train_labels": np.array([0, 1] * 3)}


class Trap:
    """Unpickling one would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_labels": np.array([0, 1, 2])}, "train_labels has shape (3,)"),
        ({"train_labels": np.array([0, 1, 0, 1, 0, -1])}, "train_labels holds -1"),
        ({"classes": np.array(["only"])}, "train_labels holds 1, but there are 1 classes"),
        ({"train_labels": np.linspace(0, 1, 6)}, "train_labels holds float64"),
        ({"train_labels": np.array([Trap()] * 6)}, "train_labels holds Python objects"),
        ({"train_images": np.array([Trap()] * 6)}, "train_images holds Python objects"),
        ({"train_images": np.zeros((6, SIZE, SIZE, 3))}, "train_images is float64"),
        ({"train_images": np.zeros((6, 3, SIZE, SIZE), np.uint8)}, "train_images is uint8 of shape"),
        ({"train_labels": np.array([0, 1, 0, 1, 0, 2])}, "2 (1)"),
        ({"train_labels": np.array([0, 0, 0, 2, 2, 2])}, "1 (0)"),
        ({"train_images": GOOD["train_images"][:3], "train_labels": np.zeros(3, int)}, "3 training images"),
        ({"test_images": np.zeros((2, SIZE, 0, 3), np.uint8), "test_labels": np.zeros(2, int)}, "test_images is uint8"),
        ({"test_images": np.zeros((2, SIZE, SIZE, 3), np.uint8)}, "test_labels is missing"),
    ],
)
def test_bad_arrays_are_refused_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "bad.npz", **(GOOD | arrays))
    assert message in refused(tmp_path)
    assert not (tmp_path / "unpickled").exists()


def test_arrays_of_mixed_sizes_are_refused_by_field(tmp_path: Path) -> None:
    ragged = np.empty(6, object)
    ragged[:] = [np.zeros((side, side, 3), np.uint8) for side in range(8, 14)]
    np.savez(tmp_path / "bad.npz", **(GOOD | {"train_images": ragged}))
    assert "train_images holds Python objects" in refused(tmp_path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_an_array_file_cut_short_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **GOOD)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "bad.npz is no .npz file" in refused(tmp_path)


def test_damage_inside_an_array_file_is_refused_by_field(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, train_images=np.zeros((600, SIZE, SIZE, 3), np.uint8))  # larger than what reading its header reads
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "bad.npz: train_images cannot be read: Bad CRC-32" in refused(tmp_path)


def test_an_array_file_that_cannot_be_unpacked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **GOOD)
    content = bytearray(path.read_bytes())
    name_length, extra_length = struct.unpack("<HH", content[26:30])
    content[30 + name_length + extra_length] = 0xFF  # a block of a kind that there is not
    path.write_bytes(content)
    assert "bad.npz is no .npz file: Error -3" in refused(tmp_path)


def test_an_array_of_fewer_bytes_than_its_header_announces_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive, archive.open("train_images.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (6, SIZE, SIZE, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(100))
    assert "train_images is truncated: its header announces shape (6, 8, 8, 3)" in refused(tmp_path)


def test_an_encrypted_array_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **GOOD)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the first member's own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(content)
    assert "bad.npz is no .npz file" in refused(tmp_path)


def test_arrays_without_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", train_labels=GOOD["train_labels"])
    assert "bad.npz: train_images is missing" in refused(tmp_path)


# --- torchvision's and Debian's files -------------------------------------------------------------


def write_cifar(root: Path, content: Any) -> dict[str, str]:
    folder = root / CIFAR10.folder
    folder.mkdir(exist_ok=True)
    md5 = {}
    for name in ("train_batch", "test_batch", "meta"):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        md5[name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return md5


def test_cifar_pickles_of_unknown_md5_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    for name in (*CIFAR10.train_md5, *CIFAR10.test_md5, *CIFAR10.meta_md5):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"has md5 .* not the published"):
        ready("cifar10", tmp_path)
    assert not (tmp_path / "unpickled").exists()


def test_cifar_rows_become_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    rows = images.transpose(0, 3, 1, 2).reshape(4, -1)
    md5 = write_cifar(tmp_path, {"data": rows, "labels": [0, 1, 2, 3], "label_names": ["a", "b", "c", "d"]})
    layout = replace(
        CIFAR10,
        train_md5={"train_batch": md5["train_batch"]},
        test_md5={"test_batch": md5["test_batch"]},
        meta_md5={"meta": md5["meta"]},
    )
    splits = CifarSource(layout, tmp_path).open()
    np.testing.assert_array_equal(next(splits.train.blocks(32)), images)
    assert splits.class_names == ("a", "b", "c", "d")


def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    for prefix in ("train", "t10k"):
        header = b"".join(size.to_bytes(4, "big") for size in images.shape)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(b"\0\0\x08\x03" + header + images.tobytes())
        )
        labels = bytes(index % 10 for index in range(20))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(b"\0\0\x08\x01" + (20).to_bytes(4, "big") + labels)
        )
    source = FashionMnistSource.under(tmp_path)
    assert source.info().num_train == 20
    splits = source.open()
    np.testing.assert_array_equal(next(splits.train.blocks(28))[..., 1], images)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + header + b"short"))
    with pytest.raises(DataError, match="is truncated"):
        source.open()


def test_stl10_is_stored_column_by_column_with_classes_from_one(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    for split in ("train", "test"):
        images.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
        np.array([1, 2], np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    splits = Stl10Source(tmp_path).open()
    np.testing.assert_array_equal(next(splits.train.blocks(96)), images)
    assert splits.train.labels is not None
    assert splits.train.labels.tolist() == [0, 1]


# --- what the cache promises ----------------------------------------------------------------------


def test_splits_are_disjoint_whole_and_hold_every_class(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", classes=3, images=7)
    dataset = ready("pets", tmp_path)
    ids = np.concatenate([dataset.pretrain.sample_ids, dataset.validation.sample_ids])
    assert sorted(ids) == list(range(21))
    assert dataset.pretrain.labels is not None
    assert dataset.validation.labels is not None
    assert set(dataset.pretrain.labels) == set(dataset.validation.labels) == {0, 1, 2}
    assert (dataset.num_train, dataset.num_test, dataset.num_classes) == (21, 6, 3)
    np.testing.assert_array_equal(dataset.pretrain.take(np.array([1]))[0], dataset.pretrain.images[1])


def test_an_unchanged_source_is_not_decoded_again(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    first = ready("pets", tmp_path)
    (entry,) = (tmp_path / "cache" / "datasets").glob("pets-*")
    before = (entry / "train-00000.raw").stat()
    assert ready("pets", tmp_path).digest == first.digest
    after = (entry / "train-00000.raw").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_changed_source_is_noticed_and_has_another_digest(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets") / "train" / "class0" / "0.png"
    before = ready("pets", tmp_path)
    picture(4321).save(path)
    assert ready("pets", tmp_path).digest != before.digest


def test_touching_a_file_changes_no_digest(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "pets") / "train" / "class0" / "0.png"
    before = ready("pets", tmp_path)
    os.utime(path, (1, 1))
    assert ready("pets", tmp_path).digest == before.digest


def test_a_damaged_cache_is_decoded_again(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    before = ready("pets", tmp_path)
    pixels = before.pretrain.images
    (entry,) = (tmp_path / "cache" / "datasets").glob("pets-*")
    os.truncate(entry / "train-00000.raw", 100)
    after = ready("pets", tmp_path)
    assert after.digest == before.digest
    np.testing.assert_array_equal(after.pretrain.images, pixels)


def test_what_a_killed_caller_left_is_swept(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    ready("pets", tmp_path)
    (entry,) = (tmp_path / "cache" / "datasets").glob("pets-*")
    partial = entry.parent / f".{entry.name}.partial"
    entry.rename(partial)
    (partial / "rubbish.npy").write_bytes(b"half")
    ready("pets", tmp_path)
    assert not (entry / "rubbish.npy").exists()
    assert not partial.exists()


def test_callers_that_race_share_one_decoding(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", images=20)
    with ThreadPoolExecutor(8) as pool:
        datasets = list(pool.map(lambda _: ready("pets", tmp_path), range(8)))
    assert len({dataset.digest for dataset in datasets}) == 1
    assert len(list((tmp_path / "cache" / "datasets").glob("pets-*"))) == 1


def test_an_image_in_both_splits_is_warned_about_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets")
    picture(0).save(folder / "test" / "class1" / "copy.png")  # train/class0/0.png again
    (warning,) = ready("pets", tmp_path).warnings
    assert warning == "1 test images are also in the training set: test/class1/copy.png = train/class0/0.png"


def test_files_that_are_no_images_are_left_out_and_named(tmp_path: Path) -> None:
    (write_folder(tmp_path / "pets") / "train" / "class0" / "notes.txt").write_text("hello")
    (warning,) = ready("pets", tmp_path).warnings
    assert "train/class0/notes.txt" in warning


def test_flat_folders_are_unlabelled(tmp_path: Path) -> None:
    folder = tmp_path / "flat" / "train"
    folder.mkdir(parents=True)
    for index in range(8):
        picture(index).save(folder / f"{index}.png")
    dataset = ready("flat", tmp_path)
    assert dataset.pretrain.labels is None
    assert len(dataset.validation) == 2


def test_openmoji_is_drawn_at_the_size_asked_for(tmp_path: Path) -> None:
    dataset = ready("openmoji", tmp_path, image_size=16, validation_ratio=0.1)
    test = dataset.read_test()
    assert test is not None
    assert test.images.shape == (dataset.num_test, 16, 16, 3)
    corners = dataset.pretrain.images[:, 0, 0]
    assert (corners == 255).mean() > 0.8  # drawn on white, inside the frame
    assert (dataset.pretrain.images.reshape(len(dataset.pretrain), -1).min(axis=1) < 255).all()  # none is blank
    shares = [np.mean(np.asarray(part.labels) == 5) for part in (dataset.pretrain, dataset.validation, test)]
    assert max(shares) - min(shares) < 0.02


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_data(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageUnavailable, match="cannot be written"):
        ready("pets", tmp_path, cache_dir=tmp_path / "file" / "cache")


# --- what passes ----------------------------------------------------------------------------------


def failing(error: OSError) -> Callable[..., Any]:
    def fail(*_arguments: object, **_options: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("where", ["PIL.Image.open", "trainer.data.pixels.to_square_rgb"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EIO, errno.ETIMEDOUT])
def test_an_image_that_cannot_be_reached_is_no_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    write_folder(tmp_path / "pets")
    monkeypatch.setattr(where, failing(OSError(number, os.strerror(number))))
    with pytest.raises(StorageUnavailable, match=rf"pets/train/class\d/\d.png cannot .* {os.strerror(number)}"):
        ready("pets", tmp_path)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_an_image_that_nobody_may_read_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_folder(tmp_path / "pets")
    monkeypatch.setattr("PIL.Image.open", failing(OSError(number, os.strerror(number))))
    with pytest.raises(DataError, match=rf"pets/train/class\d/\d.png cannot be read: {os.strerror(number)}"):
        ready("pets", tmp_path)


def test_a_damaged_image_that_sends_its_decoder_nowhere_is_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "pets")
    monkeypatch.setattr("PIL.Image.open", failing(OSError(errno.EINVAL, "Invalid argument")))
    with pytest.raises(DataError, match="is no image that can be read"):
        ready("pets", tmp_path)


@pytest.mark.parametrize("where", ["zipfile.ZipFile", "numpy.load"])
def test_an_array_file_that_cannot_be_reached_is_not_damaged_and_listed_with_its_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write_folder(tmp_path / "pets")
    np.savez(tmp_path / "digital.npz", **GOOD)
    monkeypatch.setattr(where, failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(StorageUnavailable, match=r"digital.npz cannot be read at present: Input/output error"):
        ready("digital", tmp_path)
    problems = {info.name: info.problem for info in list_datasets(tmp_path)}
    assert problems["pets"] is None
    assert "digital.npz cannot be read at present" in str(problems["digital"])


def test_a_folder_that_cannot_be_reached_is_no_fault_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "pets")

    def fail(*_arguments: object) -> Iterator[Any]:
        yield from ()
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(FileBlocks, "__call__", fail)
        with pytest.raises(StorageUnavailable, match=r"the images cannot be read at present: .*Input/output error"):
            ready("pets", tmp_path)
    monkeypatch.setattr(ImageFolderSource, "open", failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(StorageUnavailable, match=r"the data set cannot be read at present: .*Input/output error"):
        ready("pets", tmp_path)
