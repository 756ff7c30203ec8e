"""A head of Ray that is killed comes back from its stored tables, and the next attempt goes on with the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from service.errors import ClusterUnavailable
from service.experiment import submission_id
from service.ports import JobStatus
from tests.harness.experiments import SHORT, STEPS_PER_EPOCH, wait_until
from tests.harness.gcs_store import GcsStore, reason_for_no_gcs_store
from tests.harness.hosts import Lan, reason_for_no_hosts
from tests.harness.object_store import ObjectStore
from tests.harness.paused_run import EXPERIMENT, PausedRun
from tests.harness.ray_hosts import RayHosts
from trainer.context import experiment_key
from trainer.storage import BlobMissing, open_storage

_REASON: Final = reason_for_no_hosts() or reason_for_no_gcs_store()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.slow,
    pytest.mark.skipif(_REASON is not None, reason=str(_REASON)),
]

EPOCHS: Final = 40
SPEC: Final[dict[str, Any]] = SHORT | {"epochs": EPOCHS, "precision": "float64", "scaling": {"num_workers": 2}}
TIMEOUT_S: Final = 120.0


def test_a_killed_head_knows_its_nodes_and_jobs_again_and_the_next_attempt_goes_on(
    tmp_path: Path, datasets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(datasets_dir, tmp_path / "datasets")
    run = PausedRun(tmp_path, SPEC, steps=EPOCHS * STEPS_PER_EPOCH)
    with (
        Lan() as lan,
        ObjectStore(host=lan.gateway) as store,
        GcsStore(lan.folder / "tables", host=lan.gateway) as tables,
    ):
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        head, *nodes = (lan.add_host(name) for name in ("head", "left", "right"))
        ray = RayHosts(head, *nodes, datasets=datasets_dir, variables=store.environment, gcs_store=tables)
        uri = run.copy(store.uri("run"))
        ray.submit(EXPERIMENT, SPEC, attempt=2, storage=uri)
        wait_until(lambda: has_begun(uri, attempt=2), timeout_s=TIMEOUT_S, what="the first step")
        known = [ray.node_ids(node) for node in nodes]
        raylets = [process.pid for node in nodes for process in node.processes("/raylet/raylet")]

        head.power_off()
        head.power_on()
        ray.start_head()
        wait_until(
            lambda: status(ray, attempt=2) is JobStatus.MISSING, timeout_s=TIMEOUT_S, what="the end of the old attempt"
        )
        job = json.loads(ray.told(f"/api/jobs/{submission_id(EXPERIMENT, 2)}"))
        assert job["status"] == "RUNNING", "Ray finds out by itself now: the service need not look at the driver's node"
        ray.wait_for_nodes(head, *nodes)
        assert [ray.node_ids(node) for node in nodes] == known
        assert [process.pid for node in nodes for process in node.processes("/raylet/raylet")] == raylets

        wait_until(lambda: submits(ray, uri, attempt=3), timeout_s=TIMEOUT_S, what="a submission")
        wait_until(
            lambda: status(ray, attempt=3) not in (None, JobStatus.PENDING, JobStatus.RUNNING),
            timeout_s=TIMEOUT_S,
            what="the end",
        )
        assert status(ray, attempt=3) is JobStatus.SUCCEEDED
        assert run.distance(uri) <= 1e-9
        workers = ("RayTrainWorker", "TrainController", "-m trainer")
        wait_until(
            lambda: not [node.name for node in (head, *nodes) for word in workers if node.processes(word)],
            timeout_s=30,
            what="the end of every process of the run",
        )
        wait_until(lambda: not ray.reserved(), timeout_s=30, what="the release of what was reserved")


def status(ray: RayHosts, *, attempt: int) -> JobStatus | None:
    """Return how an attempt stands; None while the head does not answer."""
    try:
        return ray.status(EXPERIMENT, attempt=attempt)
    except ClusterUnavailable:
        return None


def submits(ray: RayHosts, uri: str, *, attempt: int) -> bool:
    try:
        ray.submit(EXPERIMENT, SPEC, attempt=attempt, storage=uri)
    except ClusterUnavailable:
        return False  # the head takes none right after its start
    return True


def has_begun(uri: str, *, attempt: int) -> bool:
    try:
        return b"first_step" in open_storage(uri).read(experiment_key(EXPERIMENT, f"attempts/{attempt}/timeline.json"))
    except BlobMissing:
        return False
