"""The tables of Ray's head, kept as docker/kustomize/base/gcs-store.yaml does: in a Redis that asks for a password."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.harness.experiments import wait_until

__all__ = ["GcsStore", "reason_for_no_gcs_store"]

_SERVER: Final = "redis-server"
_PORT: Final = 6379
_START_TIMEOUT_S: Final = 20.0
# The longest that a node waits for its head, of KubeRay where the head has such a store.
_RECONNECT_TIMEOUT_S: Final = 600


def reason_for_no_gcs_store() -> str | None:
    """Return why there can be none here, None if there can."""
    return None if shutil.which(_SERVER) else f"Ray's tables need {_SERVER}"


class GcsStore:
    """While entered, it answers at an address of this machine; what it holds lies in `folder`."""

    def __init__(self, folder: Path, *, host: str) -> None:
        self.password = secrets.token_hex(16)
        self._folder = folder
        self._host = host

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._server = subprocess.Popen(
            [_SERVER, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        assert self._server.stdin is not None
        # On standard input, so that the password is in no command line.
        settings = f"dir {self._folder}\nbind {self._host}\nport {_PORT}\nappendonly yes\nrequirepass {self.password}\n"
        self._server.stdin.write(settings.encode())
        self._server.stdin.close()
        try:
            wait_until(self._answers, timeout_s=_START_TIMEOUT_S, what="the store of Ray's tables")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._server.kill()
        self._server.wait()

    @property
    def of_head(self) -> dict[str, str]:
        """Return the variables by which a head finds it, as KubeRay sets them."""
        return {"RAY_REDIS_ADDRESS": f"{self._host}:{_PORT}", "RAY_external_storage_namespace": "simclr"}

    @property
    def of_nodes(self) -> dict[str, str]:
        """Return the variables of nodes whose head has one."""
        return {"RAY_gcs_rpc_server_reconnect_timeout_s": str(_RECONNECT_TIMEOUT_S)}

    def forget(self) -> None:
        """Lose all that it holds."""
        with self._connected() as connection:
            connection.sendall(f"AUTH {self.password}\r\nFLUSHALL\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2:
                answer += connection.recv(1024)
        assert answer == b"+OK\r\n+OK\r\n", answer

    def _answers(self) -> bool:
        assert self._server.poll() is None, f"{_SERVER} ended"
        try:
            self._connected().close()
        except OSError:
            return False
        return True

    def _connected(self) -> socket.socket:
        return socket.create_connection((self._host, _PORT), timeout=5)
