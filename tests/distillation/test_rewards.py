"""Advantages: the invariances that define them, unbiasedness by enumeration, and groups on several processes."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from discrete_distill import (
    BatchNormalizer,
    GroupNormalizer,
    LeaveOneOutNormalizer,
    LogRatioReward,
    RunningMean,
    group_advantages,
)
from discrete_distill.distributed.collectives import leave_processes

group_sizes = st.sampled_from([2, 3, 4])
baselines = st.sampled_from(["group", "leave_one_out", "batch"])
scales = st.sampled_from(["group", "batch"])


@st.composite
def batches(draw) -> tuple[Tensor, int]:
    """Rewards with spread, in a few groups."""
    size, groups = draw(group_sizes), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 10_000))
    rewards = torch.randn(size * groups, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rewards, size


@given(batches(), baselines, scales, st.floats(-50.0, 50.0), st.floats(0.1, 50.0))
def test_invariant_under_shift_and_positive_scale(batch, baseline, scale, shift, factor) -> None:
    rewards, size = batch
    choices = {"baseline": baseline, "scale": scale, "eps": 0.0}
    expected = group_advantages(rewards, size, **choices)
    torch.testing.assert_close(group_advantages(factor * rewards + shift, size, **choices), expected, atol=1e-7, rtol=0)


@given(batches(), baselines)
def test_without_scale_a_shift_is_removed_and_a_factor_kept(batch, baseline) -> None:
    rewards, size = batch
    expected = group_advantages(rewards, size, baseline=baseline, scale="none")
    actual = group_advantages(3.0 * rewards - 5.0, size, baseline=baseline, scale="none")
    torch.testing.assert_close(actual, 3.0 * expected)


@given(batches(), scales)
def test_mean_zero_in_each_group_or_in_the_batch(batch, scale) -> None:
    rewards, size = batch
    for baseline in ("group", "leave_one_out"):
        means = group_advantages(rewards, size, baseline=baseline, scale=scale).view(-1, size).mean(1)
        assert float(means.abs().max()) < 1e-10
    for over_batch in ("batch", "none"):
        assert float(group_advantages(rewards, size, baseline="batch", scale=over_batch).mean().abs()) < 1e-10


@given(batches(), baselines, st.sampled_from(["group", "batch", "none"]), st.integers(0, 100))
def test_permuting_a_group_or_the_groups_permutes_the_advantages(batch, baseline, scale, seed) -> None:
    rewards, size = batch
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(rewards)).view(-1, size)
    rows = rows[torch.randperm(len(rows), generator=generator)][:, torch.randperm(size, generator=generator)].flatten()
    choices = {"baseline": baseline, "scale": scale}
    expected = group_advantages(rewards, size, **choices)[rows]
    torch.testing.assert_close(group_advantages(rewards[rows], size, **choices), expected)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "batch"])
def test_a_constant_group_gets_zeros(scale, baseline) -> None:
    assert group_advantages(torch.full((8,), 2.5), 4, scale=scale, baseline=baseline).tolist() == [0.0] * 8


def test_values_by_hand() -> None:
    rewards = torch.tensor([1.0, 3.0, 10.0, 20.0])
    advantages = lambda **choices: group_advantages(rewards, 2, eps=0.0, **choices).tolist()  # noqa: E731
    assert advantages(scale="none", baseline="none") == [1.0, 3.0, 10.0, 20.0]
    assert advantages(scale="none", baseline="group") == [-1.0, 1.0, -5.0, 5.0]
    assert advantages(scale="none", baseline="leave_one_out") == [-2.0, 2.0, -10.0, 10.0]
    assert advantages(scale="none", baseline="batch") == [-7.5, -5.5, 1.5, 11.5]
    assert advantages(scale="group", baseline="group") == [-1.0, 1.0, -1.0, 1.0]
    assert advantages(scale="batch", baseline="group") == pytest.approx([v / 13**0.5 for v in (-1, 1, -5, 5)])
    assert advantages(scale="none", baseline="group", clip=2.0) == [-1.0, 1.0, -2.0, 2.0]


def test_eps_is_added_to_the_deviation() -> None:
    actual = group_advantages(torch.tensor([0.0, 2.0]), 2, eps=1.0)
    assert actual.tolist() == [-0.5, 0.5]


@given(batches())
def test_the_classes_are_the_function(batch) -> None:
    rewards, size = batch
    group = group_advantages(rewards, size, scale="group", baseline="group", clip=3.0)
    torch.testing.assert_close(GroupNormalizer(size)(rewards), group, rtol=0, atol=0)
    leave = group_advantages(rewards, size, scale="none", baseline="leave_one_out")
    torch.testing.assert_close(LeaveOneOutNormalizer(size)(rewards), leave, rtol=0, atol=0)
    whole = group_advantages(rewards, 1, scale="batch", baseline="batch", clip=3.0)
    torch.testing.assert_close(BatchNormalizer()(rewards), whole, rtol=0, atol=0)


def expected_score_gradient(baseline: str, group_size: int) -> Tensor:
    """``E[ sum_b A_b grad log p(x_b) ] / G`` of a three-word distribution, all groups enumerated."""
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    rewards_V = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    log_probs = logits.log_softmax(0)
    total = torch.zeros((), dtype=torch.float64)
    for group in torch.cartesian_prod(*[torch.arange(3)] * group_size).view(-1, group_size):
        advantages = group_advantages(rewards_V[group], group_size, baseline=baseline, scale="none")
        probability = log_probs[group].sum().exp().detach()
        total = total + probability * (advantages * log_probs[group]).mean()
    return torch.autograd.grad(total, logits)[0]


def true_score_gradient() -> Tensor:
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad((logits.softmax(0) * torch.tensor([1.0, -2.0, 4.0]).double()).sum(), logits)[0]


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks_by_one_over_its_size(group_size) -> None:
    truth = true_score_gradient()
    torch.testing.assert_close(expected_score_gradient("none", group_size), truth)
    torch.testing.assert_close(expected_score_gradient("leave_one_out", group_size), truth)
    shrunk = (1.0 - 1.0 / group_size) * truth
    torch.testing.assert_close(expected_score_gradient("group", group_size), shrunk)


def test_a_running_mean_is_of_the_batches_before() -> None:
    """Weights 1 - d, d (1 - d), ... over their sum; the batch itself is not among them."""
    baseline, batches = RunningMean(decay=0.5), torch.tensor([[1.0, 3.0], [5.0, 7.0], [0.0, 2.0]])
    expected = [0.0, 2.0, (2.0 * 0.25 + 6.0 * 0.5) / 0.75]
    for batch, value in zip(batches, expected, strict=True):
        advantages = group_advantages(batch, 1, scale="none", baseline=baseline)
        torch.testing.assert_close(advantages, batch - value)
    with pytest.raises(ValueError, match=r"decay.*1\.0"):
        RunningMean(decay=1.0)


def test_a_reward_is_minus_the_clipped_log_ratio() -> None:
    assert LogRatioReward()(torch.tensor([-20.0, 3.0])).tolist() == [20.0, -3.0]
    assert LogRatioReward(8.0)(torch.tensor([-20.0, 3.0, 9.0])).tolist() == [8.0, -3.0, -8.0]


def test_advantages_carry_no_gradient() -> None:
    assert not group_advantages(torch.zeros(4, requires_grad=True), 2).requires_grad


@pytest.mark.parametrize(
    ("rewards", "arguments", "message"),
    [
        (torch.zeros(4), {"group_size": 3}, r"group_size 3\b.*\b4\b"),
        (torch.zeros(4), {"group_size": 0}, r"group_size 0\b"),
        (torch.zeros(4, 1, 1), {"group_size": 2}, r"\(4, 1, 1\)"),
        (torch.zeros(4), {"group_size": 1, "baseline": "leave_one_out"}, r"leave_one_out.*\b1\b"),
        (torch.zeros(4), {"group_size": 2, "baseline": "median"}, "'median'"),
        (torch.zeros(4), {"group_size": 2, "scale": "range"}, "'range'"),
    ],
)
def test_bad_arguments_are_refused(rewards, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, **arguments)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_that_is_not_positive_is_refused(clip) -> None:
    with pytest.raises(ValueError, match=f"clip.*{clip}"):
        LogRatioReward(clip)


REWARDS = [1.0, 4.0, -2.0, 0.5, 9.0, 3.0]


def one_of_two_processes(rank: int, folder: str) -> None:
    """Four rewards on the first process, two on the second."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = torch.tensor(REWARDS[:4] if rank == 0 else REWARDS[4:])
    results = {
        f"{baseline} {scale}": group_advantages(mine, 2, baseline=baseline, scale=scale)
        for baseline in ("batch", "group")
        for scale in ("batch", "group", "none")
    }
    torch.save(results, f"{folder}/{rank}.pt")
    leave_processes()


