"""The Kubernetes manifests: as files, and as kubectl's own kustomize builds them."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # it has no stubs
import pytest
import yaml

from service.settings import Settings

KUBECTL = Path(sys.executable).with_name("kubectl")  # the locked one: another may know other fields
KUSTOMIZE = Path(__file__).parents[3] / "docker" / "kustomize"
BUILDS = ("cpu", "gpu")
KUBERNETES = "1.33"
CUSTOM = {"RayCluster"}  # a custom resource: Kubernetes' own schemas do not have it
SECRETS = {"simclr-service", "simclr-objectstore", "simclr-ray", "simclr-mlflow", "simclr-gcs-store"}
# Of the API reference of KubeRay 1.6, where it has no schema of Kubernetes' own.
_OF_A_GROUP = {"rayStartParams", "template", "resources", "labels"}
KUBERAY = {
    "spec": {
        *("rayVersion", "headGroupSpec", "workerGroupSpecs", "authOptions", "gcsFaultToleranceOptions", "suspend"),
        *("enableInTreeAutoscaling", "autoscalerOptions", "headServiceAnnotations", "managedBy", "upgradeStrategy"),
    },
    "authOptions": {"mode", "secretName", "enableK8sTokenAuth"},
    "gcsFaultToleranceOptions": {"redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"},
    "headGroupSpec": _OF_A_GROUP | {"serviceType", "headService", "enableIngress"},
    "workerGroupSpecs": _OF_A_GROUP
    | {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "scaleStrategy", "idleTimeoutSeconds"}
    | {"suspend"},
}

Document = dict[str, Any]


@cache
def build(overlay: str) -> list[Document]:
    """Return the documents of an overlay."""
    result = subprocess.run(
        [KUBECTL, "kustomize", KUSTOMIZE / "overlays" / overlay], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return list(yaml.load_all(result.stdout, yaml.CSafeLoader))


def read_base() -> list[Document]:
    """Return the documents of the files that the base names as resources."""
    names = yaml.safe_load((KUSTOMIZE / "base" / "kustomization.yaml").read_text())["resources"]
    return [each for name in names for each in yaml.load_all((KUSTOMIZE / "base" / name).read_text(), yaml.CSafeLoader)]


@pytest.fixture(scope="module", params=["files", *BUILDS])
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return read_base() if request.param == "files" else build(request.param)


@pytest.fixture(scope="module", params=BUILDS)
def built(request: pytest.FixtureRequest) -> list[Document]:
    return build(request.param)


def pods(documents: list[Document]) -> Iterator[tuple[str, dict[str, str], Document]]:
    """Yield name, labels and pod spec of everything that makes pods, with the labels that KubeRay adds."""
    for each in documents:
        name = each["metadata"]["name"]
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = each["spec"]["template"]
            yield name, template["metadata"]["labels"], template["spec"]
        elif each["kind"] == "RayCluster":
            cluster = {"ray.io/cluster": name}
            yield "ray head", cluster | {"ray.io/node-type": "head"}, each["spec"]["headGroupSpec"]["template"]["spec"]
            for group in each["spec"]["workerGroupSpecs"]:
                yield "ray worker", cluster | {"ray.io/node-type": "worker"}, group["template"]["spec"]


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Return whether a label selector takes these labels."""
    wanted = selector.get("matchLabels", {}).items()
    sets = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in sets)
    return all(labels.get(key) == value for key, value in wanted) and all(
        labels.get(each["key"]) in each["values"] for each in sets
    )


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [each for each in documents if each["kind"] == kind]


