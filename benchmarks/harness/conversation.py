"""What a rank says to the others while it trains, and what that costs it: by what is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Conversation", "Talk", "in_words"]

BATCH_NORM: Final = "batch norm"
COLLECTIVES: Final = {  # of torch, by what the step uses them for
    "all_gather_single": "gather",
    "all_reduce": "gradients",
    "all_gather": "other",
    "broadcast": "other",
}


@dataclass(kw_only=True)
class Talk:
    """One kind of message."""

    num_messages: float = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0  # of this process meanwhile; the rest of the wall time it waits, for others or the network


@dataclass(kw_only=True)
class Conversation:
    """What this process says, from when it is listened to."""

    talks: dict[str, Talk] = field(default_factory=dict)

    def listen(self) -> None:
        """Count each collective of torch and each small message from now on."""
        import torch.distributed as dist

        from trainer.small_messages import SmallMessages

        for name, kind in COLLECTIVES.items():
            setattr(dist, name, self._counted(getattr(dist, name), kind))
        SmallMessages.all_gather = self._counted(SmallMessages.all_gather, BATCH_NORM)  # type: ignore[method-assign] # a process that only measures

    def shares(self, wall_s: float) -> dict[str, dict[str, float]]:
        """Return each kind as shares of `wall_s`, and begin anew."""
        shares = {
            kind: {
                "messages": talk.num_messages,
                "working": talk.cpu_s / wall_s,
                "waiting": max(0.0, talk.wall_s - talk.cpu_s) / wall_s,
            }
            for kind, talk in self.talks.items()
        }
        self.talks.clear()
        return shares

    def _counted(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                talk = self.talks.setdefault(kind, Talk())
                talk.num_messages += 1
                talk.wall_s += time.perf_counter() - wall_s
                talk.cpu_s += time.process_time() - cpu_s

        return counted


def in_words(shares: Mapping[str, Mapping[str, float]], *, steps: int) -> str:
    """Return each kind's part of the time, and what is left to compute with."""
    spoken = sum(share["working"] + share["waiting"] for share in shares.values())
    parts = (
        f"{kind} {share['working']:.3f} + {share['waiting']:.3f} waiting ({share['messages'] / steps:.0f} a step)"
        for kind, share in sorted(shares.items())
    )
    return "; ".join([f"computing {1 - spoken:.3f}", *parts])
