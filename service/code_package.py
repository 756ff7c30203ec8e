"""The training code as a Ray package: what the service was installed with reaches every node with a job."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

__all__ = ["CodePackage", "installed_code"]

_PACKAGES: Final = ("trainer", "tune_spaces")


@dataclass(frozen=True, kw_only=True)
class CodePackage:
    """A zip of Python packages; the same files give the same name, which Ray keeps and fetches once."""

    name: str
    data: bytes

    @property
    def uri(self) -> str:
        """Return the address for a `runtime_env`."""
        return f"gcs://{self.name}"

    @classmethod
    def of(cls, *folders: Path) -> Self:
        """Return the package of some Python packages, each a folder."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for folder in folders:
                for file in sorted(folder.rglob("*")):
                    if file.is_file() and "__pycache__" not in file.parts:
                        # Without a time, so that the digest is one of the contents.
                        archive.writestr(zipfile.ZipInfo(str(file.relative_to(folder.parent))), file.read_bytes())
        data = buffer.getvalue()
        return cls(name=f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:32]}.zip", data=data)


@cache
def installed_code() -> CodePackage:
    """Return the package of the training code that this service was installed with."""
    folders: list[Path] = []
    for name in _PACKAGES:
        found = find_spec(name)
        if found is None or not found.submodule_search_locations:
            raise RuntimeError(f"{name} is not installed beside the service")
        folders.append(Path(found.submodule_search_locations[0]))
    return CodePackage.of(*folders)
