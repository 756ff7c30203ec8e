"""Two hosts that share nothing but an object store train what one process trains, whatever dies meanwhile."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, Final

import httpx2
import numpy as np
import pytest
import yaml
from PIL import Image

from service.code_package import CodePackage
from service.errors import ClusterUnavailable
from service.experiment import submission_id
from service.ports import JobStatus
from tests.harness.experiments import SHORT, STEPS_PER_EPOCH, wait_until
from tests.harness.hosts import Host, Lan, reason_for_no_hosts
from tests.harness.image_health import health_check
from tests.harness.object_store import ObjectStore
from tests.harness.paused_run import EXPERIMENT, PausedRun
from tests.harness.ray_hosts import RayHosts
from trainer.context import bundle_key, experiment_key, trial_key
from trainer.data.packed import verify
from trainer.data.packing import pack, source_at
from trainer.storage import BlobMissing, Storage, open_storage

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.slow,
    pytest.mark.skipif(reason_for_no_hosts() is not None, reason=str(reason_for_no_hosts())),
]

ROOT: Final = Path(__file__).resolve().parents[2]
EPOCHS: Final = 12
SPEC: Final[dict[str, Any]] = SHORT | {
    "epochs": EPOCHS,
    "precision": "float64",
    "scaling": {"num_workers": 2, "placement": "strict_spread"},
}
END_TIMEOUT_S: Final = 240.0
NUM_PICTURES: Final = 60
# In the environment of every node and of the service that submits; the store here asks nobody for a key.
SECRETS: Final = {
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-object-store",
    "MLFLOW_TRACKING_PASSWORD": "canary-of-mlflow",
    "SIMCLR_DATABASE_URL": "postgresql://simclr:canary-of-the-database@postgres/simclr",
    "SIMCLR_BOOTSTRAP_TOKEN": "simclr_canary-of-the-service",
}
LISTINGS: Final = ("nodes", "actors", "jobs", "tasks", "workers", "placement_groups", "runtime_envs")


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs and two hosts of which each has room for two workers."""

    lan: Lan
    ray: RayHosts
    nodes: tuple[Host, Host]
    store: ObjectStore
    share: Path  # a folder that every host has

    def workers(self) -> list[int]:
        """Return how many training workers each node has."""
        return [len(node.processes("RayTrainWorker")) for node in self.nodes]


