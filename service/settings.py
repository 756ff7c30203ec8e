"""Where the service runs: the only reader of the environment (`SIMCLR_*`).

Unset addresses mean: the supervisor starts an embedded one and passes its address on.
"""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, PlainSerializer, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trainer.data.files import named_place
from trainer.errors import DataError

__all__ = ["Settings", "wrong_settings"]


HTTP: Final = "^https?://"


class Settings(BaseSettings):
    """Every setting of the service, its command line and its embedded stack."""

    model_config = SettingsConfigDict(env_prefix="SIMCLR_", frozen=True, env_ignore_empty=True)

    home: Path = Path(".simclr")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65_535)
    database_url: SecretStr | None = None  # may carry a password
    storage: str | None = None  # directory or s3://bucket/prefix
    mlflow_uri: str | None = Field(None, repr=False)  # may carry a user and a password
    ray_address: str | None = Field(None, repr=False)  # the dashboard's http address, which serves the Jobs API
    mlflow_ui_url: str | None = Field(None, pattern=HTTP)  # where people open MLflow; None: at mlflow_uri
    ray_ui_url: str | None = Field(None, pattern=HTTP)  # where people open Ray's dashboard; None: at ray_address
    ray_token: SecretStr | None = None  # where the cluster runs with RAY_AUTH_MODE=token
    cpus: int | None = Field(None, ge=1, le=4096)  # logical CPUs of the embedded, fixed Ray
    ship_code: bool = True  # each job to a cluster brings the training code; off: the nodes' own is used
    max_workers: int | None = Field(None, ge=1)
    rate_limit: str | None = None  # per token, as "100/minute"; None: off
    max_running: int | None = Field(None, ge=1)  # experiments at once; None: what the cluster holds
    max_running_per_owner: int | None = Field(None, ge=1)
    datasets: str | None = None  # absolute directory or s3://bucket/prefix
    allowed_hosts: Annotated[tuple[str, ...], PlainSerializer(list), NoDecode] = ()  # besides loopback and `host`
    bootstrap_token: SecretStr | None = None  # an admin token's secret, for a first start on an open address

    @field_validator("datasets", mode="before")
    @classmethod
    def _named(cls, datasets: str | Path | None) -> str | None:
        """Refuse any other address, which would be a folder without data sets."""
        try:
            return None if datasets is None else named_place(datasets)
        except DataError as error:
            raise ValueError(error.message) from error

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _listed(cls, hosts: object) -> object:
        """Read the list from its JSON; done here, so that a wrong one is told like every other setting."""
        if not isinstance(hosts, str):
            return hosts
        try:
            listed = json.loads(hosts)
        except json.JSONDecodeError:
            listed = None
        if not isinstance(listed, list):
            raise ValueError('write a JSON list, such as ["simclr.example.org"]')  # noqa: TRY004 - pydantic's way
        return listed

    @property
    def home_dir(self) -> Path:
        """Return the absolute state directory."""
        return self.home.expanduser().absolute()

    @property
    def database_address(self) -> str:
        """Return the SQLAlchemy address of the database in force."""
        if self.database_url is None:
            return f"sqlite:///{self.home_dir / 'simclr.db'}"
        return _with_driver(self.database_url.get_secret_value())

    @property
    def storage_uri(self) -> str:
        """Return where checkpoints, markers and encoders live."""
        return self.storage or str(self.home_dir / "storage")

    @property
    def cache_dir(self) -> Path:
        """Return the node-local cache of decoded images; rebuilt when lost."""
        return self.home_dir / "cache"

    @property
    def ships_code(self) -> bool:
        """Return whether jobs bring the training code: the embedded Ray's nodes are this installation."""
        return self.ship_code and self.cpus is None

    @property
    def embedded_cpus(self) -> int:
        """Return the logical CPUs of the embedded Ray."""
        return self.cpus or max(4, os.cpu_count() or 1)

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can reach the service."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def base_url(self) -> str:
        """Return the address that a person on this machine opens."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def wrong_settings(error: ValidationError) -> str:
    """Return which variables are wrong, and what each wants; one that may hold a secret takes any text."""
    return "; ".join(
        f"SIMCLR_{str(item['loc'][0]).upper()}={item['input']}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors()
    )


def _with_driver(url: str) -> str:
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url
