"""What goes wrong between a command and a running stack.

SettingsError (service.errors)   settings_invalid   refused before anything was started
StackFailed                      stack_failed       a part did not come up, or could not be ended
"""

from __future__ import annotations

from service.errors import ServiceError

__all__ = ["StackFailed"]


class StackFailed(ServiceError):
    """A part of the embedded stack did not come up or could not be ended; says which and why."""

    code = "stack_failed"
