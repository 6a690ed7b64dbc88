"""The configurations: the paper's, the recommended one, changes at any depth, and what is refused."""

from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest

from discrete_distill import DiDiInstructConfig
from discrete_distill.distillation.methods import (
    Advantages,
    AuxiliaryRatio,
    CorruptionByCount,
    CorruptionByParts,
    CorruptionByTime,
    DataKL,
    DiscriminatorRatio,
    ElboTimeWeight,
    PathKL,
    PathRatio,
    Paths,
    Regularization,
    SequenceCredit,
    TokenCredit,
    VocabularyCredit,
    with_changes,
)
from discrete_distill.process import BetaTime

RECOMMENDED = DiDiInstructConfig.recommended()


def test_the_defaults_are_the_papers_settings() -> None:
    assert DiDiInstructConfig() == DiDiInstructConfig.paper()
    assert asdict(DiDiInstructConfig()) == {
        "paths": {
            "num_steps": (2,),
            "time_distribution": {"low": 0.02, "high": 0.98, "a": 1.0, "b": 1.0},
            "gradient_steps": None,
            "branching": False,
            "order": "random",
            "step_conditioning": False,
        },
        "advantages": {"group_size": 4, "baseline": "group", "scale": "group", "clip": 3.0},
        "reference": "data",
        "log_ratio": {"label_smoothing": 0.1, "reuse_logits": False, "warmup": 0},
        "credit": {
            "corruption": {
                "num_draws": 1,
                "time_distribution": None,  # the time of the path
                "time_weight": {"low": 0.1, "high": 10.0},
                "importance_weight": False,
            }
        },
        "regularization": {
            "path_kl": {"coefficient": 0.02, "kind": "jeffreys", "beta": 0.5},
            "data_kl": {"coefficient": 0.0, "diversity_tolerance": None},
            "entropy_coefficient": 5e-4,
        },
        "reward_clip": 8.0,
    }


def test_the_recommended_settings() -> None:
    told = Paths(num_steps=(4, 8), time_distribution=None, step_conditioning=True)
    assert (
        DiDiInstructConfig(
            paths=told,
            advantages=Advantages(group_size=16, baseline="leave_one_out", scale="batch", clip=3.0),
            log_ratio=AuxiliaryRatio(updates=4, warmup=10, step_conditioning=True),
            credit=TokenCredit(window=6, corruption=CorruptionByCount(num_draws=4)),
            regularization=Regularization(data_kl=DataKL(coefficient=1.0, diversity_tolerance=0.05)),
            reward_clip=float("inf"),
        )
        == RECOMMENDED
    )


