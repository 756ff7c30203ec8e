"""The state directory of a stack: its lock, and the record of what runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from service.embedded.processes import ProcessRecord
from service.errors import SettingsError

__all__ = ["Holder", "RunningPart", "StackLocked", "StateDirectory"]

_RUNTIME_ROOT: Final = Path("/tmp")  # noqa: S108 - made with mode 0700, and refused where it is another user's


@dataclass(frozen=True, kw_only=True)
class RunningPart:
    """What was started: the process, where it answers, and what it is."""

    process: ProcessRecord
    url: str
    identity: str


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds the lock."""

    process: ProcessRecord
    command: str
    url: str


class StackLocked(SettingsError):
    """Another command runs on this state directory."""

    def __init__(self, message: str, *, holder: Holder | None) -> None:
        super().__init__(message)
        self.holder = holder


@dataclass(frozen=True, kw_only=True)
class StateDirectory:
    """`SIMCLR_HOME`, by its real path: two names of one directory are one stack."""

    path: Path
    stack_id: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()
        object.__setattr__(self, "stack_id", digest[:16])

    @property
    def runtime_dir(self) -> Path:
        """Return the short directory for Ray's sockets, whatever the length of `path`."""
        return _RUNTIME_ROOT / f"simclr-{self.stack_id[:8]}"

    @property
    def logs_dir(self) -> Path:
        """Return where each part's output goes."""
        return self.path / "logs"

    def prepare(self) -> None:
        """Make the directories and prove that they can be written. Raises SettingsError if not."""
        probe = self.path / f".probe-{secrets.token_hex(4)}"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs_dir.mkdir(exist_ok=True)
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                probe.unlink()
            raise SettingsError(
                f"the state directory {self.path} cannot be written ({error.strerror}); "
                "name one that can: SIMCLR_HOME=DIRECTORY"
            ) from error
        self._prepare_runtime_dir()

    def _prepare_runtime_dir(self) -> None:
        self.runtime_dir.mkdir(mode=0o700, exist_ok=True)
        status = self.runtime_dir.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise SettingsError(f"{self.runtime_dir} belongs to someone else; remove it, or use another SIMCLR_HOME")
        self.runtime_dir.chmod(0o700)

    @contextlib.contextmanager
    def lock(self, *, command: str, url: str) -> Iterator[None]:
        """Hold the directory for this process. Raises StackLocked, which names who has it."""
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._locked(file.name) from error
            file.truncate(0)
            json.dump(asdict(Holder(process=ProcessRecord.of(os.getpid()), command=command, url=url)), file)
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def _locked(self, lock_path: str) -> StackLocked:
        document = _read_json(Path(lock_path))
        if document is None:
            return StackLocked(f"another command is starting on {self.path}; try again in a moment", holder=None)
        holder = Holder(**document | {"process": ProcessRecord(**document["process"])})
        return StackLocked(
            f"`simclr {holder.command}` (process {holder.process.pid}) holds {self.path} and serves {holder.url}; "
            "use it, end it with `simclr stop`, or name another directory: SIMCLR_HOME=DIRECTORY",
            holder=holder,
        )

    def read_parts(self) -> dict[str, RunningPart]:
        """Return what the last command recorded; {} where nothing was left."""
        document = _read_json(self._record_path) or {}
        return {
            name: RunningPart(**part | {"process": ProcessRecord(**part["process"])})
            for name, part in document.get("parts", {}).items()
        }

    def write_parts(self, parts: dict[str, RunningPart]) -> None:
        """Record what runs: readable by this user alone, whole or not at all."""
        document = {"version": 1, "stack_id": self.stack_id, "parts": {n: asdict(part) for n, part in parts.items()}}
        temporary = self._record_path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(self._record_path)

    def forget(self) -> None:
        """Remove the record and the runtime directory, once nothing runs."""
        self._record_path.unlink(missing_ok=True)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)

    @property
    def _record_path(self) -> Path:
        return self.path / "stack.json"


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file; None where there is none, or only part of one."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
