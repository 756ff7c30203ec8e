"""`make test` on a machine that lacks what some tests need, without the right to install it."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "install_tools.sh"


def test_who_may_not_install_is_told_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("#!/bin/bash\necho 1000\n", encoding="utf-8")
    (tmp_path / "id").chmod(0o755)
    # nothing but `id` is on the path
    ended = subprocess.run(
        ["/bin/bash", SCRIPT], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "sudo apt-get install --no-install-recommends" in ended.stderr
    assert all(package in ended.stderr for package in ("chromium", "redis-server", "iproute2", "make test-fast"))
