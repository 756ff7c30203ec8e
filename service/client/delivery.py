"""How a request is delivered: when it is sent again, how long after, and what its answer means."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import httpx2

from service.client.documents import Event, Experiment
from service.client.errors import ClientError, DigestMismatch, Unreachable, error_of
from service.experiment import TERMINAL

__all__ = [
    "DOWNLOAD_TIMEOUT",
    "DROPPED",
    "STREAM_TIMEOUT",
    "TIMEOUT",
    "BodyDigest",
    "Delivery",
    "event_of",
    "http_options",
    "is_over",
    "tells_end",
    "timed_out",
]

DROPPED: Final = "dropped"  # the last event of a stream whose client took them too slowly
# Longer than the service takes to say that storage, data sets or the database do not answer.
TIMEOUT: Final = httpx2.Timeout(60.0, connect=5.0)
DOWNLOAD_TIMEOUT: Final = httpx2.Timeout(10.0, read=150.0)  # it reads an encoder of gigabytes before it sends any of it
# The stream's heartbeat comes every 15 s: three missed ones are a lost connection.
STREAM_TIMEOUT: Final = httpx2.Timeout(10.0, read=45.0)
_FIRST_BACKOFF_S: Final = 0.2
_LAST_BACKOFF_S: Final = 5.0
_REFUSED: Final = 429  # before anything was done
_UNAVAILABLE: Final = 503  # perhaps in the midst: what a database did not answer in time it may yet commit
_MISSING: Final = 404
_NEVER_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Delivery:
    """The attempts at one request, for at most `retry_for_s` seconds."""

    def __init__(self, url: str, *, retry_for_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._retry_for_s = retry_for_s
        self._clock = clock
        self._began_at = clock()
        self._attempts = 0
        self._may_be_done = False  # by an attempt that had no answer, or none that tells

    def delay_after_error(self, error: httpx2.TransportError, *, is_repeatable: bool) -> float:
        """Return the seconds until the next attempt. Raises Unreachable where there is none."""
        delay_s = self._next_delay_s(None)
        if delay_s is None or not (is_repeatable or isinstance(error, _NEVER_SENT)):
            self._give_up(error)
        self._may_be_done |= not isinstance(error, _NEVER_SENT)
        return delay_s

    def delay_after_response(self, response: httpx2.Response, *, is_repeatable: bool) -> float | None:
        """Return the seconds until the next attempt; None where this answer is the last word."""
        if response.status_code != _REFUSED and not (response.status_code == _UNAVAILABLE and is_repeatable):
            return None
        self._may_be_done |= response.status_code == _UNAVAILABLE
        return self._next_delay_s(response.headers.get("Retry-After"))

    def answer(self, response: httpx2.Response, *, is_removal: bool) -> Any:
        """Return the document of a success, None for an empty one. Raises ClientError for the rest.

        What `is_removal` finds gone has been removed where an earlier attempt may have done it.
        """
        if is_removal and self._may_be_done and response.status_code == _MISSING:
            return None
        if not response.is_success:
            raise error_of(response)
        return response.json() if response.content else None

    def _next_delay_s(self, retry_after: str | None) -> float | None:
        asked_s = _seconds(retry_after)
        backoff_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2**self._attempts)
        # Spread, so that many clients that were turned away together do not return together.
        delay_s = asked_s if asked_s is not None else backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._attempts += 1
        return delay_s if self._clock() - self._began_at + delay_s <= self._retry_for_s else None

    def _give_up(self, error: httpx2.TransportError) -> NoReturn:
        way_out = (
            "start the service with `simclr serve`, or name another: SIMCLR_URL=http://HOST:PORT"
            if isinstance(error, _NEVER_SENT)
            else "it may have done what it was asked: look before you ask for it again"
        )
        detail = f"no answer from {self._url} ({error or type(error).__name__}); {way_out}"
        raise Unreachable({"title": "Unreachable", "code": "unreachable", "detail": detail}) from error


def _seconds(retry_after: str | None) -> float | None:
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def http_options(url: str, token: str | None, transport: Any) -> dict[str, Any]:
    """Return what both clients give to the HTTP library."""
    is_loopback = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    return {
        "base_url": url.rstrip("/"),
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "timeout": TIMEOUT,
        "trust_env": not is_loopback,  # a proxy does not lead to this machine
        "transport": transport,
    }


def event_of(event: httpx2.ServerSentEvent) -> Event:
    """Return a server-sent event with its data read."""
    return Event(type=event.event, id=event.id, data=event.json())


def is_over(experiment: Experiment) -> bool:
    """Return whether the experiment has ended, one way or another."""
    return experiment["state"] in TERMINAL


def tells_end(event: httpx2.ServerSentEvent) -> bool:
    """Return whether this is the last state of an experiment."""
    return event.event == "state" and event_of(event).data["state"] in TERMINAL


class BodyDigest:
    """Checks a body against its Repr-Digest (RFC 9530) while it is saved."""

    def __init__(self, response: httpx2.Response) -> None:
        self._announced = response.headers.get("Repr-Digest", "")
        self._sha256 = hashlib.sha256()

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self._sha256.update(chunk)

    def verify(self) -> str:
        """Return the sha256 in hex. Raises DigestMismatch if it is not the announced one."""
        found = f"sha-256=:{base64.b64encode(self._sha256.digest()).decode()}:"
        if found not in self._announced.replace(" ", "").split(","):
            detail = f"the download has {found}, the service announced {self._announced or 'no digest'}; try again"
            raise DigestMismatch({"title": "Digest mismatch", "code": "digest_mismatch", "detail": detail})
        return self._sha256.hexdigest()


def timed_out(experiment: Experiment, timeout_s: float) -> ClientError:
    """Return the error of a wait that took too long."""
    detail = f"{experiment['id']} is {experiment['state']} after {timeout_s:g} s"
    return ClientError({"title": "Timeout", "code": "wait_timeout", "detail": detail})
