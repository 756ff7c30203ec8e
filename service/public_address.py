"""Addresses as they may be written down."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

__all__ = ["without_userinfo"]


def without_userinfo(uri: str) -> str:
    """Return `uri` without the user and password that it may carry."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
