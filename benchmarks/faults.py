"""What breaks across hosts, one thing at a time: how soon it is noticed, and how soon training goes on.

    python benchmarks/faults.py [--epochs 120] [FAULT ...]

Needs root: a head without CPUs and three nodes with one each are namespaces on a bridge, and share
nothing but a directory as storage. For each fault two workers train in float64 from the checkpoint
of a run that was paused. After each fault the run must end as an unbroken one does in one process, weights
and every step's loss within 1e-9, each step recorded once, and leave no process of training and
nothing reserved. Seconds count from the fault; `noticed` is when the head takes the node for dead,
or without a lost node when the old workers are gone; `goes on` is the first step after it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
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
from tests.harness.experiments import SHORT, STEPS_PER_EPOCH, wait_until
from tests.harness.hosts import Host, Lan, reason_for_no_hosts
from tests.harness.paused_run import EXPERIMENT, PausedRun
from tests.harness.ray_hosts import RayHosts
from trainer.context import experiment_key

TIMEOUT_S: Final = 300.0
DRAIN_S: Final = 5
TOLERANCE: Final = 1e-9


class Scene:
    """A cluster of a head and three nodes; two of them train, and the first of these is the victim."""

    def __init__(self, lan: Lan) -> None:
        self.head, *self.nodes = (lan.add_host(name) for name in ("head", "left", "right", "spare"))
        self.ray = RayHosts(self.head, *self.nodes, datasets=lan.shared / "datasets")
        self.attempt = 1  # was paused

    def train(self, spec: dict[str, Any], storage: Path) -> None:
        """Submit an attempt that goes on from `storage`, and return after its first step."""
        self.spec, self.storage = spec, storage
        began_at = time.time()
        self.attempt_again()
        wait_until(lambda: self.stepped_since(began_at), timeout_s=TIMEOUT_S, what="the first step")
        self.workers = self.training()
        self.victim = next(node for node in self.nodes if node.processes("RayTrainWorker"))
        self.victim_ids = self.ray.node_ids(self.victim)

    def attempt_again(self) -> None:
        """Submit the next attempt once the head has all its nodes, as the dispatcher does."""
        wait_until(lambda: self.ray.is_up() and self.is_whole(), timeout_s=TIMEOUT_S, what="head and nodes")
        self.attempt += 1
        wait_until(self._submits, timeout_s=TIMEOUT_S, what="a submission")

    def _submits(self) -> bool:
        try:
            self.ray.submit(EXPERIMENT, self.spec, attempt=self.attempt, storage=self.storage)
        except ClusterUnavailable:
            return False  # the head takes none right after its start
        return True

    def is_whole(self) -> bool:
        """Return whether every host is a living node."""
        return {host.address for host in (self.head, *self.nodes)} <= self.ray.living()

    def training(self) -> list[psutil.Process]:
        """Return the workers on all hosts."""
        return [worker for node in self.nodes for worker in node.processes("RayTrainWorker")]

    def stepped_since(self, moment: float) -> float | None:
        """Return when the first start after `moment` made its first step."""
        for file in self.storage.glob(experiment_key(EXPERIMENT, "attempts/*/timeline.json")):
            for mark in json.loads(file.read_text())["marks"]:
                at = datetime.fromisoformat(mark["at"]).timestamp()
                if mark["stage"] == "first_step" and at > moment:
                    return at
        return None

    def has_noticed(self) -> bool:
        """Return whether the victim's node is taken for dead, or all the old workers are gone."""
        if self.ray.is_up() and not self.victim_ids & self.ray.node_ids(self.victim):
            return True
        return not any(worker.is_running() for worker in self.workers)

    def status(self) -> JobStatus | None:
        """Return how the attempt stands; None while the head does not answer."""
        try:
            return self.ray.status(EXPERIMENT, attempt=self.attempt)
        except ClusterUnavailable:
            return None

    def switch_off(self, host: Host) -> None:
        """End a node and return once the head knows."""
        host.power_off()
        wait_until(lambda: not self.ray.node_ids(host), timeout_s=TIMEOUT_S, what="the end of a node")

    def switch_on(self, host: Host) -> None:
        """Start a node again on a fresh disk."""
        host.power_on()
        self.ray.join(host)


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
    time.sleep(DRAIN_S)
    scene.victim.power_off()


