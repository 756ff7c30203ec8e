"""Every setting has its row in docs/operations.md, and every row is a setting."""

from __future__ import annotations

import re

from service.settings import Settings
from tests.harness.page import page, section, table

OF_CLIENTS = {"SIMCLR_URL", "SIMCLR_TOKEN"}


def test_the_settings_table_holds_what_can_be_set() -> None:
    rows = table(section(page("operations.md"), "Settings"), "variable")
    told = {name for row in rows for name in re.findall(r"SIMCLR_\w+", row[0])}
    assert told == {f"SIMCLR_{name.upper()}" for name in Settings.model_fields} | OF_CLIENTS
