"""Makes `tests.harness` and `tests.fakes` importable: a dependency installs a package of the same name."""
