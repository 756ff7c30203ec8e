"""The compose files, read by the real Compose."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCKER = Path(__file__).parents[3] / "docker"
OPERATIONS = DOCKER.parent / "docs" / "operations.md"
COMPOSE = Path(sys.executable).with_name("docker-compose")
SECRETS = {
    "MLFLOW_PASSWORD": "one",
    "MLFLOW_SECRET_KEY": "two",
    "OBJECTSTORE_SECRET_KEY": "three",
    "POSTGRES_PASSWORD": "four",
    "RAY_AUTH_TOKEN": "five",
    "SIMCLR_BOOTSTRAP_TOKEN": "six",
}
COMBINATIONS = [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")]


def config(files: tuple[str, ...], environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run `docker compose config` in an environment of these variables alone."""
    words = [str(COMPOSE), *(word for file in files for word in ("-f", str(DOCKER / file))), "config", *options]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=DOCKER)


@pytest.fixture(scope="module", params=COMBINATIONS, ids=lambda files: files[-1])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return one combination as Compose understands it."""
    result = config(request.param, SECRETS, "--format", "json")
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_is_an_error_that_names_it(missing: str) -> None:
    result = config(COMBINATIONS[0], {name: value for name, value in SECRETS.items() if name != missing}, "-q")
    assert result.returncode != 0
    assert f"set {missing}" in result.stderr


def test_only_the_service_publishes_a_port_and_on_loopback_unless_told(document: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in document["services"].items() if service.get("ports")}
    assert list(published) == ["service"]
    assert [port["host_ip"] for port in published["service"]] == ["127.0.0.1"]


def test_what_trains_has_no_way_out_and_no_way_to_the_database(document: dict[str, Any]) -> None:
    assert {name for name, network in document["networks"].items() if not network.get("internal")} == {"front"}
    reach = {name: set(service["networks"]) for name, service in document["services"].items()}
    assert [name for name, networks in reach.items() if "front" in networks] == ["service"]
    assert {name for name, networks in reach.items() if "database" in networks} == {
        "service",
        "migrate",
        "mlflow",
        "postgres",
    }


def test_everything_of_ours_is_hardened_and_what_stays_up_is_watched(document: dict[str, Any]) -> None:
    for name, service in document["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert ":" in service["image"], name
        if service["image"].startswith("simclr-"):
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
        else:
            assert service["healthcheck"]["test"], name


def test_nothing_starts_before_what_it_needs_is_ready(document: dict[str, Any]) -> None:
    needs = {
        name: {other: link["condition"] for other, link in service.get("depends_on", {}).items()}
        for name, service in document["services"].items()
    }
    assert needs["service"] == {
        "bucket": "service_completed_successfully",
        "migrate": "service_completed_successfully",
        "mlflow": "service_healthy",
        "ray-head": "service_healthy",
    }
    assert needs["ray-worker"] == {"ray-head": "service_healthy"}
    assert needs["migrate"] == {"postgres": "service_healthy"}


def test_ray_asks_for_its_token_which_is_in_no_environment_of_its_nodes(document: dict[str, Any]) -> None:
    for name in ("ray-head", "ray-worker"):
        environment = document["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert SECRETS["RAY_AUTH_TOKEN"] not in environment.values()
        assert not [variable for variable in environment if variable.startswith("SIMCLR_")]
    service = document["services"]["service"]["environment"]
    assert service["RAY_AUTH_MODE"] == "token"
    assert service["SIMCLR_RAY_TOKEN"] == SECRETS["RAY_AUTH_TOKEN"]


def test_head_and_workers_are_one_image(document: dict[str, Any]) -> None:
    services = document["services"]
    assert services["ray-head"]["image"] == services["ray-worker"]["image"]
    assert services["ray-head"]["build"] == services["ray-worker"]["build"]


def test_the_file_of_one_s_own_that_the_page_shows_gives_all_nodes_the_data_sets_and_mlflow_a_port(
    tmp_path: Path,
) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", OPERATIONS.read_text(), flags=re.MULTILINE | re.DOTALL)
    own = tmp_path / "own.yaml"
    own.write_text(shown)
    result = config(("compose.yaml", str(own)), SECRETS, "--format", "json")
    assert result.returncode == 0, result.stderr
    services = json.loads(result.stdout)["services"]
    for name in ("service", "ray-head", "ray-worker"):
        (mount,) = [volume for volume in services[name]["volumes"] if volume["type"] == "bind"]
        assert (mount["source"], mount["target"], mount["read_only"]) == ("/srv/datasets", "/datasets", True)
    environment = services["service"]["environment"]
    assert (environment["SIMCLR_DATASETS"], environment["SIMCLR_MAX_RUNNING_PER_OWNER"]) == ("/datasets", "2")
    assert environment["SIMCLR_STORAGE"] == "s3://simclr/state"
    assert set(services["mlflow"]["networks"]) == {"database", "cluster", "front"}
    assert [(port["host_ip"], port["target"]) for port in services["mlflow"]["ports"]] == [("127.0.0.1", 5000)]


def test_every_variable_that_compose_reads_is_named_by_the_page() -> None:
    read = re.findall(r"\$\{(\w+):", (DOCKER / "compose.yaml").read_text())
    assert len(set(read)) > 12
    for name in read:
        assert name in OPERATIONS.read_text(), name


def test_with_gpus_one_worker_has_them_all_and_the_image_that_can_use_them() -> None:
    result = config(COMBINATIONS[1], SECRETS, "--format", "json")
    services = json.loads(result.stdout)["services"]
    deploy = services["ray-worker"]["deploy"]
    assert deploy["replicas"] == 1
    (device,) = deploy["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert services["ray-worker"]["build"]["args"]["TORCH_VARIANT"] == "cuda"
    assert services["ray-worker"]["image"].endswith("-cuda")
    assert "deploy" not in services["ray-head"]