def restart_head(scene: Scene) -> None:
    scene.head.power_off()
    scene.head.power_on()
    scene.ray.start_head()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that breaks, and what is done about it."""

    inject: Callable[[Scene], None]
    prepare: Callable[[Scene], None] = nothing  # before training starts
    recover: Callable[[Scene], None] = nothing  # what the service does once it is noticed
    mend: Callable[[Scene], None] = nothing  # once training goes on
    restarts: bool = True
    spec: dict[str, Any] = field(default_factory=dict)


FAULTS: Final = {
    "worker killed": Fault(inject=lambda scene: scene.victim.processes("RayTrainWorker")[0].kill()),
    "raylet killed": Fault(inject=lambda scene: scene.victim.processes("/raylet/raylet")[0].kill()),
    "node frozen": Fault(inject=lambda scene: scene.victim.freeze(), mend=lambda scene: scene.victim.thaw()),
    "link down": Fault(inject=lambda scene: scene.victim.cut(), mend=lambda scene: scene.victim.mend()),
    "link slow": Fault(
        inject=lambda scene: scene.victim.slow_down(rate="20mbit"),
        mend=lambda scene: scene.victim.speed_up(),
        restarts=False,
    ),
    "node drained": Fault(inject=drain, mend=lambda scene: scene.switch_on(scene.victim)),
    "node added": Fault(
        prepare=lambda scene: scene.switch_off(scene.nodes[-1]),
        inject=lambda scene: scene.switch_on(scene.nodes[-1]),
        spec={"scaling": {"num_workers": {"min": 1, "max": 3}}},
    ),
    "head restarted": Fault(inject=restart_head, recover=Scene.attempt_again),
}


# --- the measurement ------------------------------------------------------------------------------


def measure(name: str, fault: Fault, scene: Scene, run: PausedRun, spec: dict[str, Any]) -> None:
    fault.prepare(scene)
    scene.train(spec | fault.spec, run.copy(name.replace(" ", "-")))
    moment = time.time()
    fault.inject(scene)
    if fault.restarts:
        noticed_s = after(moment, scene.has_noticed)
        fault.recover(scene)
        resumed_s = after(moment, lambda: scene.stepped_since(moment))
        times = f"noticed after {noticed_s:5.1f} s, goes on after {resumed_s:5.1f} s"
    else:
        times = "no restart"
    if not fault.restarts:
        wait_until(lambda: scene.status() is JobStatus.SUCCEEDED, timeout_s=TIMEOUT_S, what="success")
        assert scene.stepped_since(moment) is None, "it was started again"
    fault.mend(scene)
    wait_until(lambda: scene.status() is JobStatus.SUCCEEDED, timeout_s=TIMEOUT_S, what="success")
    distance = run.distance(scene.storage)
    wait_until(lambda: not scene.training(), timeout_s=90, what="the end of all workers")
    wait_until(lambda: not scene.ray.reserved(), timeout_s=60, what="the release of what was reserved")
    verdict = "same trajectory" if distance <= TOLERANCE else "ANOTHER TRAJECTORY"
    print(f"{name:>14}: {times}; {verdict} (largest difference {distance:.1e}), nothing left", flush=True)


def after(moment: float, condition: Callable[[], Any]) -> float:
    wait_until(condition, timeout_s=TIMEOUT_S, what="that it is noticed")
    return time.time() - moment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"all by default: {', '.join(FAULTS)}")
    parser.add_argument("--epochs", type=int, default=120, help="long enough for a node to be added in the middle")
    arguments = parser.parse_args()
    if reason := reason_for_no_hosts():
        print(f"nothing measured: {reason}")
        return
    spec = SHORT | {"epochs": arguments.epochs, "precision": "float64", "scaling": {"num_workers": 2}}
    with Lan() as lan:
        (lan.shared / "datasets").mkdir()
        images = shapes(np.random.default_rng(7), num_train=240, num_test=40)
        np.savez(lan.shared / "datasets" / "shapes.npz", **images)
        run = PausedRun(lan.shared, spec, steps=arguments.epochs * STEPS_PER_EPOCH)
        scene = Scene(lan)
        for name in arguments.faults or FAULTS:
            try:
                measure(name, FAULTS[name], scene, run, spec)
            except (TimeoutError, AssertionError, httpx2.HTTPError, ClusterUnavailable):
                for log in scene.storage.rglob("driver.log"):
                    print(log.read_text()[-4000:], file=sys.stderr)
                raise


if __name__ == "__main__":
    main()