def test_two_processes_have_the_statistics_of_the_whole_batch(tmp_path: Path) -> None:
    started = torch.multiprocessing.start_processes(
        one_of_two_processes, args=(str(tmp_path),), nprocs=2, join=False, start_method="spawn"
    )
    assert started is not None
    deadline = time.monotonic() + 600.0
    try:
        while not started.join(timeout=1.0):
            assert time.monotonic() < deadline, "two processes hang"
    finally:
        for process in started.processes:
            if process.is_alive():
                process.kill()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(parts[0]) == 6
    for name in parts[0]:
        baseline, scale = name.split()
        whole = group_advantages(torch.tensor(REWARDS), 2, baseline=baseline, scale=scale)
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole)


@given(
    st.floats(-1e4, 1e4, width=32),
    group_sizes,
    st.integers(1, 3),
    scales,
    baselines,
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_equal_rewards_have_advantages_of_exactly_zero(value, size, groups, scale, baseline, dtype) -> None:
    rewards = torch.full((size * groups,), value).to(dtype)
    for eps in (1e-4, 0.0):
        actual = group_advantages(rewards, size, scale=scale, baseline=baseline, eps=eps)
        assert actual.tolist() == [0.0] * (size * groups)
        assert actual.dtype == dtype


@given(batches(), baselines, st.sampled_from(["group", "batch", "none"]), st.integers(0, 100))
def test_rewards_that_do_not_count_change_nothing(batch, baseline, scale, seed) -> None:
    """Each group with some more members that do not count, whatever they are, and a group of such members alone."""
    rewards, size = batch
    generator = torch.Generator().manual_seed(seed)
    groups = len(rewards) // size
    strange = torch.tensor([float("nan"), 1e9, float("-inf"), 0.0], dtype=rewards.dtype)
    wide = strange[torch.randint(4, (groups + 1, size + 2), generator=generator)]
    counts = torch.zeros(wide.shape, dtype=torch.bool)
    for row, members in enumerate(rewards.view(-1, size)):
        places = torch.randperm(size + 2, generator=generator)[:size].sort().values
        wide[row, places], counts[row, places] = members, True
    choices = {"baseline": baseline, "scale": scale}
    actual = group_advantages(wide.flatten(), size + 2, loss_mask=counts.flatten(), **choices)
    torch.testing.assert_close(actual.view(counts.shape)[counts], group_advantages(rewards, size, **choices))
    assert bool((actual.view(counts.shape)[~counts] == 0.0).all())


@pytest.mark.parametrize(
    "choices",
    [
        {"eps": -1.0},
        {"eps": float("nan")},
        {"eps": float("inf")},
        {"clip": 0.0},
        {"clip": -1.0},
        {"clip": float("nan")},
        {"scale": "std"},
        {"baseline": "mean"},
    ],
)
def test_choices_out_of_range_are_refused_before_a_running_mean_moves(choices) -> None:
    running = RunningMean()
    with pytest.raises(ValueError, match=str(next(iter(choices.values())))):
        group_advantages(torch.tensor([1.0, 1.0]), 2, **{"baseline": running, **choices})
    assert running.batches == 0
    for normaliser in (GroupNormalizer, LeaveOneOutNormalizer):
        if set(choices) <= {"eps", "clip"}:
            with pytest.raises(ValueError, match=str(next(iter(choices.values())))):
                normaliser(2, **choices)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_not_finite_is_named(value) -> None:
    with pytest.raises(ValueError, match=f"sample 2 is {value}"):
        group_advantages(torch.tensor([1.0, 2.0, value, 4.0]), 2)


@pytest.mark.parametrize("rewards", [[1, 0, 3, 3], [True, False, True, True], [0.5, 1.5, 2.0, 2.0]])
def test_rewards_may_be_lists_integers_and_booleans(rewards) -> None:
    expected = group_advantages(torch.tensor(rewards, dtype=torch.float32), 2)
    for given_as in (rewards, torch.tensor(rewards)):
        actual = group_advantages(given_as, 2)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected)