def test_a_mapping_changes_fields_of_a_part_at_any_depth_and_an_instance_takes_its_place() -> None:
    changed = DiDiInstructConfig.recommended(
        paths={"num_steps": (4,)}, credit={"window": 0, "corruption": {"num_draws": 2}}, reference="teacher"
    )
    assert changed == replace(
        RECOMMENDED,
        paths=replace(RECOMMENDED.paths, num_steps=(4,)),
        credit=TokenCredit(window=0, corruption=CorruptionByCount(num_draws=2)),
        reference="teacher",
    )
    assert with_changes(changed, credit=VocabularyCredit()).credit == VocabularyCredit(mask_ratio=0.5)
    assert with_changes(changed) == changed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"path": {"num_steps": (4,)}}, "DiDiInstructConfig has no field 'path'"),
        ({"paths": {"steps": (4,)}}, "Paths has no field 'steps'"),
        ({"credit": {"corruption": {"importance_weight": True}}}, "CorruptionByCount has no field"),
        ({"paths": {"time_distribution": {"low": 0.1}}}, "time_distribution of Paths is None"),
        ({"reward_clip": {"low": 1.0}}, "reward_clip of DiDiInstructConfig is inf"),
    ],
)
def test_changes_of_what_is_not_there_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(TypeError, match=named):
        DiDiInstructConfig.recommended(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"log_ratio": DiscriminatorRatio(), "credit": VocabularyCredit()}, "DiscriminatorRatio"),
        ({"log_ratio": PathRatio()}, "TokenCredit"),
        ({"log_ratio": DiscriminatorRatio()}, "CorruptionByCount"),
        ({"log_ratio": DiscriminatorRatio(), "credit": SequenceCredit(corruption=CorruptionByParts())}, "ByParts"),
        ({"credit": SequenceCredit(corruption=CorruptionByTime())}, "time_distribution = None"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DiDiInstructConfig.recommended(**changes)


@pytest.mark.parametrize(
    ("part", "choices", "value"),
    [
        (DiDiInstructConfig, {"reward_clip": -8.0}, "-8.0"),
        (DiDiInstructConfig, {"reference": "web"}, "'web'"),
        (Paths, {"num_steps": ()}, r"\(\)"),
        (Paths, {"num_steps": (2, 0)}, "0"),
        (Paths, {"gradient_steps": 0}, "0"),
        (Advantages, {"group_size": 0}, "0"),
        (Advantages, {"scale": "range"}, "'range'"),
        (Advantages, {"baseline": "median"}, "'median'"),
        (Advantages, {"clip": 0.0}, "0.0"),
        (Advantages, {"clip": float("nan")}, "nan"),
        (DiscriminatorRatio, {"label_smoothing": 1.0}, "1.0"),
        (DiscriminatorRatio, {"warmup": -1}, "-1"),
        (AuxiliaryRatio, {"updates": 0}, "0"),
        (AuxiliaryRatio, {"warmup": -1}, "-1"),
        (TokenCredit, {"window": -1}, "-1"),
        (VocabularyCredit, {"mask_ratio": 0.0}, "0.0"),
        (CorruptionByTime, {"num_draws": 0}, "0"),
        (CorruptionByCount, {"num_draws": 0}, "0"),
        (CorruptionByParts, {"num_parts": 0}, "0"),
        (ElboTimeWeight, {"low": -0.1}, "-0.1"),
        (ElboTimeWeight, {"low": 3.0, "high": 2.0}, "2.0"),
        (PathKL, {"coefficient": -0.1}, "-0.1"),
        (PathKL, {"coefficient": float("nan")}, "nan"),
        (PathKL, {"kind": "sideways"}, "'sideways'"),
        (PathKL, {"beta": 1.5}, "1.5"),
        (DataKL, {"coefficient": -1.0}, "-1.0"),
        (DataKL, {"coefficient": 1.0, "diversity_tolerance": 0.0}, "0.0"),
        (Regularization, {"entropy_coefficient": float("inf")}, "inf"),
    ],
)
def test_values_out_of_range_are_refused(part: Any, choices: dict[str, Any], value: str) -> None:
    with pytest.raises(ValueError, match=value):
        part(**choices)


@pytest.mark.parametrize(
    ("part", "choices", "value"),
    [
        (DiDiInstructConfig, {"credit": "token"}, "'token'"),
        (DiDiInstructConfig, {"log_ratio": TokenCredit()}, "TokenCredit"),
        (DiDiInstructConfig, {"paths": {"num_steps": (2,)}}, "num_steps"),
        (SequenceCredit, {"corruption": "time"}, "'time'"),
        (Paths, {"branching": "no"}, "'no'"),
        (Paths, {"time_distribution": "uniform"}, "'uniform'"),
        (CorruptionByTime, {"time_weight": 1.0}, "1.0"),
        (Paths, {"num_steps": (1.5,)}, "1.5"),
        (Advantages, {"group_size": 1.5}, "1.5"),
        (AuxiliaryRatio, {"updates": 1.5}, "1.5"),
        (AuxiliaryRatio, {"warmup": 1.5}, "1.5"),
        (TokenCredit, {"window": 1.5}, "1.5"),
        (CorruptionByCount, {"num_draws": 1.5}, "1.5"),
    ],
)
def test_values_of_another_type_are_refused(part: Any, choices: dict[str, Any], value: str) -> None:
    with pytest.raises(TypeError, match=value):
        part(**choices)


def test_settings_are_named_and_stay_as_they_were_checked() -> None:
    with pytest.raises(TypeError):
        DiDiInstructConfig(True)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        RECOMMENDED.reward_clip = -1.0  # type: ignore[misc]


@pytest.mark.parametrize("own", [None, BetaTime(0.3, 0.6, a=2.0, b=2.0)])
def test_times_of_corruption_are_those_of_the_paths_unless_they_have_a_distribution(own: BetaTime | None) -> None:
    corruption, paths = CorruptionByTime(time_distribution=own), Paths()
    assert corruption.coupled == (own is None)
    assert corruption.distribution(paths) == (own or paths.time_distribution)


@pytest.mark.parametrize(
    ("data_kl", "warmup", "first"),
    [
        (DataKL(), 3, None),
        (DataKL(coefficient=1.0), 3, None),
        (DataKL(coefficient=0.0, diversity_tolerance=0.1), 3, None),
        (DataKL(coefficient=0.5, diversity_tolerance=0.1), 3, 3),
        (DataKL(coefficient=0.5, diversity_tolerance=0.1), 0, 1),
    ],
)
def test_a_control_of_diversity_belongs_to_a_kl_in_states_of_data(data_kl: DataKL, warmup: int, first: Any) -> None:
    control = data_kl.control(warmup)
    assert (None if control is None else control.first) == first
