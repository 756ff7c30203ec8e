"""What the parts of the stack are started with."""

import socket
from pathlib import Path

import pytest

from service.embedded.addresses import check_bindable, free_block, free_port, free_ports
from service.embedded.api_server import ApiServer, settings_environment
from service.embedded.component import Component
from service.embedded.mlflow_server import MlflowServer
from service.embedded.ray_head import RayHead
from service.errors import SettingsError
from service.settings import Settings

RAY = RayHead(dashboard_port=8265, cpus=4, runtime_dir=Path("/tmp/simclr-test"))  # noqa: S108 - never made
MLFLOW = MlflowServer(port=5000, directory=Path("/state/mlflow"))


@pytest.fixture
def taken() -> socket.socket:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


def test_a_taken_port_is_refused_with_a_free_one(taken: socket.socket) -> None:
    port = taken.getsockname()[1]

    with pytest.raises(SettingsError, match=rf"port {port} on 127.0.0.1 is taken.*SIMCLR_PORT=\d+"):
        check_bindable("127.0.0.1", port)
    taken.close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match="SIMCLR_HOST"):
        check_bindable("203.0.113.9", 8000)


def test_the_expected_port_gives_way_to_whoever_has_it(taken: socket.socket) -> None:
    port = taken.getsockname()[1]

    assert free_port(port) != port
    taken.close()
    assert free_port(port) == port


def test_chosen_ports_differ_and_lie_outside_of_rays_own_and_the_kernels_ranges() -> None:
    singles, block = free_ports(8), free_block(50)

    assert len(set(singles)) == 8
    assert min(singles) >= 20_000
    assert max(singles) < block.start
    assert block.stop <= 32_768


def test_every_port_of_ray_is_named() -> None:
    ports = [word for word in RAY.command() if "port=" in word]

    assert len(ports) == len({word.partition("=")[2] for word in ports}) == 11


@pytest.mark.parametrize("part", [RAY, MLFLOW], ids=["ray", "mlflow"])
def test_no_setting_and_no_foreign_address_reaches_what_jobs_can_read(
    part: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_DATABASE_URL", "postgresql://simclr:canary@db/simclr")
    monkeypatch.setenv("RAY_ADDRESS", "canary:6379")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://canary")

    assert "canary" not in "".join(part.environment().values())


def test_the_service_child_reads_the_settings_that_the_supervisor_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        home=Path("state"),
        database_url="postgresql://u:p@db/simclr",
        ray_address="http://127.0.0.1:8265",
        mlflow_uri="http://127.0.0.1:5000",
        cpus=4,
        datasets=Path("sets"),
        allowed_hosts=("a.example", "b.example"),
    )
    environment = settings_environment(settings)
    monkeypatch.chdir("/")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    read = Settings()

    assert read == settings.model_copy(update={"home": tmp_path / "state", "datasets": str(tmp_path / "sets")})


def test_the_child_is_the_service_module() -> None:
    assert ApiServer(settings=Settings()).command()[1:] == ["-m", "service"]
