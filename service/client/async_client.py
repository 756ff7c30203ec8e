"""The client for asynchronous code: `sync_client.Client` with every method awaited."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx2

from service.client import calls
from service.client.calls import Call
from service.client.delivery import (
    DOWNLOAD_TIMEOUT,
    DROPPED,
    STREAM_TIMEOUT,
    BodyDigest,
    Delivery,
    event_of,
    http_options,
    is_over,
    tells_end,
    timed_out,
)
from service.client.documents import (
    Attempt,
    Comparison,
    Dataset,
    Encoder,
    Event,
    Experiment,
    Logs,
    Metrics,
    NewToken,
    Page,
    Study,
    Token,
    Trial,
    Validation,
    Version,
)
from service.client.errors import error_of
from service.client.sync_client import DEFAULT_URL

__all__ = ["AsyncClient"]

_WAIT_INTERVAL_S: Final = 1.0

Document = TypeVar("Document")


class AsyncClient:
    """The API of one service, as one caller; arguments, results and errors are those of `Client`.

    Args:
        url: Address of the service; default `SIMCLR_URL`, else the embedded default.
        token: Secret of the caller's token; default `SIMCLR_TOKEN`, else none.
        retry_for_s: How long a request that got lost or was turned away is repeated.
        transport: Replaces the network, for tests.
        sleep: Waits between attempts.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        retry_for_s: float = 30.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url or os.environ.get("SIMCLR_URL") or DEFAULT_URL
        options = http_options(self.url, token or os.environ.get("SIMCLR_TOKEN"), transport)
        self._http = httpx2.AsyncClient(**options)
        self._retry_for_s = retry_for_s
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- experiments ------------------------------------------------------------------------------

    async def submit(self, document: Mapping[str, Any], *, idempotency_key: str | None = None) -> Experiment:
        """Submit {"name", "kind", "spec", ...}; a repeated key returns what it made the first time."""
        return await self._send(calls.submit(document, idempotency_key=idempotency_key))

    async def validate(self, document: Mapping[str, Any]) -> Validation:
        """Return the resolved spec and the plan; nothing is stored."""
        return await self._send(calls.validate(document))

    async def experiment(self, experiment_id: str) -> Experiment:
        """Return one experiment."""
        return await self._send(calls.experiment(experiment_id))

    def experiments(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        label: str | None = None,
        name: str | None = None,
        order_by: str | None = None,
        page_size: int | None = None,
    ) -> AsyncIterator[Experiment]:
        """Yield the experiments that match, page by page, newest first unless ordered otherwise."""
        return self._pages(
            lambda token: calls.experiments(
                state=state,
                kind=kind,
                label=label,
                name=name,
                order_by=order_by,
                page_size=page_size,
                page_token=token,
            )
        )

    async def cancel(self, experiment_id: str) -> Experiment:
        """Ask an experiment to end; repeating is no error."""
        return await self._send(calls.verb(experiment_id, "cancel"))

    async def pause(self, experiment_id: str) -> Experiment:
        """Ask an experiment to stop after a checkpoint; repeating is no error."""
        return await self._send(calls.verb(experiment_id, "pause"))

    async def resume(self, experiment_id: str) -> Experiment:
        """Let a paused experiment go on; repeating is no error."""
        return await self._send(calls.verb(experiment_id, "resume"))

    async def clone(
        self,
        experiment_id: str,
        *,
        name: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Experiment:
        """Submit the same spec again, with `overrides` (dotted path -> value)."""
        call = calls.clone(experiment_id, name=name, overrides=overrides or {}, idempotency_key=idempotency_key)
        return await self._send(call)

    async def continue_experiment(
        self,
        experiment_id: str,
        *,
        epochs: int | None = None,
        max_trials: int | None = None,
        idempotency_key: str | None = None,
    ) -> Experiment:
        """Submit a new experiment that goes on from this one's checkpoint, to so many in all."""
        call = calls.continue_(experiment_id, epochs=epochs, max_trials=max_trials, idempotency_key=idempotency_key)
        return await self._send(call)

    async def update(
        self,
        experiment_id: str,
        *,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        etag: str = "*",
    ) -> Experiment:
        """Replace labels or priority; an `etag` refuses where someone else was first."""
        return await self._send(calls.update(experiment_id, labels=labels, priority=priority, etag=etag))

    async def delete(self, experiment_id: str, *, force: bool = False) -> None:
        """Remove an experiment; an active one only with `force`."""
        await self._send(calls.delete(experiment_id, force=force))

    async def wait(self, experiment_id: str, *, timeout_s: float | None = None) -> Experiment:
        """Return the experiment once it has ended. Raises ClientError (wait_timeout) if it takes longer."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not is_over(experiment := await self.experiment(experiment_id)):
            if deadline is not None and timeout_s is not None and time.monotonic() >= deadline:
                raise timed_out(experiment, timeout_s)
            await self._sleep(_WAIT_INTERVAL_S)
        return experiment

    async def watch(self, experiment_id: str, *, last_event_id: str = "") -> AsyncIterator[Event]:
        """Yield the experiment's events until it has ended; a lost connection resumes where it broke.

        So does a stream that was dropped because its events were taken too slowly. Metrics and logs of
        the time between are in `metrics` and `logs`.
        """
        delivery, is_known_over = self._delivery(), False
        while True:
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            pause_s, is_whole = _WAIT_INTERVAL_S, False
            try:
                async with self._http.sse(
                    calls.events_path(experiment_id), headers=headers, timeout=STREAM_TIMEOUT
                ) as source:
                    if source.response.is_success:
                        async for event in source:
                            delivery = self._delivery()
                            last_event_id = event.id or last_event_id
                            if not event.data:
                                continue  # a comment, or the time to come back in: no event
                            if event.event == DROPPED:
                                break
                            yield event_of(event)
                            is_known_over |= tells_end(event)
                        else:
                            is_whole = True
                    else:
                        await source.response.aread()
                        delay_s = delivery.delay_after_response(source.response, is_repeatable=True)
                        if delay_s is None:
                            raise error_of(source.response)
                        pause_s = delay_s
            except httpx2.TransportError as error:
                pause_s = delivery.delay_after_error(error, is_repeatable=True)
            if is_whole and is_known_over:
                return
            if is_whole:  # the service ended it: what the experiment came to since is told by one more
                is_known_over = is_over(await self.experiment(experiment_id))
            await self._sleep(pause_s)

    # --- what came out ----------------------------------------------------------------------------

    def trials(self, experiment_id: str) -> AsyncIterator[Trial]:
        """Yield the trials of an experiment."""
        return self._pages(lambda token: calls.trials(experiment_id, page_token=token))

    async def trial(self, experiment_id: str, trial_id: str) -> Trial:
        """Return one trial."""
        return await self._send(calls.trial(experiment_id, trial_id))

    async def metrics(
        self,
        experiment_id: str,
        *,
        keys: Sequence[str] = (),
        trial: str | None = None,
        max_points: int | None = None,
    ) -> Metrics:
        """Return the points of one trial's metrics; every point unless `max_points` is given."""
        return await self._send(calls.metrics(experiment_id, keys=keys, trial=trial, max_points=max_points))

    async def logs(self, experiment_id: str, *, tail: int | None = None) -> Logs:
        """Return the end of the driver's log."""
        return await self._send(calls.logs(experiment_id, tail=tail))

    async def artifacts(self, experiment_id: str) -> list[dict[str, Any]]:
        """Return the files of the best trial's run."""
        return (await self._send(calls.artifacts(experiment_id)))["items"]

    async def timeline(self, experiment_id: str) -> list[Attempt]:
        """Return when each part of each attempt began and how long it took."""
        return (await self._send(calls.timeline(experiment_id)))["items"]

    async def report(self, experiment_id: str) -> dict[str, Any]:
        """Return the report of an experiment."""
        return await self._send(calls.report(experiment_id))

    async def compare(self, experiment_ids: Sequence[str]) -> Comparison:
        """Return experiments side by side and where their specs differ."""
        return await self._send(calls.compare(experiment_ids))

    async def download_encoder(self, experiment_id: str, path: Path) -> str:
        """Save the encoder bundle of the best trial, whole and verified, and return its sha256.

        Raises:
            DigestMismatch: If other bytes arrived than the service announced; nothing is saved.
        """
        delivery = self._delivery()
        while True:
            try:
                async with self._http.stream(
                    "GET", calls.encoder_path(experiment_id), timeout=DOWNLOAD_TIMEOUT
                ) as response:
                    if response.is_success:
                        return await _save(response, path)
                    await response.aread()
            except httpx2.TransportError as error:
                await self._sleep(delivery.delay_after_error(error, is_repeatable=True))
                continue
            delay_s = delivery.delay_after_response(response, is_repeatable=True)
            if delay_s is None:
                raise error_of(response)
            await self._sleep(delay_s)

    def encoders(self) -> AsyncIterator[Encoder]:
        """Yield the encoders that can be downloaded."""
        return self._pages(lambda token: calls.encoders(page_token=token))

    # --- catalogue and access ---------------------------------------------------------------------

    def studies(self) -> AsyncIterator[Study]:
        """Yield the catalogue of studies."""
        return self._pages(lambda token: calls.studies(page_token=token))

    async def study(self, name: str) -> Study:
        """Return one study."""
        return await self._send(calls.study(name))

    def datasets(self) -> AsyncIterator[Dataset]:
        """Yield the registered data sets."""
        return self._pages(lambda token: calls.datasets(page_token=token))

    async def dataset(self, name: str) -> Dataset:
        """Return one data set."""
        return await self._send(calls.dataset(name))

    def tokens(self) -> AsyncIterator[Token]:
        """Yield all tokens, without their secrets."""
        return self._pages(lambda token: calls.tokens(page_token=token))

    async def create_token(
        self, *, name: str, role: str = "submitter", owner: str | None = None, expires_at: str | None = None
    ) -> NewToken:
        """Make a token; its secret is in the answer and nowhere else."""
        return await self._send(calls.create_token(name=name, role=role, owner=owner, expires_at=expires_at))

    async def revoke_token(self, token_id: str) -> None:
        """Revoke a token; repeating is no error."""
        await self._send(calls.revoke_token(token_id))

    async def version(self) -> Version:
        """Return which versions answer."""
        return await self._send(calls.version())

    # --- delivery ---------------------------------------------------------------------------------

    def _delivery(self) -> Delivery:
        return Delivery(self.url, retry_for_s=self._retry_for_s)

    async def _send(self, call: Call[Document]) -> Document:
        delivery = self._delivery()
        while True:
            try:
                response = await self._http.request(
                    call.method, call.path, params=dict(call.params), json=call.body, headers=dict(call.headers)
                )
            except httpx2.TransportError as error:
                await self._sleep(delivery.delay_after_error(error, is_repeatable=call.is_repeatable))
                continue
            delay_s = delivery.delay_after_response(response, is_repeatable=call.is_repeatable)
            if delay_s is None:
                document: Document = delivery.answer(response, is_removal=call.is_removal)
                return document
            await self._sleep(delay_s)

    async def _pages(self, page_call: Callable[[str | None], Call[Page[Document]]]) -> AsyncIterator[Document]:
        token: str | None = None
        while True:
            page = await self._send(page_call(token))
            for item in page["items"]:
                yield item
            token = page.get("next_page_token")
            if not token:
                return


async def _save(response: httpx2.Response, path: Path) -> str:
    digest = BodyDigest(response)
    temporary = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            async for chunk in response.aiter_bytes():
                digest.update(chunk)
                file.write(chunk)
        sha256 = digest.verify()
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return sha256