def test_every_document_fits_its_schema(documents: list[Document]) -> None:
    known = [each for each in documents if each["kind"] not in CUSTOM]
    assert len(known) == len(documents) - 1
    for each in known:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_ray_s_cluster_has_fields_that_kuberay_knows_and_pods_that_fit_their_schema(documents: list[Document]) -> None:
    (cluster,) = of_kind(documents, "RayCluster")
    spec = cluster["spec"]
    groups = [
        ("headGroupSpec", spec["headGroupSpec"]),
        *(("workerGroupSpecs", each) for each in spec["workerGroupSpecs"]),
    ]
    parts = [("spec", spec), *groups, *((name, spec[name]) for name in ("authOptions", "gcsFaultToleranceOptions"))]
    for name, part in parts:
        assert set(part) <= KUBERAY[name], name
    for _, group in groups:
        assert {type(value) for value in group["rayStartParams"].values()} == {str}
        metadata = {"name": "of-ray"}
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_head_that_comes_back_reads_its_tables_from_a_store_that_outlives_it(documents: list[Document]) -> None:
    options = of_kind(documents, "RayCluster")[0]["spec"]["gcsFaultToleranceOptions"]
    name, _, port = options["redisAddress"].partition(":")
    (store,) = (each for each in of_kind(documents, "StatefulSet") if each["metadata"]["name"] == name)
    service = next(each for each in of_kind(documents, "Service") if each["metadata"]["name"] == name)
    assert [str(each["port"]) for each in service["spec"]["ports"]] == [port]
    assert selects({"matchLabels": service["spec"]["selector"]}, store["spec"]["template"]["metadata"]["labels"])
    (container,) = store["spec"]["template"]["spec"]["containers"]
    (password,) = container["env"]
    assert options["redisPassword"]["valueFrom"] == password["valueFrom"]
    assert "appendonly yes" in container["command"][-1]
    (volume,) = store["spec"]["volumeClaimTemplates"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["metadata"]["name"]
    assert f"dir {mount['mountPath']}" in container["command"][-1]


def test_a_misspelt_field_does_not_fit_its_schema() -> None:
    service = next(each for each in read_base() if each["kind"] == "Service")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**service, "spec": {**service["spec"], "portz": []}}, KUBERNETES, strict=True)


def test_every_container_runs_unprivileged_on_a_read_only_root_with_its_resources_named(
    documents: list[Document],
) -> None:
    found = list(pods(documents))
    assert len(found) == 6
    for name, _, spec in found:
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name


def test_secrets_are_only_referred_to(documents: list[Document]) -> None:
    assert not of_kind(documents, "Secret")
    for name, _, spec in pods(documents):
        for variable in (each for container in spec["containers"] for each in container.get("env", ())):
            is_secret = any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "SECRET", "URI", "URL"))
            is_address = variable["name"] == "MLFLOW_AUTH_CONFIG_PATH"
            assert ("secretKeyRef" in variable.get("valueFrom", {})) == (is_secret and not is_address), (name, variable)


def test_every_secret_and_config_map_that_is_named_exists(built: list[Document]) -> None:
    maps = {each["metadata"]["name"] for each in of_kind(built, "ConfigMap")}
    assert len(maps) == 2
    secrets: set[str] = set()
    for _, _, spec in pods(built):
        for container in spec["containers"]:
            for source in container.get("envFrom", ()):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in maps
                else:
                    secrets.add(source["secretRef"]["name"])
            for variable in container.get("env", ()):
                if "valueFrom" in variable:
                    secrets.add(variable["valueFrom"]["secretKeyRef"]["name"])
    assert secrets <= SECRETS


def test_every_image_is_pinned_to_a_tag(built: list[Document]) -> None:
    images = [container["image"] for _, _, spec in pods(built) for container in spec["containers"]]
    for image in images:
        tag = image.rpartition("/")[2].partition(":")[2]
        assert tag, image
        assert tag != "latest"


def test_policies_and_budgets_and_services_select_pods_that_exist(documents: list[Document]) -> None:
    labels = [each for _, each, _ in pods(documents)]
    selectors = [each["spec"]["podSelector"] for each in of_kind(documents, "NetworkPolicy")]
    selectors += [each["spec"]["selector"] for each in of_kind(documents, "PodDisruptionBudget")]
    selectors += [{"matchLabels": each["spec"]["selector"]} for each in of_kind(documents, "Service")]
    for policy in of_kind(documents, "NetworkPolicy"):
        rules = policy["spec"].get("ingress", []) + policy["spec"].get("egress", [])
        peers = [peer for rule in rules for peer in (*rule.get("from", ()), *rule.get("to", ()))]
        selectors += [peer["podSelector"] for peer in peers if "podSelector" in peer]
    assert len(selectors) > 15
    for selector in selectors:
        assert any(selects(selector, each) for each in labels), selector


