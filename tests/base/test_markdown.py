from __future__ import annotations

from cap.base.markdown import table


def test_a_table_has_a_line_a_row_and_room_for_empty_cells() -> None:
    assert table(["", "ms"], [["a", "1"], ["", ""]]) == "| | ms |\n| --- | --- |\n| a | 1 |\n| | |"


def test_a_bar_stays_in_its_cell_and_is_escaped_once() -> None:
    assert table(["a|b"], [[r"c\|d"]]).splitlines()[::2] == [r"| a\|b |", r"| c\|d |"]
