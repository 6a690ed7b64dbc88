"""What the report of the text recipe holds."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.markdown import Markdown

from discrete_distill.evaluation import Frontier
from discrete_distill.recipes.text.report import (
    diagnostics,
    frontier_table,
    headline,
    step_curves,
    steps_table,
    summary_table,
)


def line(method: str, entropy: float, corpus_entropy: float = 6.0) -> dict[str, Any]:
    diversity = {"entropy": entropy, "corpus_entropy": corpus_entropy}
    return {"method": method, "steps": 8, "diversity": diversity}


def frontier(method: str, entropies: tuple[float, float]) -> dict[str, Any]:
    points = [
        {
            "temperature": 1.0 + index,
            "seed": 0,
            "entropy": entropy,
            "corpus_entropy": 6.0,
            "nats_per_token": 5.0,
            "standard_error": 0.1,
        }
        for index, entropy in enumerate(entropies)
    ]
    return {"method": method, "judge": "j", "precision": "fp32", "num_samples": 4, "length": 8, "points": points}


def results(student_entropy: float, corpus_entropy: float = 6.0, reach: float = 4.2) -> dict[str, Any]:
    return {
        "data": {"diversity": {"entropy": 3.9}},
        "by_steps": [line("teacher", 3.9), line("student", student_entropy, corpus_entropy)],
        "frontiers": [frontier("teacher, 8 steps", (3.5, 4.2)), frontier("student, 8 steps", (3.5, reach))],
    }


QUIET = [{"step": 1.0, "seconds": 1.0, "entropy": 4.0}, {"step": 2.0, "seconds": 2.0, "entropy": 3.9}]


def test_a_healthy_run_has_one_reassuring_line() -> None:
    (found,) = diagnostics(results(3.88), QUIET)
    assert found.startswith("No sign of collapse")


def with_agreement(saved: dict[str, Any], student: float) -> dict[str, Any]:
    """The teacher's samples agree at 1% of positions, the student's at a given share."""
    for frontier, agreement in zip(saved["frontiers"], (0.01, student), strict=True):
        for point in frontier["points"]:
            point["diversity"] = {"agreement": [agreement, 0.001], "reverse_nats": [5.0, 0.01]}
    return saved


def test_samples_that_resemble_one_another_take_the_place_of_the_ratio() -> None:
    healthy, collapsed = with_agreement(results(3.88), 0.012), with_agreement(results(3.88), 0.75)
    (line_of_healthy,) = headline(healthy, frontiers_of(healthy))
    (line_of_collapsed,) = headline(collapsed, frontiers_of(collapsed))
    assert "times the perplexity" in line_of_healthy
    assert "collapsed" in line_of_collapsed
    assert "75%" in line_of_collapsed
    assert "times the perplexity" not in line_of_collapsed
    (found,) = diagnostics(collapsed, QUIET)
    assert found.startswith("MODE COLLAPSE")


def frontiers_of(saved: dict[str, Any]) -> list[Frontier]:
    return [Frontier.from_dict(each) for each in saved["frontiers"]]


@pytest.mark.parametrize(("entropy", "corpus_entropy"), [(3.0, 6.0), (3.9, 5.0)])
def test_a_lost_tenth_of_either_entropy_is_a_collapse(entropy: float, corpus_entropy: float) -> None:
    (found,) = diagnostics(results(entropy, corpus_entropy), QUIET)
    assert found.startswith("COLLAPSE")


def test_a_few_percent_ask_for_a_comparison_at_equal_entropy() -> None:
    (found,) = diagnostics(results(3.75), QUIET)
    assert "compare at equal entropy only" in found


def test_a_frontier_that_does_not_reach_the_text_is_named() -> None:
    (found,) = diagnostics(results(3.88, reach=3.6), QUIET)
    assert found.startswith("student, 8 steps: entropy 3.900 is outside")


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"student_skipped_updates": 3.0}, "3 updates of the student"),
        ({"discriminator_accuracy": 0.51}, "near chance"),
        ({"discriminator_accuracy": 0.99}, "nearly certain"),
        ({"entropy": 1.0}, "COLLAPSE"),
    ],
)
def test_training_signals_are_explained(last: dict[str, float], said: str) -> None:
    (found,) = diagnostics(results(3.88), [QUIET[0], {**QUIET[1], **last}])
    assert said in found


def test_a_student_from_elsewhere_is_said_to_be() -> None:
    (found,) = diagnostics(results(3.88), [])
    assert "no training metrics" in found


def test_figures_that_a_set_does_not_have_are_empty_cells() -> None:
    """A single sample has no standard error, and one of two tokens no 3-grams."""
    figures = {"entropy": 0.5, "corpus_entropy": 0.6, "distinct": {"1": 1.0, "2": 1.0}, "repetition": {"1": 0.0}}
    one = {"method": "teacher", "steps": 1, "network_evaluations": 1, "perplexity": 2.0, "standard_error": None}
    table = steps_table({"by_steps": [{**one, "diversity": figures}]})
    assert table.splitlines()[-1] == "| teacher | 1 | 1 | 2.0 |  | 0.500 | 0.600 | 1.000 |  |  |"


def test_a_teacher_that_says_one_thing_only_is_named() -> None:
    degenerate = results(3.9)
    degenerate["by_steps"][0]["diversity"]["entropy"] = 0.0
    assert any("teacher at 8 steps is 0" in found for found in diagnostics(degenerate, QUIET))


def test_steps_whose_samples_resemble_one_another_are_marked_and_older_files_have_no_marks() -> None:
    saved = results(3.88)
    for line, agreement in zip(saved["by_steps"], (0.011, 0.6), strict=True):
        line |= {"nats_per_token": 5.0, "standard_error": 0.1}
        line["between_samples"] = {"agreement": [agreement, 0.001]}
    assert [curve.less_diverse for curve in step_curves(saved)] == [(False,), (False,)]
    saved["data"]["between_samples"] = {"agreement": [0.01, 0.001]}
    assert [curve.less_diverse for curve in step_curves(saved)] == [(False,), (True,)]


def test_a_file_without_figures_between_samples_has_empty_cells() -> None:
    saved = results(3.88)
    saved["data"]["nats_per_token"] = 4.0
    table = frontier_table(saved, frontiers_of(saved)).splitlines()
    assert table[-1] == "| student, 8 steps | 148.4 |  |  |  | 3.500 to 4.200 |"


def test_the_table_in_the_terminal_fits_into_eighty_columns() -> None:
    saved = results(3.88)
    saved["data"] |= {"nats_per_token": 4.0, "between_samples": {"agreement": [0.0123, 0.0005]}}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(Markdown(summary_table(saved, frontiers_of(saved))))
    shown = console.export_text()
    assert "…" not in shown
    for cell in ("student, 8 steps", "148.4", "1.23% ± 0.05%"):
        assert cell in shown
