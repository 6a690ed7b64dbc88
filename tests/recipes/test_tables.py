"""Markdown tables of the reports."""

import math

import pytest

from discrete_distill.recipes.common.tables import markdown_table, number, span


def test_a_table_has_a_line_for_titles_one_for_columns_and_one_for_each_row() -> None:
    table = markdown_table(["", "steps"], [["teacher", "8"], ["student", ""]])
    assert table == "|  | steps |\n|---|---|\n| teacher | 8 |\n| student |  |"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells"):
        markdown_table(["", "steps"], [["teacher"]])


@pytest.mark.parametrize(("value", "shown"), [(0.1234, "12.3%"), (None, "-"), (math.nan, "-"), (0.0, "0.0%")])
def test_a_figure_that_was_not_measured_is_told_apart_from_zero(value: float | None, shown: str) -> None:
    assert number(value, ".1%", "-") == shown


def test_a_span_has_both_ends() -> None:
    assert span([3.0, 1.0, 2.0], ".1f") == "1.0 to 3.0"
