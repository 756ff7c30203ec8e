"""What breaks across hosts, one thing at a time: how soon it is noticed, and how soon training goes on.

    python benchmarks/faults.py [FAULT ...]

Needs root and `redis-server`: a head without CPUs and three nodes with one each are namespaces on a
bridge, and share nothing but an object store (S3 over a socket); the head keeps its tables in a Redis.
For each fault two workers train in float64 from the checkpoint of a run that was paused. After each
the run must end as an unbroken one does in one process, weights and every step's loss within 1e-9,
each step recorded once, and leave no process of training and nothing reserved. Seconds count from
the fault: `noticed` is when the head takes the node for dead, or without a lost node when the old
workers are gone; then when the process of the last new worker began, when the new team had its
checkpoint, and its first step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from service.errors import ClusterUnavailable
from service.ports import JobStatus
from tests.conftest import shapes
from tests.harness.experiments import SHORT, STEPS_PER_EPOCH
from tests.harness.gcs_store import GcsStore, reason_for_no_gcs_store
from tests.harness.hosts import Host, Lan, reason_for_no_hosts
from tests.harness.object_store import ObjectStore
from tests.harness.paused_run import EXPERIMENT, PausedRun
from tests.harness.ray_hosts import RayHosts
from trainer.context import experiment_key
from trainer.storage import Storage, open_storage

TIMEOUT_S: Final = 180.0
POLL_EVERY_S: Final = 0.5  # each look at the head costs it work
DRAIN_S: Final = 5
SLOW: Final = "20mbit"
SLOWER: Final = "8mbit"  # two steps a second or less
OUTAGE_S: Final = 60.0
LOAD_S: Final = 75.0
BUSY_PER_HOST: Final = 3  # processes that never wait, on each of four hosts that share this machine's cores
BUSY: Final = "while True: pass"
TORN_S: Final = 35.0  # two checkpoints
TOLERANCE: Final = 1e-9
# What a run has on the hosts while it lives.
PROCESSES: Final = ("RayTrainWorker", "TrainController", "SynchronizationActor", "PlacementGroupCleaner", "-m trainer")


class Scene:
    """A cluster of a head and three nodes; two of them train, and the first of these is the victim."""

    def __init__(self, lan: Lan, store: ObjectStore, datasets: Path, tables: GcsStore) -> None:
        self.store = store
        self.tables = tables
        self.head, *self.nodes = (lan.add_host(name) for name in ("head", "left", "right", "spare"))
        self.ray = RayHosts(self.head, *self.nodes, datasets=datasets, variables=store.environment, gcs_store=tables)
        self.attempt = 1  # was paused

    def train(self, spec: dict[str, Any], uri: str) -> None:
        """Submit an attempt that goes on from the storage at `uri`, and return after its first step."""
        self.spec, self.uri = spec, uri
        self.storage: Storage = open_storage(uri)
        began_at = time.time()
        self.attempt_again()
        until(lambda: self.marked_since(began_at, "first_step"), what="the first step")
        self.workers = self.training()
        self.victim = next(node for node in self.nodes if node.processes("RayTrainWorker"))
        self.victim_ids = self.ray.node_ids(self.victim)

    def attempt_again(self) -> None:
        """Submit the next attempt once the head has all its nodes, as the dispatcher does."""
        until(lambda: self.ray.is_up() and self.is_whole(), what="head and nodes")
        self.attempt += 1
        until(self._submits, what="a submission")

    def _submits(self) -> bool:
        try:
            self.ray.submit(EXPERIMENT, self.spec, attempt=self.attempt, storage=self.uri)
        except ClusterUnavailable:
            return False  # the head takes none right after its start
        return True

    def known(self) -> list[set[str]]:
        """Return the ids under which the head knows each node as alive; one that was lost has another, or none."""
        return [self.ray.node_ids(node) for node in self.nodes]

    def is_whole(self) -> bool:
        """Return whether every host that is switched on is a living node."""
        return {host.address for host in (self.head, *self.nodes) if host.is_on} <= self.ray.living()

    def training(self) -> list[psutil.Process]:
        """Return the workers on all hosts."""
        return [worker for node in self.nodes for worker in node.processes("RayTrainWorker")]

    def left_over(self) -> list[psutil.Process]:
        """Return every process of a run on any host."""
        return [process for host in (self.head, *self.nodes) for word in PROCESSES for process in host.processes(word)]

    def marked_since(self, moment: float, stage: str) -> float | None:
        """Return when the first start after `moment` came to a stage."""
        with suppress(OSError, ValueError):  # storage is away, or what is read is torn
            for key in self.storage.list(experiment_key(EXPERIMENT, "attempts/")):
                if not key.endswith("/timeline.json"):
                    continue
                for mark in json.loads(self.storage.read(key))["marks"]:
                    at = datetime.fromisoformat(mark["at"]).timestamp()
                    if mark["stage"] == stage and at > moment:
                        return at
        return None

    def has_noticed(self) -> bool:
        """Return whether all the old workers are gone, or the victim's node is taken for dead."""
        if not any(worker.is_running() for worker in self.workers):
            return True
        return self.ray.is_up() and not self.victim_ids & self.ray.node_ids(self.victim)

    def status(self) -> JobStatus | None:
        """Return how the attempt stands; None while the head does not answer."""
        try:
            return self.ray.status(EXPERIMENT, attempt=self.attempt)
        except ClusterUnavailable:
            return None

    def has_succeeded(self) -> bool:
        status = self.status()
        assert status is not JobStatus.FAILED, "the attempt failed"
        return status is JobStatus.SUCCEEDED

    def switch_off(self, host: Host) -> None:
        """End a node and return once the head knows."""
        host.power_off()
        until(lambda: not self.ray.node_ids(host), what="the end of a node")

    def switch_on(self, host: Host) -> None:
        """Start a node again on a fresh disk."""
        host.power_on()
        self.ray.join(host)


