"""The weight that follows the agreement of two samples."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discrete_distill import DiDiInstruct, DiDiInstructConfig
from discrete_distill.distillation.methods.diversity_control import DiversityControl
from discrete_distill.distillation.methods.path_metrics import reference_agreement
from tests.distillation.methods.chain_networks import LENGTH, seeded, small_method

CONFIG = DiDiInstructConfig.recommended(path_steps=(2,), group_size=4, log_ratio_warmup=2, data_kl_coefficient=0.5)
AGREEMENTS = st.floats(0.001, 0.99)


def after(values: list[float], **choices: float) -> DiversityControl:
    control = DiversityControl(**choices)  # type: ignore[arg-type]
    for value in values:
        control.add(torch.tensor(value, dtype=torch.float64), num_steps=2)
    return control


@given(st.lists(AGREEMENTS, min_size=1, max_size=20), st.integers(1, 5), st.floats(0.01, 2.0))
def test_the_weight_is_a_share_and_rises_with_agreement(values: list[float], first: int, tolerance: float) -> None:
    choices = {"first": first, "tolerance": tolerance}
    control = after(values, **choices)
    assert 0.0 <= control.weight <= 1.0
    if len(values) > first:
        lower = after([*values[:-1], values[-1] * 0.9], **choices)
        assert lower.weight <= control.weight


@given(st.lists(AGREEMENTS, min_size=1, max_size=20), st.floats(0.0, 0.9))
def test_equal_rollouts_have_no_weight_and_lower_agreement_none_either(values: list[float], decay: float) -> None:
    assert after([0.3] * 12, decay=decay).weight == pytest.approx(0.0, abs=1e-9)
    assert after([max(values), *values], first=1, decay=decay).weight == pytest.approx(0.0, abs=1e-9)


def test_the_tolerance_is_where_the_weight_is_full() -> None:
    """Odds of 0.25 before, of 0.25 * 1.04 and 0.25 * 1.08 now."""
    for factor, weight in ((1.04, 0.5), (1.08, 1.0), (3.0, 1.0)):
        odds = 0.25 * factor
        values = [0.2, odds / (1.0 + odds)]
        assert after(values, first=1, decay=0.0, tolerance=0.08).weight == pytest.approx(weight)


@given(st.lists(st.sampled_from([2, 8]), min_size=1, max_size=30), st.floats(0.0, 0.9))
def test_fewer_steps_agree_more_often_without_a_weight(steps: list[int], decay: float) -> None:
    """A student whose paths of each length agree as before has no weight, whichever lengths are drawn."""
    control = DiversityControl(first=4, decay=decay)
    for num_steps in (2, 8, 8, 8, *steps):
        control.add(torch.tensor(0.3 if num_steps == 2 else 0.2, dtype=torch.float64), num_steps=num_steps)
        assert control.weight == pytest.approx(0.0, abs=1e-9)


def test_long_paths_are_held_to_the_level_of_long_paths() -> None:
    """Agreement of 0.24 is little for two steps and too much for eight, although the mean of both is 0.25."""
    for num_steps, weight in ((2, 0.0), (8, 1.0)):
        control = DiversityControl(first=2, decay=0.0)
        for value, steps in ((0.3, 2), (0.2, 8), (0.24, num_steps)):
            control.add(torch.tensor(value), num_steps=steps)
        assert control.weight == weight


def test_a_number_of_steps_that_was_not_seen_before_is_held_to_the_mean() -> None:
    control = DiversityControl(first=2, decay=0.0, tolerance=0.05)
    for value, steps in ((0.3, 2), (0.2, 8), (0.25, 4)):
        control.add(torch.tensor(value, dtype=torch.float64), num_steps=steps)
    assert control.weight == pytest.approx(0.0, abs=1e-9)


def test_noise_alone_has_little_weight_and_an_excess_has_more() -> None:
    """Rollouts that vary by 17%, as 24 texts do: the mean weight of a student that does not change, and of one whose
    samples agree 40% more often."""
    generator = seeded(0)
    weights: dict[float, list[float]] = {1.0: [], 1.4: []}
    for factor, found in weights.items():
        for _ in range(200):
            control = DiversityControl(first=10)
            for rollout in range(40):
                noise = 1.0 + 0.17 * torch.randn((), generator=generator, dtype=torch.float64)
                control.add(0.007 * noise.clamp(min=0.0) * (factor if rollout >= 10 else 1.0), num_steps=4)
            found.append(control.weight)
    assert sum(weights[1.0]) / 200 < 0.2
    assert sum(weights[1.4]) / 200 > 0.9


def test_the_standard_error_is_that_of_the_first_rollouts() -> None:
    """The weight of an average at the bound of one standard error is 0, and rises beyond it."""
    first = {2: [0.20, 0.24, 0.22], 8: [0.10, 0.14]}
    variance = (0.0008 + 0.0008) / 3  # of 0.22 +- 0.02 and 0.12 +- 0.02, three degrees of freedom
    error = (variance * (1.0 + 1.0 / 5)) ** 0.5
    for beyond, positive in ((-1e-6, False), (1e-3, True)):
        control = DiversityControl(first=5, decay=0.0)
        for steps, values in first.items():
            for value in values:
                control.add(torch.tensor(value, dtype=torch.float64), num_steps=steps)
        control.add(torch.tensor(0.22 + error + beyond, dtype=torch.float64), num_steps=2)
        assert (control.weight > 0.0) is positive


def test_samples_that_agree_everywhere_have_the_full_weight() -> None:
    assert after([0.2, 1.0], first=1, decay=0.0).weight == 1.0
    assert after([0.0, 0.1], first=1, decay=0.0).weight == 1.0
    assert DiversityControl().weight == 1.0


@given(st.lists(AGREEMENTS, min_size=0, max_size=12), st.lists(AGREEMENTS, min_size=1, max_size=5))
def test_a_control_goes_on_from_its_state(before: list[float], later: list[float]) -> None:
    whole, restored = after(before + later, first=3), DiversityControl(first=3)
    restored.load_state_dict(after(before, first=3).state_dict())
    for value in later:
        restored.add(torch.tensor(value, dtype=torch.float64), num_steps=2)
    assert restored.weight == whole.weight
    assert restored.state_dict() == whole.state_dict()


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"decay": 1.0}, {"first": 0}])
def test_what_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DiversityControl(**wrong)  # type: ignore[arg-type]


def test_a_student_may_be_as_alike_as_the_data() -> None:
    """Agreement of 0.3 after 0.2: too much beside data of 0.1, nothing beside data of 0.3."""
    for data, weight in ((0.1, 1.0), (0.3, 0.0), (float("nan"), 1.0)):
        control = DiversityControl(first=1, decay=0.0)
        control.add(torch.tensor(0.2), num_steps=2)
        control.add_reference(torch.tensor(data))
        control.add(torch.tensor(0.3), num_steps=2)
        assert control.weight == weight


def test_the_parts_of_a_batch_share_one_weight() -> None:
    """References of one part do not change the weight of the next; they count from the next rollout on."""
    control = DiversityControl(first=1, decay=0.0)
    control.add(torch.tensor(0.2), num_steps=2)
    control.add(torch.tensor(0.3), num_steps=2)
    control.add_reference(torch.tensor(0.3))
    assert control.weight == 1.0
    control.add(torch.tensor(0.3), num_steps=2)
    assert control.weight == 0.0


def test_batches_of_data_are_averaged() -> None:
    control = DiversityControl(first=1, decay=0.0)
    for value in (0.1, float("nan"), 0.5):
        control.add_reference(torch.tensor(value))
    control.add(torch.tensor(0.01), num_steps=2)
    control.add(torch.tensor(0.301), num_steps=2)
    assert 0.0 < control.weight < 0.2


@pytest.mark.parametrize("rows", [1, 2, 7, 70])
def test_agreement_of_reference_sequences_is_that_of_all_pairs(rows: int) -> None:
    made = small_method(replace(CONFIG, group_size=1))
    rollout = made.rollout(rows, LENGTH, generator=seeded(3))
    reference = torch.randint(5, (rows, LENGTH), generator=seeded(2))
    found = float(reference_agreement(rollout, reference))
    if rows == 1:
        assert found != found
        return
    first = reference[:64]
    pairs = [(first[i] == first[j]).float().mean() for i in range(len(first)) for j in range(i)]
    assert found == pytest.approx(float(torch.stack(pairs).mean()))


def test_reference_sequences_of_prompts_are_not_compared() -> None:
    made = small_method(CONFIG)
    x_init = torch.full((8, LENGTH), 5)
    x_init[:, 0] = 1
    rollout = made.rollout(x_init=x_init, generator=seeded(3))
    assert reference_agreement(rollout, torch.ones(8, LENGTH, dtype=torch.long)).isnan()


def collapse(made: DiDiInstruct) -> None:
    """A student that writes one token everywhere."""
    with torch.no_grad():
        made.student.output_layer.linear.weight.zero_()
        made.student.output_layer.linear.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0, 0.0]))


def loss_of(made: DiDiInstruct) -> dict[str, torch.Tensor]:
    reference = torch.randint(5, (8, LENGTH), generator=seeded(2))
    rollout = made.rollout(8, LENGTH, generator=seeded(3))
    return made.student_loss(rollout, reference=reference, generator=seeded(4)).metrics


def test_a_healthy_student_is_let_alone_and_a_collapsed_one_held() -> None:
    made = small_method(CONFIG)
    for _ in range(2):
        made.rollout(8, LENGTH, generator=seeded(3))
    healthy = loss_of(made)
    assert float(healthy["data_kl_weight"]) == 0.0
    assert "data_divergence" not in healthy
    collapse(made)
    held = [loss_of(made) for _ in range(4)][-1]
    assert float(held["data_kl_weight"]) == 0.5
    assert float(held["data_divergence"]) > 0.1


def test_a_path_that_is_walked_again_is_not_counted_twice() -> None:
    made = small_method(CONFIG)
    rollout = made.rollout(8, LENGTH, generator=seeded(3))
    before = made.state_dict()
    made.rollout(8, LENGTH, generator=seeded(3), tokens=rollout.sequences)
    assert made.state_dict() == before


def test_the_methods_state_has_it() -> None:
    made, other = small_method(CONFIG), small_method(CONFIG)
    for _ in range(3):
        made.rollout(8, LENGTH, generator=seeded(3))
    other.load_state_dict(made.state_dict())
    assert other.state_dict() == made.state_dict()
    uncontrolled = small_method(replace(CONFIG, diversity_tolerance=None))
    with pytest.raises(ValueError, match="diversity_tolerance"):
        uncontrolled.load_state_dict(made.state_dict())
    with pytest.raises(ValueError, match="diversity_tolerance"):
        made.load_state_dict(uncontrolled.state_dict())
