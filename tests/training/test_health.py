"""Signs of trouble: what is told, and that a healthy run is left alone."""

import pytest

from discrete_distill.training import explain

HEALTHY = {"step": 1.0, "entropy": 4.0, "discriminator_accuracy": 0.7, "clipped_advantages": 0.02, "log_ratio_std": 1.0}


def test_a_healthy_run_and_an_empty_one_are_left_alone() -> None:
    assert explain([HEALTHY, HEALTHY]) == {}
    assert explain([]) == {}


@pytest.mark.parametrize(
    ("last", "sign", "said"),
    [
        ({"auxiliary_skipped_updates": 2.0}, "auxiliary_skipped_updates", "2 updates of the auxiliary"),
        ({"entropy": 1.9}, "entropy", "from 4.00 to 1.90"),
        ({"discriminator_accuracy": 0.54}, "discriminator", "near chance"),
        ({"discriminator_accuracy": 0.99}, "discriminator", "nearly certain"),
        ({"clipped_rewards": 0.3}, "clipped_rewards", "30% of the raw log-ratios are clipped"),
        ({"clipped_advantages": 0.26}, "clipped_advantages", "26% of the advantages are clipped"),
        ({"log_ratio_std": 0.0}, "log_ratio_std", "nothing to prefer"),
    ],
)
def test_each_sign_is_named_and_explained(last: dict[str, float], sign: str, said: str) -> None:
    found = explain([HEALTHY, {**HEALTHY, **last}])
    assert list(found) == [sign]
    assert said in found[sign]


@pytest.mark.parametrize("last", [{"entropy": 2.0}, {"discriminator_accuracy": 0.55}, {"clipped_rewards": 0.25}])
def test_what_is_just_within_bounds_is_not_told(last: dict[str, float]) -> None:
    assert explain([HEALTHY, {**HEALTHY, **last}]) == {}
