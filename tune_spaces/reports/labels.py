"""Settings in words: short ones, and whole ones where short ones would read alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tune_spaces.reports.operations import OPERATIONS, operations_line

__all__ = ["setting_labels", "value_labels"]


def setting_labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each setting (flat: dotted path -> scalar) in one line, no two alike."""
    short, whole = (
        [
            ", ".join(f"{path} = {_told(path, value, is_whole=is_whole)}" for path, value in params.items())
            or "the base"
            for params in settings
        ]
        for is_whole in (False, True)
    )
    return _unlike(short, whole)


def value_labels(paths: Sequence[str], items: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return what settings have at some paths together in one line, no two alike."""
    short, whole = (
        [
            ", ".join(_told(path, value, is_whole=is_whole) for path, value in zip(paths, values, strict=True))
            for values in items
        ]
        for is_whole in (False, True)
    )
    return _unlike(short, whole)


def _unlike(short: Sequence[str], whole: Sequence[str]) -> list[str]:
    times = Counter(short)
    return [brief if times[brief] == 1 else full for brief, full in zip(short, whole, strict=True)]


def _told(path: str, value: Any, *, is_whole: bool) -> str:
    if path == OPERATIONS and value is not None:
        return operations_line(value, is_whole=is_whole)
    return f"{value:g}" if isinstance(value, float) and not is_whole else str(value)
