"""What tests of the service share: a migrated database to copy, and the HTTP app on it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from service.store import migrations
from tests.fakes.control_plane import ControlPlane
from tests.harness.http_app import HttpApp, http_app


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Write short lines: structlog's own default draws every variable of a traceback."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "simclr.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
async def service(tmp_path: Path, migrated_database: Path, datasets_dir: Path) -> AsyncIterator[HttpApp]:
    """Yield an embedded service: loopback, no tokens."""
    async with http_app(tmp_path, database=migrated_database, datasets=datasets_dir) as running:
        yield running


@pytest.fixture
async def plane(tmp_path: Path, migrated_database: Path) -> AsyncIterator[ControlPlane]:
    """Yield dispatchers over a fake cluster of eight CPUs, their clock in the test's hand."""
    shutil.copyfile(migrated_database, tmp_path / "simclr.db")
    plane = ControlPlane(database=tmp_path / "simclr.db", home=tmp_path)
    yield plane
    await plane.store.close()
