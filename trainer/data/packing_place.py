"""The place of a data set while it is being packed: claimed for one plan, which all its shards follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from trainer.data.catalogue import NAME_RULE, is_name
from trainer.data.files import PLAN
from trainer.data.manifest import MANIFEST, Plan, parse_manifest
from trainer.data.packed_files import PackedFiles
from trainer.data.shard_job import record_shard
from trainer.errors import DataError

__all__ = ["packing_place"]


@contextmanager
def packing_place(files: PackedFiles, plan: Plan, *, resumes: bool) -> Iterator[None]:
    """Claim a place for a packing by this plan; its records are of the same plan, and gone when it is complete.

    Raises:
        DataError: If the place is not what it should be; says what to do.
        StorageUnavailable: If it is in a bucket that does not answer.
    """
    if not is_name(files.name):
        raise DataError(f"{files.name!r} is no name for a data set: {NAME_RULE}")
    found = files.sizes()
    manifest = parse_manifest(files) if MANIFEST in found else None
    earlier = manifest.plan if manifest is not None else _read_plan(files)
    if earlier is not None and not resumes:
        is_done = manifest is not None
        state = (
            "is a packed data set; --resume mends it" if is_done else "holds an unfinished packing; --resume ends it"
        )
        raise DataError(f"{files} {state}, or remove it")
    # What an earlier one was not told to leave out it has refused: its shards are whole either way.
    if earlier is not None and earlier not in (plan, plan.model_copy(update={"leaves_out_unreadable": False})):
        raise DataError(f"{files} was packed otherwise: {_differences(earlier, plan)}; remove it, or pack elsewhere")
    if earlier is None and found:
        raise DataError(f"{files} is not empty, and no packed data set; pack elsewhere")
    with files.claimed(plan.model_dump_json().encode(), is_new=earlier is None):
        for shard in (*manifest.train, *manifest.test) if manifest is not None else ():
            record_shard(files, shard)
        yield
        files.remove_work()


def _read_plan(files: PackedFiles) -> Plan | None:
    try:
        return Plan.model_validate_json(files.read(PLAN))
    except (OSError, ValidationError):
        return None


def _differences(earlier: Plan, plan: Plan) -> str:
    words = {"fingerprint": "the source has changed"}
    return ", ".join(
        words.get(name, f"{name} was {value} and is {getattr(plan, name)}")
        for name, value in earlier
        if value != getattr(plan, name)
    )
