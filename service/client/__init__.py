"""The Python client of the HTTP API.

    from pathlib import Path

    from service.client import Client

    with Client() as client:  # SIMCLR_URL, SIMCLR_TOKEN
        experiment = client.submit({"name": "emoji", "kind": "pretrain", "spec": {"data": {"dataset": "openmoji"}}})
        for event in client.watch(experiment["id"]):
            print(event.type, event.data)
        client.download_encoder(experiment["id"], Path("encoder.zip"))

`AsyncClient` has the same methods to await. Both send an idempotency key with everything that
creates, and repeat what was lost on the way with the same key.
"""

from service.client.async_client import AsyncClient
from service.client.documents import (
    Comparison,
    Dataset,
    Encoder,
    Event,
    Experiment,
    Metrics,
    Page,
    Study,
    Token,
    Trial,
    Validation,
)
from service.client.errors import ClientError, DigestMismatch, Unreachable
from service.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Comparison",
    "Dataset",
    "DigestMismatch",
    "Encoder",
    "Event",
    "Experiment",
    "Metrics",
    "Page",
    "Study",
    "Token",
    "Trial",
    "Unreachable",
    "Validation",
]
