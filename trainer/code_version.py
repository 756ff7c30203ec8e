"""The version of this code, which a job ships itself: the package installed on its node may be another, or none."""

from __future__ import annotations

from typing import Final

__all__ = ["CODE_VERSION"]

CODE_VERSION: Final = "0.1.0"  # that of pyproject.toml
