"""The health checks of docker/Dockerfile's images, to be run against what runs here."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final

__all__ = ["health_check"]

DOCKERFILE: Final = Path(__file__).resolve().parents[2] / "docker" / "Dockerfile"


def health_check(target: str, *, port: int | None = None) -> list[str]:
    """Return the command by which an image tells whether it is well, in this interpreter.

    Args:
        target: The image's stage.
        port: Asked in place of the image's own; None leaves that.
    """
    (stage,) = re.findall(
        rf"^FROM base AS {target}$(.*?)(?=^FROM |\Z)", DOCKERFILE.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    (words,) = re.findall(r"^HEALTHCHECK .*\\\n    CMD (\[.*\])$", stage, flags=re.MULTILINE)
    program, *rest = json.loads(words)
    if program != "python":
        raise ValueError(f"{program} is not what the images run their checks with")
    return [sys.executable, *(word if port is None else re.sub(r":\d+/", f":{port}/", word) for word in rest)]
