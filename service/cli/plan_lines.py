"""A plan in words: what an experiment will cost, told before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["plan_lines"]

_MIB: Final = 2**20
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield the cost in one line, then each warning."""
    parts = [f"{plan['steps']:,} steps", f"{plan['images']:,} images"] if "images" in plan else []
    if plan.get("trials", 1) > 1:
        at_once = f", {plan['trials_at_once']} at a time" if plan.get("trials_at_once") else ""
        parts.insert(0, f"{plan['trials']:,} trials{at_once}")
    if plan.get("memory_bytes"):
        parts.append(f"about {plan['memory_bytes'] / _MIB:,.0f} MiB a worker")
    if parts:
        parts.append(f"about {_duration(plan['time_s'])}" if plan.get("time_s") else "how long is not known yet")
        yield f"plan: {', '.join(parts)}"
    yield from (f"warning: {warning}" for warning in plan.get("warnings", ()))


def _duration(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
