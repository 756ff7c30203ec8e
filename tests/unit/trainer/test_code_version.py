import tomllib
from pathlib import Path

from trainer.code_version import CODE_VERSION


def test_the_code_has_the_version_of_its_package() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert pyproject["project"]["version"] == CODE_VERSION
