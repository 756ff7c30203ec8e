"""From the start of a job to its first step: through Ray Jobs and Ray Train, and through bare torchrun.

    python benchmarks/start_up.py [--quick]

The same loop (resnet8, random images of 32 px, N = 256, two workers of one thread, storage in a directory) is
started by turns as the service does it, a submission to a running Ray with the environment of its
jobs, and by `python -m torch.distributed.run` with the same environment. The first step is where
the run itself notes it; then it is stopped, as its owner would cancel it. The data set is decoded
and each way has been gone once before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.noise_run import noise_spec, write_noise
from benchmarks.harness.turns import verdict
from service.cluster import RayJobs
from service.dispatch.job import JOB_ENVIRONMENT
from service.embedded.addresses import free_ports
from service.embedded.processes import PART, STACK_ID, ProcessRecord, end, find, spawn
from service.embedded.ray_head import RayHead
from service.embedded.stack import answers
from service.ports import JobStatus
from trainer.context import PRETRAIN_TRIAL_ID, JobDocument, experiment_key
from trainer.spec import PretrainSpec
from trainer.storage import BlobMissing, Storage, open_storage

NUM_WORKERS: Final = 2
GOAL_S: Final = 6.0  # beyond torchrun
TIMEOUT_S: Final = 600.0
GRACE_S: Final = 6.0
POLL_EVERY_S: Final = 0.2
ENVIRONMENT: Final = {
    **JOB_ENVIRONMENT,
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def job(folder: Path, name: str) -> JobDocument:
    spec = noise_spec(scaling={"num_workers": NUM_WORKERS})
    return JobDocument(
        experiment_id=f"exp_{name}",
        name=name,
        kind="pretrain",
        attempt=1,
        spec=spec.resolved(),
        storage=str(folder / "storage"),
        datasets_dir=str(folder / "datasets"),
        cache_dir=str(folder / "cache"),
    )


def first_step_at(storage: Storage, document: JobDocument) -> datetime | None:
    key = experiment_key(document.experiment_id, f"attempts/{document.attempt}/timeline.json")
    try:
        marks = json.loads(storage.read(key))["marks"]
    except BlobMissing:
        return None
    return next((datetime.fromisoformat(mark["at"]) for mark in marks if mark["stage"] == "first_step"), None)


def stop_after_first_step(document: JobDocument) -> datetime:
    """Wait for the first step, ask the run to stop, and return when the step was."""
    storage = open_storage(document.storage)
    deadline_s = time.monotonic() + TIMEOUT_S
    while (stepped_at := first_step_at(storage, document)) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError("there was no first step")
        time.sleep(POLL_EVERY_S)
    wish = {"kind": "cancel", "attempt": document.attempt}
    storage.write(experiment_key(document.experiment_id, "stop.json"), json.dumps(wish).encode())
    return stepped_at


# --- the two ways ---------------------------------------------------------------------------------


async def through_ray(ray: RayHead, folder: Path, name: str) -> float:
    document = job(folder, name)
    jobs = RayJobs(ray.url)
    try:
        started_at = datetime.now(UTC)
        await jobs.submit(
            document.experiment_id,
            entrypoint=f"{shlex.quote(sys.executable)} -m trainer --document {document.encode()}",
            env=ENVIRONMENT,
            metadata={},
        )
        stepped_at = await asyncio.to_thread(stop_after_first_step, document)
        deadline_s = time.monotonic() + TIMEOUT_S
        while (seen := await jobs.observe(document.experiment_id)).status in (JobStatus.PENDING, JobStatus.RUNNING):
            if time.monotonic() > deadline_s:
                raise TimeoutError("the job did not end")
            await asyncio.sleep(POLL_EVERY_S)
        if seen.status is not JobStatus.SUCCEEDED:
            raise RuntimeError(f"the job {seen.status}: {await jobs.logs(document.experiment_id)}")
    finally:
        await jobs.close()
    return (stepped_at - started_at).total_seconds()


def through_torchrun(folder: Path, name: str) -> float:
    document = job(folder, name)
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_WORKERS}"]
    started_at = datetime.now(UTC)
    with subprocess.Popen(
        [sys.executable, *words, __file__, "--worker", document.encode()],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
    ) as run:
        stepped_at = stop_after_first_step(document)
        if run.wait(timeout=TIMEOUT_S):
            raise RuntimeError(f"torchrun ended with status {run.returncode}")
    return (stepped_at - started_at).total_seconds()


def work(document: JobDocument) -> None:
    """Train as one of torchrun's processes."""
    import torch
    import torch.distributed as dist

    from trainer.errors import Stopped
    from trainer.loop import train
    from trainer.team import Team

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    team = Team(rank=dist.get_rank(), world_size=dist.get_world_size(), group=dist.group.WORLD)
    with suppress(Stopped):
        train(PretrainSpec.model_validate(document.spec), document.trial_context(PRETRAIN_TRIAL_ID), team)
    dist.destroy_process_group()


@contextmanager
def running_ray(folder: Path) -> Iterator[RayHead]:
    """Yield a Ray as the service starts it; all of its processes end with it."""
    runtime_dir = folder / "ray"
    runtime_dir.mkdir()
    ray = RayHead(dashboard_port=free_ports(1)[0], cpus=4, runtime_dir=runtime_dir)
    stack_id = secrets.token_hex(8)
    marker = {STACK_ID: stack_id, PART: ray.name}
    log = folder / "ray.log"
    child = spawn(ray.command(), environment={**ray.environment(), **marker}, working_dir=runtime_dir, log=log)
    record = ProcessRecord.of(child.pid)
    try:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not answers(ray.ready_url):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"Ray is not ready: {log.read_text()}")
            time.sleep(0.2)
        yield ray
    finally:
        end(lambda: find(stack_id, {ray.name: record}), grace_s=GRACE_S)
        child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of 3")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(JobDocument.decode(arguments.worker))
        return
    rounds = 1 if arguments.quick else 3
    with tempfile.TemporaryDirectory(prefix="simclr-") as name:
        folder = Path(name)
        write_noise(folder, num_steps=3)
        with running_ray(folder) as ray:
            bare, ours = [], []
            for turn in range(rounds + 1):
                bare.append(through_torchrun(folder, f"torchrun{turn}"))
                ours.append(asyncio.run(through_ray(ray, folder, f"ray{turn}")))
                print(f"torchrun {bare[-1]:.1f} s, Ray {ours[-1]:.1f} s{'' if turn else ' (not counted)'}", flush=True)
    beyond_s = median(mine - other for mine, other in zip(ours[1:], bare[1:], strict=True))
    print(
        f"first step {median(ours[1:]):.1f} s after the submission, torchrun {median(bare[1:]):.1f} s: "
        f"{beyond_s:+.1f} s, paired median, goal <= {GOAL_S:g}: {verdict(is_reached=beyond_s <= GOAL_S)}"
    )


if __name__ == "__main__":
    main()
