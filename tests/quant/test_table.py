from __future__ import annotations

import pytest

from quant.table import Table, number, table


def test_markdown_has_a_rule_under_the_columns() -> None:
    shown = table("t", ["a", "b"], [["1", "2"]]).markdown()
    assert shown == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="row of 1 cells for 2 columns"):
        Table("t", ("a", "b"), (("1",),))


def test_nothing_to_show_is_a_dash_and_not_a_number() -> None:
    assert number(None, 2) == "–"
    assert number(1.256, 2) == "1.26"
