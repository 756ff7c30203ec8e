"""Dotted paths into a spec, as sweeps and clones name its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["pointer_of", "with_override"]


def pointer_of(path: str) -> str:
    """Return the JSON pointer of a dotted path."""
    return "/" + path.replace(".", "/")


def with_override(document: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of `document` with one value replaced.

    Raises:
        KeyError: If the path runs through something that is no object.
    """
    head, _, rest = path.partition(".")
    if not rest:
        return {**document, head: value}
    inner = document.get(head, {})
    if not isinstance(inner, Mapping):
        raise KeyError(head)
    return {**document, head: with_override(inner, rest, value)}
