"""If-Match, read as RFC 9110 has it."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header

from service.edge.problems import Problem

__all__ = ["IfMatch", "expected_version"]

_TAGS = re.compile(r'\s*(?:W/)?"[\x21\x23-\x7e]*"\s*(?:,\s*(?:W/)?"[\x21\x23-\x7e]*"\s*)*')
_TAG = re.compile(r'(W/)?"([^"]*)"')
NO_VERSION = -1  # matches nothing: the client names only tags that we never gave


def expected_version(if_match: str | None, *, current: int) -> int | None:
    """Return the version that a change expects, None for any (`*`).

    Raises:
        Problem: 428 without the header, 400 where it is malformed.
    """
    if if_match is None:
        raise Problem(428, "precondition_required", "send If-Match with the ETag you last saw, or *")
    if if_match.strip() == "*":
        return None
    if not _TAGS.fullmatch(if_match):
        raise Problem(400, "if_match_malformed", "If-Match: one or more ETags in double quotes, or *")
    # A weak tag never matches here: If-Match compares strongly.
    strong = {value for weak, value in _TAG.findall(if_match) if not weak}
    return current if str(current) in strong else NO_VERSION


IfMatch = Annotated[
    str | None,
    Header(
        description="needed: the ETag of the version to change, or *",
        json_schema_extra={"pattern": rf"^\*$|^{_TAGS.pattern}$"},
    ),
]