def test_a_running_mean_skips_and_counts_what_is_not_finite_and_empty_batches() -> None:
    clean, spoilt = RunningMean(decay=0.5), RunningMean(decay=0.5)
    for batch in ([1.0, 3.0], [5.0]):
        clean.update(torch.tensor(batch))
    for batch in ([1.0, float("inf"), 3.0], [], [float("nan")], [5.0, float("-inf")]):
        spoilt.update(torch.tensor(batch))
    assert float(spoilt.value) == float(clean.value) == pytest.approx((0.25 * 2.0 + 0.5 * 5.0) / 0.75)
    assert (spoilt.batches, spoilt.skipped) == (2, 3)


def test_a_running_mean_goes_on_from_its_state() -> None:
    whole, first = RunningMean(decay=0.8), RunningMean(decay=0.8)
    parts = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    for part in parts:
        whole.update(part)
    for part in parts[:3]:
        first.update(part)
    second = RunningMean(decay=0.8)
    second.load_state_dict(first.state_dict())
    for part in parts[3:]:
        second.update(part)
    assert second.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match=r"0\.8"):
        RunningMean(decay=0.5).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    "kind", [list, np.array, lambda values: np.array(values, dtype=np.float16), lambda values: torch.tensor(values)]
)
def test_rewards_of_every_kind_are_numbers(kind) -> None:
    expected = group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]), 3)
    for values in ([1, 0, 0, 1, 1, 0], [True, False, False, True, True, False], [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]):
        found = group_advantages(kind(values), 3)
        torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=1e-3)
        assert found.is_floating_point()