def until(condition: Callable[[], Any], *, what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Return the first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come about in {timeout_s:.0f} s")
        threading.Event().wait(POLL_EVERY_S)
    return value


# --- faults ---------------------------------------------------------------------------------------


def nothing(_: Scene) -> None:
    """Do nothing."""


def drain(scene: Scene) -> None:
    """Announce the end of the victim, as an autoscaler does, and end it then."""
    (node_id,) = scene.victim_ids
    words = [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={scene.head.address}:6379"),
        *(f"--node-id={node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=maintenance"),
        f"--deadline-remaining-seconds={DRAIN_S}",
    ]
    variables = (f"{name}={value}" for name, value in scene.ray.environment.items())
    scene.head.run(["env", *variables, *words], timeout_s=120)
    threading.Event().wait(DRAIN_S)
    scene.victim.power_off()


def restore_head(scene: Scene) -> None:
    """End the head and start it again over the tables that it kept; its nodes stay."""
    known = scene.known()
    scene.head.power_off()
    scene.head.power_on()
    scene.ray.start_head()
    until(lambda: scene.known() == known, what="the same nodes")


def restart_head(scene: Scene) -> None:
    """End the head and start one that knows nothing."""
    scene.head.power_off()
    scene.tables.forget()
    scene.head.power_on()
    scene.ray.start_head()


def saturate(scene: Scene) -> None:
    """Take the processors from all hosts for a while."""
    known, hosts = scene.known(), (scene.head, *scene.nodes)
    try:
        for host in hosts * BUSY_PER_HOST:
            host.start([sys.executable, "-c", BUSY], environment={}, log="busy.log")
        deadline = time.monotonic() + LOAD_S
        while time.monotonic() < deadline:
            threading.Event().wait(POLL_EVERY_S)
            assert all(worker.is_running() for worker in scene.workers), "the run did not last, or lost a worker"
    finally:
        for host in hosts:
            for process in host.processes(BUSY):
                process.kill()
    assert scene.known() == known, "a node that lived was taken for dead"


def kill_worker(scene: Scene) -> None:
    scene.victim.processes("RayTrainWorker")[0].kill()


def fail_storage(scene: Scene, failing: AbstractContextManager[None]) -> None:
    """Let storage fail for a while, in a run slowed down so that it lasts longer."""
    scene.victim.slow_down(rate=SLOWER)
    with failing:
        threading.Event().wait(OUTAGE_S)
    scene.victim.speed_up()


def tear_checkpoints(scene: Scene) -> None:
    """Break off two checkpoints in the middle, with the run slowed down so that it lasts longer."""
    scene.victim.slow_down(rate=SLOWER)
    with scene.store.link.tearing("/checkpoints/state-"):
        threading.Event().wait(TORN_S)
    scene.victim.speed_up()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that breaks, and what is done about it."""

    inject: Callable[[Scene], None]
    prepare: Callable[[Scene], None] = nothing  # before training starts
    lead_up: Callable[[Scene], None] = nothing  # once it trains, before it breaks
    recover: Callable[[Scene], None] = nothing  # what the service does once it is noticed
    mend: Callable[[Scene], None] = nothing  # once training goes on
    restarts: bool = True
    epochs: int = 30
    spec: dict[str, Any] = field(default_factory=dict)


FAULTS: Final = {
    "worker-killed": Fault(inject=kill_worker),
    "raylet-killed": Fault(inject=lambda scene: scene.victim.processes("/raylet/raylet")[0].kill()),
    "node-frozen": Fault(inject=lambda scene: scene.victim.freeze(), mend=lambda scene: scene.victim.thaw()),
    "link-down": Fault(inject=lambda scene: scene.victim.cut(), mend=lambda scene: scene.victim.mend()),
    "link-slow": Fault(
        inject=lambda scene: scene.victim.slow_down(rate=SLOW),
        mend=lambda scene: scene.victim.speed_up(),
        restarts=False,
    ),
    "node-drained": Fault(inject=drain, mend=lambda scene: scene.switch_on(scene.victim)),
    "node-added": Fault(
        prepare=lambda scene: scene.switch_off(scene.nodes[-1]),
        inject=lambda scene: scene.switch_on(scene.nodes[-1]),
        spec={"scaling": {"num_workers": {"min": 1, "max": 3}}},
        epochs=100,
    ),
    "cpus-taken": Fault(inject=saturate, restarts=False, epochs=200),
    "head-restored": Fault(inject=restore_head, recover=Scene.attempt_again),
    "head-restarted": Fault(inject=restart_head, recover=Scene.attempt_again),
    "storage-outage": Fault(inject=lambda scene: fail_storage(scene, scene.store.link.down()), restarts=False),
    "storage-held": Fault(inject=lambda scene: fail_storage(scene, scene.store.link.held()), restarts=False),
    "storage-torn": Fault(lead_up=tear_checkpoints, inject=kill_worker),
}


# --- the measurement ------------------------------------------------------------------------------


def measure(name: str, fault: Fault, scene: Scene, run: PausedRun, spec: dict[str, Any]) -> None:
    if scene.attempt > 1:
        until(scene.is_whole, what="the nodes")
    fault.prepare(scene)
    scene.train(spec | fault.spec, run.copy(scene.store.uri(name)))
    fault.lead_up(scene)
    moment = time.time()
    fault.inject(scene)
    if fault.restarts:
        until(scene.has_noticed, what="that it is noticed")
        noticed_s = time.time() - moment
        fault.recover(scene)
        ready_s, stepped_s = (reached(scene, moment, stage) for stage in ("train", "first_step"))
        old = {worker.pid for worker in scene.workers}
        begun = [worker.create_time() - moment for worker in scene.training() if worker.pid not in old]
        times = (
            f"noticed after {noticed_s:5.1f} s, new processes {max(begun, default=0.0):5.1f} s, "
            f"team ready {ready_s:5.1f} s, goes on after {stepped_s:5.1f} s"
        )
    fault.mend(scene)
    until(scene.has_succeeded, what="success")
    if not fault.restarts:
        times = f"over {time.time() - moment:.0f} s after it began, without a restart"
        assert scene.marked_since(moment, "first_step") is None, "it was started again"
    distance = run.distance(scene.uri)
    until(lambda: not scene.left_over(), what="the end of every process of the run", timeout_s=90)
    until(lambda: not scene.ray.reserved(), what="the release of what was reserved", timeout_s=60)
    verdict = "same trajectory" if distance <= TOLERANCE else "ANOTHER TRAJECTORY"
    print(f"{name:>14}: {times}; {verdict} (largest difference {distance:.1e}), nothing left", flush=True)


def reached(scene: Scene, moment: float, stage: str) -> float:
    """Return how long after `moment` the first start behind it came to a stage."""
    return float(until(lambda: scene.marked_since(moment, stage), what=stage) - moment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "faults", nargs="*", choices=[[], *FAULTS], metavar="FAULT", help=f"of {', '.join(FAULTS)}; all by default"
    )
    parser.add_argument("--logs", type=Path, help="a folder to keep the head's logs in")
    arguments = parser.parse_args()
    names = arguments.faults or list(FAULTS)
    if reason := reason_for_no_hosts() or reason_for_no_gcs_store():
        print(f"nothing measured: {reason}")
        return
    epochs = max(FAULTS[name].epochs for name in names)
    spec = SHORT | {"epochs": epochs, "precision": "float64", "scaling": {"num_workers": 2}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "datasets").mkdir()
        np.savez(folder / "datasets" / "shapes.npz", **shapes(np.random.default_rng(7), num_train=240, num_test=40))
        aside = stack.enter_context(ThreadPoolExecutor(1))
        reference = aside.submit(PausedRun, folder, spec, steps=epochs * STEPS_PER_EPOCH)
        lan = stack.enter_context(Lan())
        store = stack.enter_context(ObjectStore(host=lan.gateway))
        store.use()
        tables = stack.enter_context(GcsStore(lan.folder / "tables", host=lan.gateway))
        scene = Scene(lan, store, folder / "datasets", tables)
        run = reference.result()
        for name in names:
            try:
                measure(name, FAULTS[name], scene, run, spec)
            except (TimeoutError, AssertionError, httpx2.HTTPError, ClusterUnavailable):
                report_logs(scene)
                raise
            finally:
                if arguments.logs:
                    keep_logs(scene, arguments.logs / name)


def keep_logs(scene: Scene, folder: Path) -> None:
    """Keep what Ray Train and the driver wrote of a run: when each part of a restart began."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in scene.head.disk.glob("ray/session_2*/logs/**/*train*"):
        if log.is_file():
            shutil.copy(log, folder / log.name)
    for key in scene.storage.list(experiment_key(EXPERIMENT, "attempts/")):
        (folder / key.replace("/", "-")).write_bytes(scene.storage.read(key))


def report_logs(scene: Scene) -> None:
    for key in scene.storage.list(experiment_key(EXPERIMENT, "attempts/")):
        if key.endswith("driver.log"):
            print(key, scene.storage.read(key).decode()[-4000:], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
