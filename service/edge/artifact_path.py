"""Which artifact a path may name: relative, plain names below the run's root and nothing else."""

from __future__ import annotations

from urllib.parse import unquote

from service.edge.problems import Problem

__all__ = ["checked_artifact_path"]

MAX_LENGTH = 1024


def checked_artifact_path(path: str) -> str:
    """Return `path` if it can only mean a file below the root, however often someone decodes it.

    Raises:
        Problem: 400 for anything that could be read as a way out: dot segments, absolute and
            drive paths, backslashes, control characters, URLs, and encoded forms of these.
    """
    decoded = path
    for _ in range(4):  # deeper encodings are refused below, as they still change
        decoded = unquote(decoded)
    parts = decoded.split("/")
    is_bad = (
        len(path) > MAX_LENGTH
        or unquote(decoded) != decoded
        or any(part in ("", ".", "..") for part in parts)
        or any(character in "\\:?#" or not character.isprintable() for character in decoded)
    )
    if is_bad:
        raise Problem(400, "artifact_path_invalid", "an artifact path is relative: names separated by '/'")
    return path
