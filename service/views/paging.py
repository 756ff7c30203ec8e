"""Page tokens: where the next page begins, opaque and signed.

A token holds the last item's order value and id. Its signature also covers the filters and the
order of the list, so that a token cannot be forged, altered or taken to another list.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import datetime
from typing import Any, Final

from service.ports import ListQuery

__all__ = ["PageTokenError", "decode", "encode", "query_digest"]

_SIGNATURE_BYTES: Final = 16


class PageTokenError(ValueError):
    """The token was not made here for this list."""


def query_digest(query: ListQuery) -> str:
    """Return the sha256 of what makes a list another list: its filters and order, not its page size."""
    filters = [
        query.owner,
        sorted(query.states),
        query.kind,
        sorted(query.labels.items()),
        query.name,
        query.order_by,
    ]
    return hashlib.sha256(json.dumps(filters).encode()).hexdigest()


def encode(after: tuple[Any, str], *, query_digest: str, key: bytes) -> str:
    """Return the token of the position behind (order value, id).

    Args:
        after: `Page.next_after`; the order value is a string, an integer or an aware time.
        query_digest: Of the list the position belongs to; see `query_digest`.
        key: The secret that signs.

    Returns:
        URL-safe text.
    """
    value, identifier = after
    is_time = isinstance(value, datetime)
    payload = json.dumps([int(is_time), value.isoformat() if is_time else value, identifier]).encode()
    return base64.urlsafe_b64encode(_signature(payload, query_digest, key) + payload).decode().rstrip("=")


def decode(token: str, *, query_digest: str, key: bytes) -> tuple[Any, str]:
    """Return the position that `encode` was given.

    Raises:
        PageTokenError: If the token is malformed, altered, signed by another key, or of another list.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise PageTokenError("the page token is malformed") from error
    signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(payload, query_digest, key)):
        raise PageTokenError("the page token does not belong to this list")
    is_time, value, identifier = json.loads(payload)
    after = (datetime.fromisoformat(value) if is_time else value, identifier)
    # Base 64 has spare bits at the end: the same bytes under another spelling are refused as well.
    if encode(after, query_digest=query_digest, key=key) != token:
        raise PageTokenError("the page token is malformed")
    return after


def _signature(payload: bytes, query_digest: str, key: bytes) -> bytes:
    message = b"page-token\0" + query_digest.encode() + b"\0" + payload
    return hmac.new(key, message, hashlib.sha256).digest()[:_SIGNATURE_BYTES]
