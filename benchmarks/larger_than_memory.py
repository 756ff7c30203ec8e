"""Training on packed images that memory does not hold: to the same weights, and at the same rate.

    python benchmarks/larger_than_memory.py [--size-mb 1500] [--only alone,limited,ray]     (root)

One epoch of a small encoder, with its evaluations all images are read three times, by

- `alone`: one process, with all the memory of the machine;
- `limited`: the same in a control group that may take much less than the images' pixels, page cache
  included and without swap: what it reads has to push out what it has read;
- `ray`: a node of Ray in such a group, raylet, agents and the one worker of Ray Train together, as a
  job of the service; Ray's head and the driver are outside.

The shards are dropped from the page cache before each. Weights are compared as the last checkpoints
have them; that the limit was felt shows in how often it was met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.local_ray import local_ray
from benchmarks.harness.memory_group import MemoryGroup, memory_group
from benchmarks.harness.noise_run import trial_context
from benchmarks.harness.packed_noise import Noise, drop_from_page_cache
from service.dispatch.job import JOB_ENVIRONMENT
from trainer.context import JobDocument, TrialContext
from trainer.spec import PretrainSpec

ROOT: Final = Path(__file__).resolve().parents[1]
MEGABYTE: Final = 10**6
SIDE: Final = 64  # px
NUM_CPUS: Final = 1
LIMITS_MB: Final = {"alone": None, "limited": 700, "ray": 1300}
NODE_TIMEOUT_S: Final = 120.0
SPEC: Final[dict[str, Any]] = {
    "data": {"dataset": "noise", "image_size": SIDE, "validation_ratio": 0.01},
    "views": {"operations": [{"op": "horizontal_flip"}]},  # the cheapest: reading is what is asked about
    "encoder": {"name": "resnet8", "stem": "imagenet"},
    "projection_head": {"dim": 16},
    "batch_size": 32,
    "epochs": 1,
    "optim": {"warmup_epochs": 0},
    "precision": "float32",
    "evaluation": {"knn_every_epochs": 0, "linear_probe": False},
    "scaling": {"num_workers": 1, "cpus_per_worker": NUM_CPUS},
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run that went to its end."""

    wall_s: float
    context: TrialContext
    peak_bytes: int | None
    times_full: int | None


def run(folder: Path, name: str) -> Outcome:
    """Train in the way of this name, with nothing of the images in memory at first."""
    drop_from_page_cache(folder.glob("datasets/noise/*.raw"))
    context, limit_mb = trial_context(folder, name), LIMITS_MB[name]
    if limit_mb is None:
        return Outcome(wall_s=train_alone(folder, name, None), context=context, peak_bytes=None, times_full=None)
    with memory_group(limit_mb * MEGABYTE) as group:
        if group is None:
            sys.exit("no control group can be made here: run as root, with the memory controller mounted")
        wall_s = (train_on_ray if name == "ray" else train_alone)(folder, name, group)
        return Outcome(wall_s=wall_s, context=context, peak_bytes=group.peak_bytes, times_full=group.times_full)


def train_alone(folder: Path, name: str, group: MemoryGroup | None) -> float:
    command = [sys.executable, __file__, "--folder", str(folder), "--train", name]
    answer = subprocess.run(group.words(command) if group else command, check=True, stdout=subprocess.PIPE)
    return float(json.loads(answer.stdout))


def train_here(folder: Path, name: str) -> float:
    """Train in this process and return the seconds from its first to its last read."""
    import torch

    from trainer.loop import train
    from trainer.team import Team

    torch.set_num_threads(NUM_CPUS)
    started_s = time.perf_counter()
    train(PretrainSpec.model_validate(SPEC), trial_context(folder, name), Team())
    return time.perf_counter() - started_s


def train_on_ray(folder: Path, name: str, group: MemoryGroup) -> float:
    """Run a job as the service does and return the seconds from its driver's start to its end."""
    context = trial_context(folder, name)
    job = JobDocument(
        experiment_id=context.experiment_id,
        name=name,
        kind="pretrain",
        attempt=1,
        spec=SPEC,
        storage=context.storage,
        datasets_dir=context.datasets_dir,
        cache_dir=context.cache_dir,
    )
    # Ray's own way to tell a job's driver what its workers have in their environment.
    variables = {**JOB_ENVIRONMENT, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    config = json.dumps({"runtime_env": {"env_vars": variables}})
    with local_ray(folder, num_cpus=0) as ray, node(ray.address, group, folder / "node.log"):
        words = ("-m", "trainer", "--document", job.encode())
        return ray.run(*words, environment={**JOB_ENVIRONMENT, "RAY_JOB_CONFIG_JSON_ENV_VAR": config})


@contextmanager
def node(address: str, group: MemoryGroup, log: Path) -> Iterator[None]:
    """Have a node of Ray in the group."""
    import ray

    def num_cpus() -> float:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray types it not
        return resources.get("CPU", 0)

    command = [sys.executable, "-m", "tests.harness.second_node", address, str(NUM_CPUS)]
    with log.open("wb") as output:
        process = subprocess.Popen(group.words(command), cwd=ROOT, stdout=output, stderr=output)
    try:
        deadline_s = time.monotonic() + NODE_TIMEOUT_S
        while num_cpus() < NUM_CPUS:
            if process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit(f"the node did not come up:\n{log.read_text()}")
            time.sleep(0.2)  # between two looks, bounded by the deadline
        yield
    finally:
        process.terminate()
        process.wait(60)


def report(name: str, outcome: Outcome, first: Outcome | None, *, size_bytes: int) -> None:
    rate = 3 * size_bytes / outcome.wall_s / MEGABYTE
    print(f"{name}: {outcome.wall_s:.0f} s, {rate:.1f} MB/s of pixels", end="")
    if outcome.peak_bytes is not None:
        limit_mb = LIMITS_MB[name] or 0
        share = limit_mb * MEGABYTE / size_bytes
        print(f"; limit {limit_mb} MB = {share:.2f} of the pixels, ", end="")
        print(f"taken at most {outcome.peak_bytes / MEGABYTE:.0f} MB, met {outcome.times_full} times", end="")
    if first is not None and first is not outcome:
        print(
            f"; weights differ by {difference(first, outcome):.1e}, rate / alone {first.wall_s / outcome.wall_s:.2f}",
            end="",
        )
    print(flush=True)


def difference(first: Outcome, second: Outcome) -> float:
    from tests.harness.trajectories import largest_difference
    from trainer.checkpoint import CheckpointStore
    from trainer.storage import open_storage

    def weights(outcome: Outcome) -> dict[str, Any]:
        storage = open_storage(outcome.context.storage)
        checkpoint = CheckpointStore(storage, outcome.context, fence=None).load_latest()
        assert checkpoint is not None
        return dict(checkpoint.tensors)

    return largest_difference(weights(first), weights(second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1500, help="of pixels")
    parser.add_argument("--only", default=",".join(LIMITS_MB), help="some of alone, limited, ray")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train_here(arguments.folder, arguments.train)))
        return
    num_images = arguments.size_mb * MEGABYTE // (SIDE * SIDE * 3)
    print(f"{num_images} images of {SIDE} px, {arguments.size_mb} MB of pixels", flush=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        from trainer.data.packing import pack

        folder, first = Path(temporary), None
        pack(Noise(num_images), folder / "datasets" / "noise", image_size=SIDE)
        for name in arguments.only.split(","):
            outcome = run(folder, name)
            first = first or outcome
            report(name, outcome, first, size_bytes=num_images * SIDE * SIDE * 3)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = str(NUM_CPUS)
    main()