@given(st.integers(0, 10_000), st.integers(1, 3), group_sizes, st.sampled_from(["group", "leave_one_out", "none"]))
def test_several_rewards_are_summed_before_or_after_they_are_normalised(seed, count, size, baseline) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(2 * size, count, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(count)
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    choices = {"baseline": baseline, "loss_mask": torch.rand(2 * size, generator=generator) < 0.8}
    before = group_advantages(rewards, size, reward_weights=weights, clip=1.5, **choices)
    torch.testing.assert_close(before, group_advantages(rewards @ weights, size, clip=1.5, **choices))
    after = group_advantages(rewards, size, reward_weights=weights, aggregation="normalize_then_sum", **choices)
    each = [group_advantages(rewards[:, r], size, **choices) for r in range(count)]
    torch.testing.assert_close(after, sum(w * advantage for w, advantage in zip(weights, each, strict=True)))


def test_a_reward_of_greater_spread_counts_for_more_only_where_rewards_are_summed_first() -> None:
    rewards = torch.tensor([[0.0, 100.0], [1.0, 0.0], [0.0, 100.0], [1.0, 0.0]], dtype=torch.float64)
    assert group_advantages(rewards, 2, eps=0.0).tolist() == [1.0, -1.0, 1.0, -1.0]
    after = group_advantages(rewards, 2, eps=0.0, aggregation="normalize_then_sum")
    assert after.tolist() == [0.0] * 4


def test_the_factor_to_the_unbiased_deviation_is_the_one_that_is_documented() -> None:
    rewards = torch.randn(4, dtype=torch.float64)
    unbiased = (rewards - rewards.mean()) / rewards.std()
    torch.testing.assert_close(group_advantages(rewards, 4, eps=0.0), unbiased * (4 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("rewards", "named"),
    [
        ([0.0, 1.0, float("nan"), 1.0], "the reward of sample 2 is nan"),
        ([[0.0, 1.0], [1.0, float("inf")]], "reward 1 of sample 1 is inf"),
        (np.array([[0.0], [float("nan")]]), "reward 0 of sample 1 is nan"),
    ],
)
def test_a_reward_that_is_not_finite_is_named_among_several(rewards, named) -> None:
    with pytest.raises(ValueError, match=named):
        group_advantages(rewards, 2)
    mask = torch.tensor(np.isfinite(np.array(rewards)).reshape(len(rewards), -1).all(1))
    assert bool(group_advantages(rewards, 2, loss_mask=mask).isfinite().all())


@pytest.mark.parametrize("rewards", ["ab", [None, 1.0], [[1.0], [1.0, 2.0]], object(), [object()] * 2])
def test_rewards_that_are_no_numbers_are_refused(rewards) -> None:
    with pytest.raises(TypeError, match="rewards"):
        group_advantages(rewards, 2)


def test_choices_for_several_rewards_that_mean_nothing_are_refused() -> None:
    rewards = [[0.0, 1.0], [1.0, 2.0]]
    for choices, value in (
        ({"reward_weights": [1.0]}, "1"),
        ({"reward_weights": [1.0, float("nan")]}, "nan"),
        ({"aggregation": "sum"}, "sum"),
        ({"aggregation": "normalize_then_sum", "baseline": RunningMean()}, "RunningMean"),
    ):
        with pytest.raises(ValueError, match=value):
            group_advantages(rewards, 2, **choices)
    for shape in ((), (2, 0), (2, 1, 1)):
        with pytest.raises(ValueError, match="shape"):
            group_advantages(torch.zeros(shape), 2)