@pytest.fixture(scope="module")
def cluster(datasets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    code = marked_code(tmp_path_factory.mktemp("code"))
    with Lan() as lan, ObjectStore(host=lan.gateway) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        head, left, right = (lan.add_host(name) for name in ("head", "left", "right"))
        variables = store.environment | SECRETS
        ray = RayHosts(head, left, right, datasets=datasets_dir, code=code, variables=variables, cpus=2)
        yield Cluster(lan, ray, (left, right), store, lan.shared)


def marked_code(folder: Path) -> CodePackage:
    """Return the training code with other words in its log than the nodes' own has."""
    folders = [shutil.copytree(ROOT / name, folder / name) for name in ("trainer", "tune_spaces")]
    for name, words in (("job.py", '"attempt %d of'), ("loop.py", '"training from step')):
        file = folder / "trainer" / name
        text = file.read_text()
        assert words in text
        file.write_text(text.replace(words, f'"shipped {words[1:]}'))
    return CodePackage.of(*folders)


def test_two_hosts_go_on_with_the_run_of_one_process_though_a_worker_is_killed(
    cluster: Cluster, tmp_path: Path, datasets_dir: Path
) -> None:
    shutil.copytree(datasets_dir, tmp_path / "datasets")
    run = PausedRun(tmp_path, SPEC, steps=EPOCHS * STEPS_PER_EPOCH)
    uri = run.copy(cluster.store.uri("run"))
    storage = open_storage(uri)
    sets = cluster.store.uri("sets")
    pack(source_at(datasets_dir / "shapes.npz"), f"{sets}/shapes", image_size=SPEC["data"]["image_size"])

    cluster.ray.submit(EXPERIMENT, SPEC, attempt=2, storage=uri, datasets=sets)
    timeline = experiment_key(EXPERIMENT, "attempts/2/timeline.json")
    wait_until(lambda: "first_step" in text_of(storage, timeline), timeout_s=END_TIMEOUT_S, what="the first step")
    assert cluster.workers() == [1, 1]
    (worker,) = cluster.nodes[1].processes("RayTrainWorker")
    worker.kill()
    wait_until(lambda: has_ended(cluster, EXPERIMENT, attempt=2), timeout_s=END_TIMEOUT_S, what="the end")

    assert cluster.ray.status(EXPERIMENT, attempt=2) is JobStatus.SUCCEEDED
    fences = storage.list(trial_key(EXPERIMENT, "t0000", "fence/"))
    assert [json.loads(storage.read(fence))["attempt"] for fence in fences] == [1, 2, 2]
    marker = json.loads(storage.read(trial_key(EXPERIMENT, "t0000", "complete.json")))
    assert storage.read(bundle_key(EXPERIMENT, "t0000", marker))
    log = text_of(storage, experiment_key(EXPERIMENT, "attempts/2/driver.log"))
    assert "resumed from the checkpoint of step" in log
    assert "shipped attempt 2 of" in log  # the driver's code came with the job
    assert "shipped training from step" in log  # and the workers'
    assert run.distance(uri) <= 1e-9
    caches = [list(node.disk.glob("simclr/cache/datasets/shapes-*-packed/manifest.json")) for node in cluster.nodes]
    assert [len(found) for found in caches] == [1, 1], "each host fetched the images"
    wait_until(lambda: cluster.workers() == [0, 0], timeout_s=20, what="the end of the workers")
    wait_until(lambda: not cluster.ray.reserved(), timeout_s=20, what="the release of what was reserved")


def test_four_hosts_train_what_one_process_trains(cluster: Cluster, tmp_path: Path, datasets_dir: Path) -> None:
    spec = SPEC | {"epochs": 4, "scaling": SPEC["scaling"] | {"num_workers": 4}}
    shutil.copytree(datasets_dir, tmp_path / "datasets")
    run = PausedRun(tmp_path, spec, steps=4 * STEPS_PER_EPOCH)
    uri = run.copy(cluster.store.uri("four"))
    more = [cluster.lan.add_host(name) for name in ("third", "fourth")]
    try:
        for host in more:
            cluster.ray.join(host)
        cluster.ray.wait_for_nodes(*more)

        cluster.ray.submit(EXPERIMENT, spec, attempt=4, storage=uri)
        timeline = experiment_key(EXPERIMENT, "attempts/4/timeline.json")
        wait_until(lambda: "train" in text_of(open_storage(uri), timeline), timeout_s=END_TIMEOUT_S, what="the team")
        assert [len(node.processes("RayTrainWorker")) for node in (*cluster.nodes, *more)] == [1, 1, 1, 1]
        wait_until(lambda: has_ended(cluster, EXPERIMENT, attempt=4), timeout_s=END_TIMEOUT_S, what="the end")

        assert cluster.ray.status(EXPERIMENT, attempt=4) is JobStatus.SUCCEEDED
        assert run.distance(uri) <= 1e-9
    finally:
        for host in more:
            host.power_off()
    wait_until(lambda: not any(map(cluster.ray.node_ids, more)), timeout_s=30, what="the end of two nodes")


def test_two_hosts_pack_the_data_set_that_one_process_packs(cluster: Cluster, tmp_path: Path) -> None:
    source = write_noise(cluster.share / "source", count=NUM_PICTURES)
    options = ("--image-size", "16", "--images-per-shard", "1", "--num-workers", "2", "--json")
    variables = cluster.ray.environment | {"RAY_ADDRESS": f"{cluster.ray.head.address}:6379"}
    alone = pack(source_at(source), tmp_path / "alone", image_size=16, images_per_shard=1).manifest
    for target in (str(cluster.share / "sets" / "noise"), cluster.store.uri("sets/noise")):
        packed = cluster.ray.head.run(
            [
                *("env", "--ignore-environment", *(f"{name}={value}" for name, value in variables.items())),
                *(sys.executable, "-m", "service.cli", "datasets", "pack", str(source), target, *options),
            ],
            timeout_s=END_TIMEOUT_S,
        )
        assert json.loads(packed)["shards_written"] == NUM_PICTURES
        assert verify(target) == alone
    tasks = [task for task in cluster.ray.listing("tasks") if "_done" in task["name"]]
    assert {task["node_id"] for task in tasks} == {
        node_id for node in cluster.nodes for node_id in cluster.ray.node_ids(node)
    }


def write_noise(root: Path, *, count: int) -> Path:
    generator = np.random.default_rng(0)
    for index in range(count):
        folder = root / "train" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return root


def test_without_the_token_the_cluster_tells_another_host_nothing(cluster: Cluster) -> None:
    ray = cluster.ray
    for token in ({}, {"Authorization": "Bearer wrong"}):
        for path in ("/api/jobs/", "/api/v0/nodes", "/api/cluster_status", "/nodes?view=summary"):
            assert httpx2.get(ray.dashboard + path, headers=token, trust_env=False).status_code in (401, 403)
        answer = httpx2.post(f"{ray.dashboard}/api/jobs/", json={"entrypoint": "true"}, headers=token, trust_env=False)
        assert answer.status_code in (401, 403)


def test_nothing_secret_is_in_what_ray_shows_or_in_what_a_job_leaves(cluster: Cluster) -> None:
    ray, uri = cluster.ray, cluster.store.uri("canaries")
    ray.submit("exp_2", SPEC | {"epochs": 1, "optim": {"warmup_epochs": 0}}, storage=uri)
    ray_job = submission_id("exp_2", 1)
    wait_until(lambda: has_ended(cluster, "exp_2", attempt=1), timeout_s=END_TIMEOUT_S, what="the end")
    assert ray.status("exp_2") is JobStatus.SUCCEEDED

    nodes = [node["node_id"] for node in ray.listing("nodes")]
    paths = [f"/api/v0/{what}?detail=true" for what in LISTINGS]
    paths += ["/api/jobs/", f"/api/jobs/{ray_job}", f"/api/jobs/{ray_job}/logs", "/api/cluster_status"]
    paths += ["/nodes?view=summary", *(f"/nodes/{node}" for node in nodes)]
    told = {path: ray.told(path) for path in paths}
    assert ray_job in told["/api/jobs/"]
    for path in (f"/api/jobs/{ray_job}", "/api/v0/runtime_envs?detail=true"):
        assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" in told[path], "a job's environment is shown"
    assert "raylet" in told[f"/nodes/{nodes[0]}"], "command lines of processes are shown"
    storage = open_storage(uri)
    told |= {key: storage.read(key).decode(errors="replace") for key in storage.list("")}
    for secret in (ray.token, *SECRETS.values()):
        word = "canary-of-the-database" if "://" in secret else secret
        assert not [place for place, text in told.items() if word in text]


def test_the_health_checks_of_the_deployment_pass_where_nobody_gives_them_a_token(cluster: Cluster) -> None:
    ray, docker = cluster.ray, ROOT / "docker"
    compose = yaml.safe_load((docker / "compose.yaml").read_text())["services"]["ray-head"]
    of_the_head = [sys.executable, *compose["healthcheck"]["test"][2:]]
    for host in (ray.head, *cluster.nodes):
        host.run(health_check("trainer"))
    # The dashboard of the image listens at every address, the one here at its host's own.
    ray.head.run([word.replace("127.0.0.1", ray.head.address) for word in of_the_head])
    with pytest.raises(CalledProcessError):
        cluster.nodes[0].run(of_the_head)  # no head is there

    documents = yaml.safe_load_all((docker / "kustomize" / "base" / "ray.yaml").read_text())
    spec = next(each["spec"] for each in documents if each["kind"] == "RayCluster")
    groups = [(spec["headGroupSpec"], ray.head), *((group, cluster.nodes[0]) for group in spec["workerGroupSpecs"])]
    for group, host in groups:
        (container,) = group["template"]["spec"]["containers"]
        for probe in ("readinessProbe", "livenessProbe"):
            check = container[probe]["httpGet"]
            port = {"dashboard": 8265}.get(check["port"], check["port"])
            answer = httpx2.get(f"http://{host.address}:{port}{check['path']}", timeout=4, trust_env=False)
            assert answer.status_code == 200, (host.name, check)


def has_ended(cluster: Cluster, experiment_id: str, *, attempt: int) -> bool:
    try:
        return cluster.ray.status(experiment_id, attempt=attempt) not in (JobStatus.PENDING, JobStatus.RUNNING)
    except ClusterUnavailable:  # slow to answer
        return False


def text_of(storage: Storage, key: str) -> str:
    try:
        return storage.read(key).decode()
    except BlobMissing:
        return ""
