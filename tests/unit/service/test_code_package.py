"""The training code as it is sent with a job."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx2
import pytest

from service.cluster import RayJobs
from service.code_package import CodePackage, installed_code
from service.settings import Settings


def test_the_same_files_make_the_same_package_whatever_their_times(tmp_path: Path) -> None:
    file = tmp_path / "sample" / "__init__.py"
    file.parent.mkdir()
    file.write_text("WORD = 1\n")
    first = CodePackage.of(file.parent)
    os.utime(file, (0, 0))
    assert CodePackage.of(file.parent) == first
    file.write_text("WORD = 2\n")
    assert CodePackage.of(file.parent).name != first.name


def test_drivers_and_workers_find_all_they_need_in_the_package(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(installed_code().data)) as archive:
        archive.extractall(tmp_path)
    assert not list(tmp_path.rglob("*.pyc"))
    program = "import trainer.__main__, tune_spaces.__main__; print(trainer.__file__, tune_spaces.__file__)"
    # Without site packages' own paths first: the folder that Ray unpacks is the working directory.
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert answer == [str(tmp_path / name / "__init__.py") for name in ("trainer", "tune_spaces")]


@pytest.mark.anyio
async def test_the_head_is_sent_the_code_once_and_every_job_names_it() -> None:
    code = CodePackage(name="_ray_pkg_1.zip", data=b"zip")
    held: dict[str, bytes] = {}
    jobs: list[dict[str, object]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if request.method == "PUT":
            assert path not in held
            held[path] = request.content
        elif request.method == "GET":
            return httpx2.Response(200 if path in held else 404)
        else:
            jobs.append(json.loads(request.content)["runtime_env"])
        return httpx2.Response(200, json={})

    cluster = RayJobs("http://ray.test:8265", code=code, transport=httpx2.MockTransport(answer))
    for number in (1, 2):
        await cluster.submit(f"e-a{number}", entrypoint="true", env={}, metadata={})
    assert held == {"/api/packages/gcs/_ray_pkg_1.zip": b"zip"}
    assert [job["working_dir"] for job in jobs] == ["gcs://_ray_pkg_1.zip"] * 2


def test_code_is_sent_to_a_cluster_and_not_to_the_embedded_ray() -> None:
    assert Settings().ships_code
    assert not Settings(cpus=4).ships_code
    assert not Settings(ship_code=False).ships_code


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
