from __future__ import annotations

import pytest
from rich.table import Table

from cap.base.console import print_table


@pytest.mark.parametrize(("columns", "is_whole"), [(None, True), ("40", False)], ids=["a pipe", "a narrow terminal"])
def test_a_table_in_a_pipe_is_as_wide_as_its_paths(capsys, monkeypatch, columns: str | None, is_whole: bool) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    path = "outputs/sst2/magnitude-0.5/" + 80 * "a"
    table = Table("majority class", "folder")
    table.add_row("0.5", path)
    print_table(table)
    assert (path in capsys.readouterr().out) == is_whole
