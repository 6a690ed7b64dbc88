"""The laboratory's tables of diversity: exact figures, and a word in place of a fraction for a collapsed student."""

import pytest

from benchmarks.exact import Row, closed, diversity_table
from benchmarks.laboratory import score_distribution
from discrete_distill import exact

CHAIN, LENGTH = exact.small_chain()
LAW = CHAIN.distribution(LENGTH)


def rows_of(name: str, distribution, steps: int = 2) -> list[Row]:
    return [Row("distances", name, 0, *score_distribution(distribution, LAW, steps), 0.0)]


def one_sequence():
    """The most probable sequence, and a little of the distribution."""
    distribution = 0.05 * LAW
    distribution.view(-1)[int(LAW.argmax())] += 0.95
    return distribution


def test_a_student_that_says_one_sequence_has_crossed_nothing() -> None:
    blurred = 0.5 * LAW + 0.5 / LAW.numel()
    rows = rows_of("teacher", blurred) + rows_of("healthy", 0.8 * LAW + 0.2 / LAW.numel()) + rows_of("optimal", LAW)
    rows += rows_of("collapsed", one_sequence())
    fraction = closed(rows, "healthy", 2, LAW)
    assert isinstance(fraction, float)
    assert 0.0 < fraction < 1.0
    said = closed(rows, "collapsed", 2, LAW)
    assert isinstance(said, str)
    assert said.startswith("collapsed, agreement of two samples")
    lines = {line.split()[0]: line for line in diversity_table(rows, LAW).splitlines()[1:]}
    assert f"{float(exact.agreement(LAW)):.1%} / {float(exact.collision(LAW)):.2%}" in lines["distribution"]
    assert f"* {float(exact.agreement(one_sequence())):.1%} / " in lines["collapsed"]
    assert "*" not in lines["healthy"]


def test_scores_carry_agreement_and_collision() -> None:
    score = score_distribution(LAW, LAW, 2)
    assert score.agreement == pytest.approx(float(exact.agreement(LAW)))
    assert score.collision == pytest.approx(float(exact.collision(LAW)))
