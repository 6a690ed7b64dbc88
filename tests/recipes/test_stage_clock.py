"""Expected times of stages: what is left after the current one follows its speed."""

import io

import pytest

from discrete_distill.recipes.common.evaluation import EvaluateConfig
from discrete_distill.recipes.common.stage_clock import StageClock, about


def test_later_stages_are_scaled_by_the_speed_of_the_current_one():
    clock = StageClock({"distil": 300.0, "evaluate": 120.0, "report": 30.0})
    with clock.stage("distil"):
        assert clock.later(300.0) == 150.0
        assert clock.later(600.0) == 300.0
    with clock.stage("evaluate"):
        assert clock.later(60.0) == 15.0
    with clock.stage("report"):
        assert clock.later(60.0) == 0.0


def test_the_bar_adds_the_later_stages_to_its_own_time():
    clock = StageClock({"distil": 100.0, "evaluate": 50.0})
    with clock.stage("distil"), clock.bar(total=10, initial=2, file=io.StringIO()) as bar:
        bar.n = 6
        bar.start_t = bar._time() - 40.0  # 10 s a step: 40 left of an expected 80, and half as much again later
        shown = bar.format_dict
    assert shown["all_left"] == bar.format_interval(40.0 + 40.0)


def test_a_stage_that_was_not_estimated_has_a_plain_bar():
    with StageClock().stage("distil") as _, StageClock().bar(total=3, file=io.StringIO()) as bar:
        bar.update(3)
        assert "all_left" not in bar.format_dict


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.0, "seconds"), (75.0, "minute"), (300.0, "5 min"), (7200.0, "2.0 h")]
)
def test_times_in_words(seconds, words):
    assert words in about(seconds)


def test_evaluations_of_an_evaluation_are_those_of_its_samples():
    config = EvaluateConfig(
        num_samples=4,
        seeds=(0, 1),
        steps=(2, 8),
        guided_steps=(8,),
        frontier_steps=8,
        teacher_frontier_steps=(16,),
        teacher_temperatures=(0.9, 1.0),
        student_temperatures=(1.0,),
        num_candidates=3,
    )
    # Teacher: 2 + 8 + 8 at 0.9 + 16 twice; student: 2 + 8, its frontier is among them.
    assert config.network_evaluations() == 8 * (50 + 10)
    assert config.network_evaluations(frontiers=False) == 8 * (10 + 10)
    assert config.network_evaluations(guided=True) == 8 * (60 + 4 * 8)


def test_steps_of_the_teacher_that_are_named_twice_are_measured_once():
    config = EvaluateConfig(frontier_steps=8, teacher_frontier_steps=(8, 32))
    assert config.teacher_steps == (8, 32)
    assert config.network_evaluations() == EvaluateConfig(teacher_frontier_steps=(32,)).network_evaluations()