def reaches(documents: list[Document], target: str, port: int) -> set[str]:
    """Return the pods of the namespace that policies let into a port of `target`; "others": namespaces."""
    found = list(pods(documents))
    target_labels = next(labels for name, labels, _ in found if name == target)
    rules = [
        rule
        for policy in of_kind(documents, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], target_labels)
        for rule in policy["spec"].get("ingress", [])
        if "ports" not in rule or port in [each["port"] for each in rule["ports"]]
    ]
    peers = [peer for rule in rules for peer in rule["from"]]
    names = {name for name, labels, _ in found for peer in peers if selects(peer.get("podSelector", {}), labels)}
    return {"others"} if any("namespaceSelector" in peer for peer in peers) else names


def test_nothing_is_let_in_or_out_that_no_policy_names(documents: list[Document]) -> None:
    default = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert default in [each["spec"] for each in of_kind(documents, "NetworkPolicy")]


@pytest.mark.parametrize(
    ("target", "port", "allowed"),
    [
        ("ray head", 8265, {"simclr", "ray head", "ray worker"}),
        ("ray head", 6379, {"ray head", "ray worker"}),
        ("ray worker", 8265, {"ray head", "ray worker"}),
        ("mlflow", 5000, {"simclr", "ray head", "ray worker"}),
        ("simclr-gcs-store", 6379, {"ray head", "ray worker"}),
        ("simclr", 8000, {"others"}),
        ("simclr-migration", 8000, set()),
    ],
)
def test_only_these_reach(documents: list[Document], target: str, port: int, allowed: set[str]) -> None:
    assert reaches(documents, target, port) == allowed


def test_ray_asks_for_the_token_that_the_service_sends(documents: list[Document]) -> None:
    cluster = of_kind(documents, "RayCluster")[0]["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "simclr-ray"}
    service = next(spec for name, _, spec in pods(documents) if name == "simclr")
    token = next(each for each in service["containers"][0]["env"] if each["name"] == "SIMCLR_RAY_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "simclr-ray", "key": "auth_token"}


def test_two_services_of_which_one_always_stays(documents: list[Document]) -> None:
    service = next(each for each in of_kind(documents, "Deployment") if each["metadata"]["name"] == "simclr")
    budget = next(each for each in of_kind(documents, "PodDisruptionBudget") if each["metadata"]["name"] == "simclr")
    assert service["spec"]["replicas"] == 2
    assert budget["spec"]["minAvailable"] == 1


def test_the_service_understands_every_setting_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (KUSTOMIZE / "base" / "service.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    unknown = {name for name in given if name.startswith("SIMCLR_")} - {
        f"SIMCLR_{name.upper()}" for name in Settings.model_fields
    }
    assert not unknown
    assert "simclr.example.org" in Settings().allowed_hosts


def test_mlflow_answers_who_comes_by_a_forwarded_port(documents: list[Document]) -> None:
    (_, _, pod) = next(each for each in pods(documents) if each[1].get("app.kubernetes.io/name") == "mlflow")
    given = {each["name"]: each.get("value", "") for each in pod["containers"][0]["env"]}
    names = given["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"mlflow:5000", "127.0.0.1:5000", "localhost:5000"} <= set(names)


def test_a_gpu_worker_asks_for_gpus_and_tolerates_their_nodes() -> None:
    worker = next(spec for name, _, spec in pods(build("gpu")) if name == "ray worker")
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert worker["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert worker["containers"][0]["image"].endswith("-cuda")
    assert worker["volumes"][2]["name"] == "shm"
    assert worker["volumes"][2]["emptyDir"]["sizeLimit"] == "16Gi"
