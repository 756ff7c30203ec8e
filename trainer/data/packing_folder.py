"""The folder of a data set while it is being packed: held by one, with the plan that all its shards follow."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from trainer.data.catalogue import NAME_RULE, is_name
from trainer.data.files import whole_file
from trainer.data.manifest import Plan, parse_manifest
from trainer.data.packed import is_packed
from trainer.data.shard_job import WORK, record_shard
from trainer.errors import DataError

__all__ = ["packing_folder"]

PLAN: Final = "plan.json"


@contextmanager
def packing_folder(folder: Path, plan: Plan, *, resumes: bool) -> Iterator[None]:
    """Hold a folder for a packing by this plan; its records are of the same plan, and gone when it is complete.

    Raises:
        DataError: If the folder is not what it should be; says what to do.
    """
    if not is_name(folder.name):
        raise DataError(f"{folder.name!r} is no name for a data set: {NAME_RULE}")
    manifest = parse_manifest(folder) if is_packed(folder) else None
    earlier = manifest.plan if manifest is not None else _read_plan(folder)
    if earlier is not None and not resumes:
        is_done = manifest is not None
        state = (
            "is a packed data set; --resume mends it" if is_done else "holds an unfinished packing; --resume ends it"
        )
        raise DataError(f"{folder} {state}, or remove it")
    # What an earlier one was not told to leave out it has refused: its shards are whole either way.
    if earlier is not None and earlier not in (plan, plan.model_copy(update={"leaves_out_unreadable": False})):
        raise DataError(f"{folder} was packed otherwise: {_differences(earlier, plan)}; remove it, or pack elsewhere")
    if earlier is None and folder.exists() and any(entry.name != WORK for entry in folder.iterdir()):
        raise DataError(f"{folder} is not empty, and no packed data set; pack elsewhere")
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with _locked(folder / WORK / "lock", folder):
        for leftover in (*folder.glob(".*.partial"), *(folder / WORK).glob(".*.partial")):
            leftover.unlink(missing_ok=True)  # of one that was killed
        with whole_file(folder / WORK / PLAN) as path:
            path.write_text(plan.model_dump_json(), encoding="utf-8")
        for shard in (*manifest.train, *manifest.test) if manifest is not None else ():
            record_shard(folder, shard)
        yield
        shutil.rmtree(folder / WORK)


@contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, however it ends
        except BlockingIOError as error:
            raise DataError(f"{folder} is being packed by another process") from error
        yield


def _read_plan(folder: Path) -> Plan | None:
    try:
        return Plan.model_validate_json((folder / WORK / PLAN).read_bytes())
    except (OSError, ValidationError):
        return None


def _differences(earlier: Plan, plan: Plan) -> str:
    words = {"fingerprint": "the source has changed"}
    return ", ".join(
        words.get(name, f"{name} was {value} and is {getattr(plan, name)}")
        for name, value in earlier
        if value != getattr(plan, name)
    )
