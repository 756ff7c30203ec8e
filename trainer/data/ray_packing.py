"""Shards written by Ray Data: one row a shard, each a task of its own on any node.

Ray Data's own readers cut and order files as their sizes and the cluster have it. Here the rows are
the shards themselves, so that what is written follows from the source alone, and a shard is what is
retried when a node dies and what is kept when the packing is ended.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from trainer.data.shard_job import DoneShard, ShardJob

__all__ = ["run_on_ray"]

OBJECT_STORE_BYTES: Final = 256 * 2**20  # holds where images lie, never pixels


def run_on_ray(jobs: Sequence[ShardJob], *, num_workers: int) -> Iterator[tuple[int, DoneShard]]:
    """Yield the index and the outcome of each job as it ends, `num_workers` running at a time.

    Raises:
        TrainerError, OSError: What a job raised.
    """
    with _ray(num_workers):
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells how it executes; importing it sets a level
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"index": index, "job": pickle.dumps(job)} for index, job in enumerate(jobs)]
        tasks = ray.data.from_items(rows, override_num_blocks=len(rows))
        strategy = ray.data.TaskPoolStrategy(size=num_workers)
        for row in tasks.map(_done, num_cpus=1, compute=strategy).iter_rows():
            done = pickle.loads(row["done"])  # noqa: S301 - made by _done
            if isinstance(done, Exception):
                raise done
            yield row["index"], done


def _done(row: dict[str, Any]) -> dict[str, Any]:
    """Run a job; what it may raise is handed back as it is, since Ray would wrap it and try again."""
    job: ShardJob = pickle.loads(row["job"])  # noqa: S301 - made by run_on_ray
    done: DoneShard | Exception
    try:
        done = job.run()
    except (TrainerError, OSError) as error:
        done = error
    return {"index": row["index"], "done": pickle.dumps(done)}


@contextmanager
def _ray(num_workers: int) -> Iterator[None]:
    """Use the Ray at RAY_ADDRESS, as in a job of Ray, else one that ends with the packing."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # said, as the default changes with Ray's version
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {}
    if not address:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else it leaves loopback for the machine's outer address
        local = {
            "num_cpus": num_workers,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    import ray

    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
    try:
        yield
    finally:
        ray.shutdown()
