"""Packed data sets in a bucket: the same files, the same data set, and each object fetched once a node."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import moto.settings
import numpy as np
import pytest

from tests.harness.object_store import ObjectStore
from tests.harness.packed_data import CLASSES, SIDE, pack_until_killed, prepare_until_killed, write_folder
from trainer.data.bucket_files import BucketFiles
from trainer.data.catalogue import EMBEDDED, describe, list_datasets
from trainer.data.dataset import Dataset
from trainer.data.packed import verify
from trainer.data.packing import Packing, pack, source_at
from trainer.data.prepare import prepare
from trainer.errors import DataError, StorageUnavailable
from trainer.storage import S3Storage


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        yield store


@pytest.fixture
def sets(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return where the data sets of this test lie."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return object_store.uri(f"{tmp_path.name}/sets")


def packed(tmp_path: Path, sets: str | Path, name: str = "pets", **changes: Any) -> Packing:
    """Pack the pictures as 4 shards of training images and 2 of test images."""
    source = tmp_path / "source"
    if not source.exists():
        write_folder(source)
    arguments: dict[str, Any] = {"image_size": SIDE, "images_per_shard": 3}
    return pack(source_at(source), f"{sets}/{name}", **(arguments | changes))


def ready(tmp_path: Path, sets: str | Path, *, image_size: int = SIDE, cache: str = "cache") -> Dataset:
    return prepare("pets", image_size=image_size, cache_dir=tmp_path / cache, datasets_dir=sets, validation_ratio=0.3)


def objects(sets: str, name: str = "pets") -> dict[str, bytes]:
    storage = S3Storage.at(f"{sets}/{name}")
    return {key: storage.read(key) for key in storage.list("")}


def flip(sets: str, file: str) -> None:
    storage = S3Storage.at(f"{sets}/pets")
    content = bytearray(storage.read(file))
    content[100] ^= 1
    storage.write(file, bytes(content))


def shards(store: ObjectStore, verb: str, body: Callable[[], Any]) -> list[str]:
    """Return the names of the shards that are put or got while `body` runs, sorted."""
    before = len(store.link.requests)
    body()
    lines = [line.split() for line in store.link.requests[before:]]
    return sorted(
        line[1].rpartition("/")[2].partition("?")[0] for line in lines if line[0] == verb and ".raw" in line[1]
    )


# --- packing --------------------------------------------------------------------------------------


def test_a_bucket_gets_the_files_that_a_folder_gets(tmp_path: Path, sets: str) -> None:
    in_bucket, in_folder = packed(tmp_path, sets), packed(tmp_path, tmp_path / "sets")
    assert in_bucket == in_folder
    folder = tmp_path / "sets" / "pets"
    assert objects(sets) == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert verify(f"{sets}/pets") == verify(folder) == in_folder.manifest


def test_a_killed_packing_goes_on_with_the_objects_it_has(tmp_path: Path, sets: str, object_store: ObjectStore) -> None:
    source = write_folder(tmp_path / "source")
    process = get_context("spawn").Process(target=pack_until_killed, args=(source, f"{sets}/pets"))
    process.start()
    process.join()
    assert process.exitcode == -9
    shown = [key for key in objects(sets) if not key.startswith(".")]
    assert shown == ["train-00000.raw", "train-00001.raw"]
    with pytest.raises(DataError, match="there is no data set 'pets'"):
        describe("pets", sets)
    with pytest.raises(DataError, match=r"sets/pets holds an unfinished packing; --resume ends it, or remove it"):
        packed(tmp_path, sets, images_per_shard=2)

    packings: list[Packing] = []
    put = shards(object_store, "PUT", lambda: packings.append(packed(tmp_path, sets, images_per_shard=2, resumes=True)))

    assert (packings[0].num_kept, packings[0].num_written) == (2, 5)
    assert "train-00001.raw" not in put
    assert "train-00002.raw" in put
    assert packings[0].manifest == packed(tmp_path, tmp_path, images_per_shard=2).manifest
    assert objects(sets).keys() == {path.name for path in (tmp_path / "pets").iterdir()}


def test_a_put_that_is_torn_leaves_no_shard(tmp_path: Path, sets: str, object_store: ObjectStore) -> None:
    with object_store.link.tearing("train-00001.raw "), pytest.raises(StorageUnavailable, match="cannot write train-0"):
        packed(tmp_path, sets)
    assert [key for key in objects(sets) if not key.startswith(".")] == ["train-00000.raw"]
    assert packed(tmp_path, sets, resumes=True).num_kept == 1
    verify(f"{sets}/pets")


def test_two_that_pack_the_same_at_once_make_one_data_set(tmp_path: Path, sets: str) -> None:
    write_folder(tmp_path / "source")
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: packed(tmp_path, sets, resumes=True), range(2))
    assert one.manifest == other.manifest == verify(f"{sets}/pets")
    assert not [key for key in objects(sets) if key.startswith(".")]


def test_of_two_plans_at_once_one_is_refused(sets: str) -> None:
    files = BucketFiles(f"{sets}/pets")
    with files.claimed(b"a plan", is_new=True), pytest.raises(DataError, match="pets is being packed by another"):
        files.claimed(b"another plan", is_new=True).__enter__()


def test_a_place_that_is_taken_is_refused_with_the_way_out(tmp_path: Path, sets: str) -> None:
    packed(tmp_path, sets)
    with pytest.raises(DataError, match="sets/pets is a packed data set; --resume mends it, or remove it"):
        packed(tmp_path, sets)
    with pytest.raises(DataError, match="sets/pets was packed otherwise: image_size was 8 and is 16; remove it"):
        packed(tmp_path, sets, image_size=16, resumes=True)
    S3Storage.at(sets).write("other/notes.txt", b"hello")
    with pytest.raises(DataError, match="sets/other is not empty, and no packed data set; pack elsewhere"):
        packed(tmp_path, sets, name="other", resumes=True)
    with pytest.raises(DataError, match="'A B' is no name for a data set"):
        packed(tmp_path, sets, name="A B")
    with pytest.raises(DataError, match="s3://simclr is a whole bucket; name a data set in it, such as s3://simclr/"):
        verify("s3://simclr")


def test_a_shard_that_was_damaged_is_named_and_it_alone_is_written_again(
    tmp_path: Path, sets: str, object_store: ObjectStore
) -> None:
    before = packed(tmp_path, sets).manifest
    flip(sets, "train-00001.raw")
    with pytest.raises(DataError, match=r"pets/train-00001\.raw is damaged: its sha256 is not .* with --resume"):
        verify(f"{sets}/pets")
    put = shards(object_store, "PUT", lambda: packed(tmp_path, sets, resumes=True))
    assert [file for file in put if file.endswith(".raw")] == ["train-00001.raw"]  # and records
    assert verify(f"{sets}/pets") == before


def test_where_they_are_pickles_without_a_connection(tmp_path: Path, sets: str) -> None:
    packed(tmp_path, sets)
    files = pickle.loads(pickle.dumps(BucketFiles(f"{sets}/pets")))  # noqa: S301 - made here
    assert (files.name, str(files)) == ("pets", f"{sets}/pets")
    assert "manifest.json" in files.sizes()


def test_a_full_disk_is_told_apart_from_a_bucket(tmp_path: Path, sets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path, sets)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BucketFiles, "fetch", full)
    with pytest.raises(StorageUnavailable, match=r"raw finds no place in .*: No space left on device; set TMPDIR"):
        verify(f"{sets}/pets")
    with pytest.raises(StorageUnavailable, match="the node's cache of data sets cannot be written: No space left"):
        ready(tmp_path, sets)


# --- the catalogue --------------------------------------------------------------------------------


def test_what_has_a_manifest_is_listed_and_nothing_else_is_looked_into(
    tmp_path: Path, sets: str, object_store: ObjectStore
) -> None:
    packed(tmp_path, sets)
    packed(tmp_path, sets, name="pets2", images_per_shard=100)
    storage = S3Storage.at(sets)
    storage.write("raw/train/ant/0.png", b"a picture")
    storage.write("loose.npz", b"an archive")
    storage.write("manifest.json", b"of something else")
    before = len(object_store.link.requests)

    infos = {info.name: info for info in list_datasets(sets)}

    assert list(infos) == [*EMBEDDED, "pets", "pets2"]
    in_folder = packed(tmp_path, tmp_path / "sets").manifest
    assert infos["pets"] == describe("pets", sets) == describe("pets", tmp_path / "sets")
    assert (infos["pets2"].num_train, infos["digits"].problem) == (in_folder.num_train, None)
    asked = [line for line in object_store.link.requests[before:] if "GET" in line]
    listed = [line for line in asked if "list-type=2" in line]
    assert sum("delimiter" in line for line in listed) == 1
    assert len(listed) <= 1 + 3 + 1, "the names, each of them, and `describe`"
    assert len(asked) - len(listed) == 3, "a manifest of each, and `describe`"


def test_an_unknown_name_is_told_from_the_known_ones(tmp_path: Path, sets: str) -> None:
    packed(tmp_path, sets)
    S3Storage.at(sets).write("raw/train/ant/0.png", b"a picture")
    for name in ("dogs", "raw", "..", "pets/"):
        with pytest.raises(DataError, match="there is no data set") as refused:
            describe(name, sets)
        assert refused.value.context["allowed"] == [*EMBEDDED, "pets"]


def test_a_name_that_no_spec_can_say_is_listed_with_the_way_out(tmp_path: Path, sets: str) -> None:
    S3Storage.at(sets).write("Pets/manifest.json", b"{}")
    (info,) = (info for info in list_datasets(sets) if info.name == "Pets")
    assert "rename it" in (info.problem or "")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda files: files.write("test-00001.raw", b"short"), "test-00001.raw is damaged: it has 5 bytes"),
        (lambda files: files.delete("train-00002.raw"), "train-00002.raw is damaged: No such file"),
        (lambda files: files.write("manifest.json", b"{"), "manifest.json is damaged or of another version"),
    ],
    ids=["cut short", "missing", "manifest"],
)
def test_what_is_not_whole_is_refused_with_the_object_and_the_way_out(
    tmp_path: Path, sets: str, damage: Callable[[S3Storage], None], said: str
) -> None:
    packed(tmp_path, sets)
    damage(S3Storage.at(f"{sets}/pets"))
    for use in (lambda: describe("pets", sets), lambda: ready(tmp_path, sets), lambda: verify(f"{sets}/pets")):
        with pytest.raises(DataError) as refused:
            use()
        assert f"pets/{said}" in refused.value.message
        assert "--resume" in refused.value.message or "pack it again" in refused.value.message
    (info,) = (info for info in list_datasets(sets) if info.name == "pets")
    assert said in (info.problem or "")


# --- on a node ------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [SIDE, 4])
def test_a_node_has_the_data_set_that_a_folder_holds(tmp_path: Path, sets: str, image_size: int) -> None:
    packed(tmp_path, sets)
    packed(tmp_path, tmp_path / "sets", images_per_shard=5)
    here = ready(tmp_path, tmp_path / "sets", image_size=image_size, cache="other")
    fetched = ready(tmp_path, sets, image_size=image_size)
    assert (fetched.digest, fetched.class_names, fetched.warnings) == (here.digest, CLASSES, here.warnings)
    for one, other in (
        (fetched.pretrain, here.pretrain),
        (fetched.validation, here.validation),
        (fetched.read_test(), here.read_test()),
    ):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images, other.images)


def test_callers_that_race_fetch_each_shard_once_and_later_ones_nothing(
    tmp_path: Path, sets: str, object_store: ObjectStore
) -> None:
    manifest = packed(tmp_path, sets).manifest

    def race() -> None:
        with ThreadPoolExecutor(4) as pool:
            assert len({dataset.digest for dataset in pool.map(lambda _: ready(tmp_path, sets), range(4))}) == 1

    expected = sorted(shard.file for shard in (*manifest.train, *manifest.test))
    assert shards(object_store, "GET", race) == expected
    assert shards(object_store, "GET", lambda: ready(tmp_path, sets)) == []
    assert shards(object_store, "GET", lambda: ready(tmp_path, sets, image_size=4)) == []
    cached = [path.name for path in (tmp_path / "cache" / "datasets").glob("pets-*")]
    assert len(cached) == 2, "as it was packed, and at the other size"


def test_a_killed_fetch_goes_on_with_the_shards_it_has(tmp_path: Path, sets: str, object_store: ObjectStore) -> None:
    packed(tmp_path, sets, images_per_shard=2)
    process = get_context("spawn").Process(target=prepare_until_killed, args=("pets", sets, tmp_path / "cache"))
    process.start()
    process.join()
    assert process.exitcode == -9
    root = tmp_path / "cache" / "datasets"
    assert not list(root.glob("pets-*"))
    (partial,) = root.glob(".pets-*.partial")
    assert sorted(path.name for path in partial.glob("*.raw")) == ["train-00000.raw", "train-00001.raw"]
    (partial / "train-00000.raw").write_bytes(bytes(2 * SIDE * SIDE * 3))  # its size is right

    got = shards(object_store, "GET", lambda: ready(tmp_path, sets))

    assert got == ["test-00000.raw", "test-00001.raw", *(f"train-0000{index}.raw" for index in (0, 2, 3, 4))]
    (folder,) = root.glob("pets-*")
    assert not list(folder.glob(".*"))
    assert not partial.exists()
    assert verify(folder) == verify(f"{sets}/pets")


def test_a_shard_of_the_cache_that_was_cut_short_is_fetched_again_alone(
    tmp_path: Path, sets: str, object_store: ObjectStore
) -> None:
    packed(tmp_path, sets)
    ready(tmp_path, sets)
    (folder,) = (tmp_path / "cache" / "datasets").glob("pets-*")
    os.truncate(folder / "train-00001.raw", 5)
    assert shards(object_store, "GET", lambda: ready(tmp_path, sets)) == ["train-00001.raw"]
    assert verify(folder) == verify(f"{sets}/pets")


def test_a_shard_or_label_that_is_not_what_was_written_is_named_and_not_trained_on(
    tmp_path: Path, sets: str, object_store: ObjectStore
) -> None:
    packed(tmp_path, sets)
    flip(sets, "test-00000.raw")
    with pytest.raises(DataError, match=r"pets/test-00000\.raw is damaged: its sha256 is not .* with --resume"):
        ready(tmp_path, sets)
    assert not list((tmp_path / "cache" / "datasets").glob("pets-*"))
    packed(tmp_path, sets, resumes=True)
    assert shards(object_store, "GET", lambda: ready(tmp_path, sets, cache="cache")) == ["test-00000.raw"]

    storage = S3Storage.at(f"{sets}/pets")
    labels = bytearray(storage.read("train_labels.npy"))
    labels[-8] ^= 1
    storage.write("train_labels.npy", bytes(labels))
    with pytest.raises(DataError, match=r"the labels or manifest\.json of pets are not what was written"):
        ready(tmp_path, sets, cache="another")


# --- a bucket that does not answer ----------------------------------------------------------------


def test_a_bucket_that_is_away_is_an_outage_and_embedded_data_sets_go_on(
    tmp_path: Path, sets: str, object_store: ObjectStore
) -> None:
    packed(tmp_path, sets)
    with object_store.link.down():
        for use in (lambda: describe("pets", sets), lambda: list_datasets(sets), lambda: ready(tmp_path, sets)):
            with pytest.raises(StorageUnavailable, match=f"the data sets at {sets}.* cannot be reached: .*"):
                use()
        assert describe("digits", sets).problem is None
    assert ready(tmp_path, sets).num_train == 10


def test_a_bucket_that_went_away_in_the_middle_of_a_fetch_is_an_outage(
    tmp_path: Path, sets: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(tmp_path, sets)
    fetched = BucketFiles.fetch

    def fetch_without(files: BucketFiles, file: str, path: Path) -> None:
        if file != "train-00001.raw":
            return fetched(files, file, path)
        with object_store.link.down():
            return fetched(files, file, path)

    monkeypatch.setattr("trainer.data.fetch.NUM_FETCHED", 1)
    with monkeypatch.context() as patch:
        patch.setattr(BucketFiles, "fetch", fetch_without)
        with pytest.raises(StorageUnavailable, match=r"cannot read train-00001\.raw"):
            ready(tmp_path, sets)
    assert "train-00000.raw" not in shards(object_store, "GET", lambda: ready(tmp_path, sets))


def test_a_bucket_that_is_not_there_is_told_from_an_empty_one(tmp_path: Path, sets: str) -> None:
    said = r"s3://nowhere/sets.* cannot be reached: .*NoSuchBucket; see .*SIMCLR_DATASETS: no bucket has this name"
    for use in (
        lambda: list_datasets("s3://nowhere/sets"),
        lambda: describe("pets", "s3://nowhere/sets"),
        lambda: packed(tmp_path, "s3://nowhere/sets"),
        lambda: verify("s3://nowhere/sets/pets"),
    ):
        with pytest.raises(StorageUnavailable, match=said):
            use()
    assert [info.name for info in list_datasets(sets)] == list(EMBEDDED)


def test_a_refused_key_is_named_by_its_setting(sets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # from here on keys are looked at
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageUnavailable, match=r"InvalidAccessKeyId; see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS"):
        list_datasets(sets)
