"""Checks of single arguments: an interval accepts what lies in it, and nothing else."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discrete_distill.checks import check_count, check_number


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_a_count_is_an_integer_that_is_large_enough(value: int, least: int) -> None:
    for number in (value, np.int64(value)):
        if value >= least:
            check_count("n", number, minimum=least)
        else:
            with pytest.raises(ValueError, match=str(value)):
                check_count("n", number, minimum=least)


@pytest.mark.parametrize("value", [1.0, 1.5, math.nan, "1", None, True, [1]])
def test_what_is_no_integer_is_no_count(value: object) -> None:
    with pytest.raises(TypeError, match="n must be an integer"):
        check_count("n", value)


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(-3, 3), st.floats(-3, 3), st.booleans(), st.booleans())
def test_a_number_lies_in_its_interval(value: float, low: float, high: float, open_low: bool, open_high: bool) -> None:
    lower, upper = ("exclusive_" * open_low + "minimum", "exclusive_" * open_high + "maximum")
    bounds = {lower: low, upper: high}
    above_low = value > low if open_low else value >= low
    below_high = value < high if open_high else value <= high
    if above_low and below_high:
        check_number("x", value, **bounds)
    else:
        with pytest.raises(ValueError, match="x must be"):
            check_number("x", value, **bounds)


def test_infinity_is_a_number_only_where_it_is_allowed() -> None:
    check_number("x", math.inf, exclusive_minimum=0.0, finite=False)
    with pytest.raises(ValueError, match="inf"):
        check_number("x", math.inf, exclusive_minimum=0.0)
    for value in ("1", None, True, 1j):
        with pytest.raises(TypeError, match="x must be a real number"):
            check_number("x", value)
