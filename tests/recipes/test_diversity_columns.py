"""Diversity between samples in reports: cells, the word "collapsed", and what a student is held against."""

from discrete_distill.evaluation import Estimate
from discrete_distill.recipes.common.diversity_columns import between_cells, collapse_of, figures_of, kept_by_teacher


def figures(agreement: float, reverse: float) -> dict[str, Estimate]:
    return {"agreement": Estimate(agreement, 0.001), "reverse_nats": Estimate(reverse, 0.01)}


def test_cells_show_figures_with_errors_and_are_empty_without_them() -> None:
    assert between_cells(figures(0.012, 6.0)) == ["1.20% ± 0.10%", "403 ± 1.0%"]
    assert between_cells({"agreement": Estimate(0.5, None)}) == ["50.00% ± 0.00%", ""]
    assert between_cells(figures_of(None)) == ["", ""]
    assert figures_of({"agreement": [0.5, None]}) == {"agreement": Estimate(0.5, None)}


def test_only_what_is_lost_beyond_tolerance_and_error_is_collapsed() -> None:
    assert collapse_of(figures(0.5, 5.0), figures(0.01, 5.0)) == (
        "collapsed, agreement of two samples 50% (reference 1%)"
    )
    assert collapse_of(figures(0.012, 5.05), figures(0.01, 5.0)) == ""
    assert collapse_of(figures(0.5, 5.0), {}) == ""


def test_a_student_is_held_against_the_worst_of_its_teacher_at_as_many_steps_or_more() -> None:
    teacher = {4: figures(0.009, 6.5), 8: figures(0.012, 6.0), 64: figures(0.010, 5.9), 128: {}}
    kept = {steps: kept_by_teacher(teacher, steps, {}) for steps in (2, 4, 8, 64, 128)}
    assert kept[2] == kept[4] == figures(0.012, 6.5)
    assert kept[8] == figures(0.012, 6.0)
    assert kept[64] == kept[128] == figures(0.010, 5.9)


def test_without_a_teacher_data_stand_in_but_for_the_figure_that_bad_text_raises_too() -> None:
    data = figures(0.01, 5.0)
    assert kept_by_teacher({8: {}}, 8, data) == {"agreement": data["agreement"]}
    assert kept_by_teacher({}, 8, {}) == {}
