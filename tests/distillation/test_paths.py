"""Student paths: their distribution, their log-probability, where gradients flow, and what is hidden again."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from discrete_distill import BetaTime, IntermediateStateMatcher, UniformTime, exact, group_advantages
from discrete_distill.distillation.path_plan import true_places
from discrete_distill.distillation.remasked_state import remask
from discrete_distill.distillation.rollout import Rollout
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import CosineSchedule, LogLinearSchedule, MaskedDiffusion, PolynomialSchedule

MASK = 3
PROCESS = MaskedDiffusion(MASK)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TimedTable(torch.nn.Module):
    """Free logits for every state, bent by the time and the end of the step; counts rows and calls."""

    accepts_step = True

    def __init__(self, length: int, seed: int = 0) -> None:
        super().__init__()
        start = 0.5 * torch.randn(4**length, length, 4, dtype=torch.float64, generator=seeded(seed))
        self.table = torch.nn.Parameter(start)
        self.places = 4 ** torch.arange(length - 1, -1, -1)
        self.asked: list[Tensor] = []

    def forward(self, x_t, t, *, s, **model_kwargs):
        self.asked.append(x_t)
        return self.table[(x_t * self.places).sum(1)] * (1.0 + t + 2.0 * s)[:, None, None].double()


def brute_force_log_prob(student: TimedTable, rollout: Rollout) -> Tensor:
    """Position by position, from the states alone."""
    total = torch.zeros(len(rollout.sequences), dtype=torch.float64)
    for step in rollout.steps:
        log_probs = PROCESS.masked_log_probs(student(step.x_t, step.t, s=step.s))
        for row, position in itertools.product(range(len(total)), range(step.x_t.shape[1])):
            if step.x_t[row, position] == MASK != step.x_s[row, position]:
                total[row] = total[row] + log_probs[row, position, step.x_s[row, position]].detach()
    return total


@pytest.mark.parametrize("positions", ["revealed", "masked"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_log_prob_is_the_sum_over_steps_of_what_each_revealed(steps, positions) -> None:
    student = TimedTable(4)
    matcher = IntermediateStateMatcher(
        PROCESS, num_steps=(steps,), time_distribution=UniformTime(), times_per="sample", positions=positions
    )
    rollout = matcher(student, (12, 4), generator=seeded(0))
    torch.testing.assert_close(rollout.log_prob().detach(), brute_force_log_prob(student, rollout))
    assert rollout.token_log_probs().shape == (12, 4)
    torch.testing.assert_close(rollout.token_log_probs().sum(1), rollout.log_prob())
    assert bool((rollout.sequences != MASK).all())
    assert bool((rollout.token_log_probs() < 0).all())


@pytest.mark.parametrize(
    "choices", [{}, {"time_distribution": UniformTime(), "times_per": "sample"}, {"branching": True}], ids=str
)
@pytest.mark.parametrize("positions", ["revealed", "masked"])
def test_the_positions_planned_for_a_step_are_those_that_its_states_show(positions, choices) -> None:
    """Positions of all steps are found before the first: unmasking draws do not depend on tokens."""
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(4,), positions=positions, **choices)
    x_init = torch.full((6, 4), MASK)
    x_init[:, 1] = 2
    for prompt in ({"shape": (6, 4)}, {"x_init": x_init}):
        rollout = matcher(TimedTable(4), generator=seeded(5), group_size=3, **prompt)
        for step in rollout.steps:
            masked = step.x_t.flatten() == MASK
            revealed = masked & (step.x_s.flatten() != MASK)
            assert torch.equal(step.positions, (masked if positions == "masked" else revealed).nonzero()[:, 0])
            assert torch.equal(step.revealed_positions(), revealed.nonzero()[:, 0])
            assert torch.equal(step.positions[step.revealed], step.revealed_positions())
            assert step.has_all_masked == (positions == "masked")


@given(st.lists(st.booleans(), max_size=40))
def test_places_of_flags_whose_number_is_known(flags) -> None:
    tensor = torch.tensor(flags, dtype=torch.bool)
    assert torch.equal(true_places(tensor, sum(flags)), tensor.nonzero()[:, 0])


def test_every_position_is_revealed_once_and_stays() -> None:
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(5,), positions="masked")
    rollout = matcher(TimedTable(4), (32, 4), generator=seeded(1))
    revealed = torch.zeros(32, 4, dtype=torch.long)
    for step in rollout.steps:
        places = step.positions[step.revealed]
        revealed.view(-1)[places] += 1
        assert bool((step.x_t.flatten()[step.positions] == MASK).all())
        assert len(step.positions) == int((step.x_t == MASK).sum())
        assert bool((step.x_s[step.x_t != MASK] == step.x_t[step.x_t != MASK]).all())
        assert bool(((step.x_t == MASK) & (step.x_s != MASK)).flatten()[places].all())
    assert bool((revealed == 1).all())
    for earlier, later in itertools.pairwise(rollout.steps):
        assert bool((earlier.x_s == later.x_t).all())


@pytest.mark.parametrize("positions", ["revealed", "masked"])
def test_a_gradient_flows_only_from_positions_revealed_in_that_step(positions) -> None:
    student = TimedTable(3)
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(3,), positions=positions)
    rollout = matcher(student, (1, 3), generator=seeded(4))
    rollout.log_prob().sum().backward()
    assert student.table.grad is not None
    expected = torch.zeros_like(student.table, dtype=torch.bool)
    for step in rollout.steps:
        state = int((step.x_t * student.places).sum())
        expected[state, :, :MASK] |= ((step.x_t == MASK) & (step.x_s != MASK))[0, :, None]
    assert bool(((student.table.grad != 0) == expected).all())
    assert 0 < int(expected.sum()) == 9


def test_nothing_is_differentiated_without_gradients() -> None:
    with torch.no_grad():
        rollout = IntermediateStateMatcher(PROCESS)(TimedTable(3), (4, 3), generator=seeded(0))
    assert not rollout.log_prob().requires_grad


def test_the_first_state_is_evaluated_once_as_one_row_and_each_later_state_once() -> None:
    student = TimedTable(6)
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(3,))
    rollout = matcher(student, (8, 6), generator=seeded(0))
    changed = [int((step.x_t != step.x_s).any(1).sum()) for step in rollout.steps]
    assert [len(asked) for asked in student.asked] == [1, *changed[1:]]
    assert min(changed[1:]) > 3
    assert student.asked[0].tolist() == [[MASK] * 6]
    rollout.log_prob().sum().backward()
    assert len(student.asked) == 3


def test_the_shared_row_has_the_gradient_of_all_rows() -> None:
    student = TimedTable(3)
    rollout = IntermediateStateMatcher(PROCESS, num_steps=(1,))(student, (64, 3), generator=seeded(0))
    rollout.log_prob().sum().backward()
    actual, student.table.grad = student.table.grad, None
    start = torch.full((64, 3), MASK)
    log_probs = PROCESS.masked_log_probs(student(start, torch.ones(64), s=torch.zeros(64)))
    log_probs.gather(2, rollout.sequences[..., None]).sum().backward()
    torch.testing.assert_close(actual, student.table.grad)


def test_rows_in_different_first_steps_are_not_taken_for_one() -> None:
    student = TimedTable(3)
    matcher = IntermediateStateMatcher(
        PROCESS, num_steps=(2,), time_distribution=UniformTime(), times_per="sample", positions="masked"
    )
    rollout = matcher(student, (8, 3), generator=seeded(0))
    assert len(student.asked[0]) == 8
    torch.testing.assert_close(rollout.log_prob().detach(), brute_force_log_prob(student, rollout))


@settings(max_examples=20)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(2, 5), st.integers(0, 999))
def test_intermediate_times_are_shared_as_asked_and_descend(group_size, groups, steps, seed) -> None:
    distribution, batch = BetaTime(0.02, 0.98), group_size * groups
    for times_per, distinct in (("group", groups), ("batch", 1), ("sample", batch)):
        matcher = IntermediateStateMatcher(
            PROCESS, num_steps=(steps,), time_distribution=distribution, times_per=times_per
        )
        times = matcher.times(batch, group_size, torch.device("cpu"), seeded(seed))
        assert times.shape == (steps + 1, batch)
        assert bool((times[0] == 1).all())
        assert bool((times[-1] == 0).all())
        assert bool((times.diff(dim=0) < 0).all())
        assert len(times.unique(dim=1)[0]) == distinct
        if times_per == "group":
            assert all(len(of_group.unique(dim=1)[0]) == 1 for of_group in times.split(group_size, dim=1))


def test_without_a_distribution_the_grid_is_the_samplers() -> None:
    times = IntermediateStateMatcher(PROCESS, num_steps=(4,)).times(2, 1, torch.device("cpu"), seeded(0))
    assert times.tolist() == [[value, value] for value in (1.0, 0.75, 0.5, 0.25, 0.0)]


def test_tau_is_the_time_of_the_first_intermediate_state() -> None:
    for steps, expected in ((1, 1.0), (2, 0.5), (4, 0.75)):
        rollout = IntermediateStateMatcher(PROCESS, num_steps=(steps,))(TimedTable(3), (2, 3), generator=seeded(0))
        assert rollout.tau.tolist() == [expected, expected]


def test_numbers_of_steps_are_drawn_evenly() -> None:
    matcher, generator = IntermediateStateMatcher(PROCESS, num_steps=(1, 2, 4, 8)), seeded(0)
    drawn = [len(matcher.times(1, 1, torch.device("cpu"), generator)) - 1 for _ in range(2000)]
    counts = [drawn.count(steps) for steps in (1, 2, 4, 8)]
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("schedule", [LogLinearSchedule(), CosineSchedule(), PolynomialSchedule(2.0)])
def test_samples_of_paths_through_a_random_time_follow_the_exact_distribution(schedule) -> None:
    process, draws = MaskedDiffusion(MASK, schedule), 20_000
    student = TimedTable(3)
    matcher = IntermediateStateMatcher(
        process, num_steps=(3,), time_distribution=BetaTime(0.02, 0.98), times_per="batch"
    )
    with torch.no_grad():
        rollout = matcher(student, (draws, 3), generator=seeded(3))
        times = [1.0, *(float(step.s[0]) for step in rollout.steps)]
        distribution = exact.sampler_distribution(student, process, times, 3, 3)
    assert 0.02 < times[2] < times[1] < 0.98
    words = (rollout.sequences * torch.tensor([9, 3, 1])).sum(1)
    expected = draws * distribution.flatten()
    assert float(expected.min()) >= 5.0
    assert stats.chisquare(torch.bincount(words, minlength=27), expected).pvalue > 1e-3


def test_times_of_each_sample_give_the_mixture_of_the_distributions() -> None:
    student, draws = TimedTable(2, seed=5), 20_000
    matcher = IntermediateStateMatcher(
        PROCESS, num_steps=(2,), time_distribution=UniformTime(0.1, 0.9), times_per="sample"
    )
    with torch.no_grad():
        rollout = matcher(student, (draws, 2), generator=seeded(6))
        nodes = torch.linspace(0.1, 0.9, 65, dtype=torch.float64)
        distributions = torch.stack(
            [exact.sampler_distribution(student, PROCESS, [1.0, tau, 0.0], 2, 3) for tau in nodes.tolist()]
        )
    distribution = torch.trapezoid(distributions, nodes, dim=0) / 0.8
    words = (rollout.sequences * torch.tensor([3, 1])).sum(1)
    counts = torch.bincount(words, minlength=9)
    assert float(distribution.min()) * draws >= 5.0
    assert stats.chisquare(counts, draws * distribution.flatten() / distribution.sum()).pvalue > 1e-3


def test_a_prompt_is_completed_and_never_scored() -> None:
    student = TimedTable(4)
    x_init = torch.tensor([[0, MASK, MASK, 2], [MASK, 1, MASK, MASK]])
    real = torch.tensor([[True] * 4, [True] * 3 + [False]])
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(3,), positions="masked")
    rollout = matcher(student, x_init=x_init, attention_mask=real, group_size=2, generator=seeded(0))
    generation_mask = (x_init == MASK) & real
    assert bool((rollout.generation_mask == generation_mask).all())
    assert bool((rollout.sequences[~generation_mask] == x_init[~generation_mask]).all())
    assert bool((rollout.sequences[generation_mask] != MASK).all())
    assert bool((rollout.token_log_probs()[~generation_mask] == 0).all())
    assert rollout.denoiser_kwargs()["attention_mask"] is real
    torch.testing.assert_close(rollout.log_prob().detach(), brute_force_log_prob(student, rollout))


def test_conditions_reach_the_student_and_are_kept() -> None:
    seen: list[Tensor] = []

    def student(x_t, t, *, topic):
        seen.append(topic)
        return topic.float()[:, None, None] * torch.ones(*x_t.shape, 4)

    topic = torch.tensor([1, 2])
    rollout = IntermediateStateMatcher(PROCESS, num_steps=(1,))(
        student, (2, 3), generator=seeded(0), model_kwargs={"topic": topic}
    )
    assert seen[0].tolist() == [1, 2]
    assert rollout.denoiser_kwargs() == {"topic": topic}


def test_steps_that_reveal_nothing_are_no_trouble_for_a_network() -> None:
    config = DiTConfig(vocab_size=4, max_length=2, hidden_size=8, num_layers=1, num_heads=1, cond_size=4)
    network = DiT(config)
    for positions in ("revealed", "masked"):
        rollout = IntermediateStateMatcher(PROCESS, num_steps=(16,), positions=positions)(
            network, (1, 2), generator=seeded(0)
        )
        assert min(len(step.positions) for step in rollout.steps) == 0
        rollout.log_prob().sum().backward()
        assert bool(rollout.log_prob().isfinite().all())
    assert network.output_layer.linear.weight.grad is not None


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_steps": ()}, r"num_steps.*\(\)"),
        ({"num_steps": (2, 0)}, "num_steps must be 1 or more, got 0"),
        ({"times_per": "row"}, "times_per.*'row'"),
        ({"positions": "all"}, "positions.*'all'"),
    ],
)
def test_bad_choices_are_refused(choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        IntermediateStateMatcher(PROCESS, **choices)


@pytest.mark.parametrize("group_size", [0, 3])
def test_a_group_that_does_not_divide_the_batch_is_refused(group_size) -> None:
    with pytest.raises(ValueError, match=rf"group_size {group_size}\b.*\b4\b"):
        IntermediateStateMatcher(PROCESS)(TimedTable(2), (4, 2), group_size=group_size)


def path_of(steps: int, batch: int = 4096, length: int = 4, seed: int = 0) -> Rollout:
    with torch.no_grad():
        return IntermediateStateMatcher(PROCESS, num_steps=(steps,), positions="masked")(
            TimedTable(length), (batch, length), generator=seeded(seed)
        )


@pytest.mark.parametrize("hidden", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 4])
def test_remasking_hides_each_masked_position_with_one_probability(hidden, steps) -> None:
    rollout = path_of(steps)
    for step in rollout.steps:
        remasked = remask(PROCESS, step, rollout.generation_mask, mask_ratio=hidden, generator=seeded(1))
        reveal = float(PROCESS.unmask_probability(step.t[0], step.s[0]))
        expected = max(1.0 - reveal, hidden)
        masked = int((step.x_t == MASK).sum())
        assert (
            abs(len(remasked.positions) / masked - expected) <= 5 * (expected * (1 - expected) / masked) ** 0.5 + 1e-6
        )
        torch.testing.assert_close(remasked.weight, torch.full((len(remasked.positions),), reveal / expected))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_remasked_state_has_the_outcome_elsewhere_and_its_places_and_time(steps) -> None:
    rollout = path_of(steps, batch=64)
    for step in rollout.steps:
        remasked = remask(PROCESS, step, rollout.generation_mask, generator=seeded(2))
        hidden = (remasked.x_t == MASK).flatten()
        assert bool((hidden.nonzero().squeeze(1) == remasked.positions).all())
        assert bool((remasked.x_t.flatten()[~hidden] == step.x_s.flatten()[~hidden]).all())
        assert bool((step.x_s == MASK).flatten().le(hidden).all())
        assert bool((step.positions[remasked.index] == remasked.positions).all())
        share = hidden.view(64, 4).float().mean(1)
        torch.testing.assert_close(1.0 - PROCESS.schedule.alpha(remasked.t), share, atol=2e-3, rtol=0)


@pytest.mark.parametrize("hidden", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_weighted_sums_over_hidden_rows_are_unbiased_for_sums_over_revealed_rows(hidden, index) -> None:
    """For what depends on the state before the step and the position: 20 000 paths, five standard errors."""
    rollout = path_of(3, batch=20_000, length=3, seed=7)
    step = rollout.steps[index]
    value = PROCESS.masked_log_probs(step.logits_NV).exp().square().sum(1) + 0.1 * (step.positions % 3)
    remasked = remask(PROCESS, step, rollout.generation_mask, mask_ratio=hidden, generator=seeded(8))
    per_path = torch.zeros(20_000, dtype=torch.float64)
    per_path.index_add_(0, remasked.positions // 3, remasked.weight * value[remasked.index])
    per_path.index_add_(0, step.positions[step.revealed] // 3, -value[step.revealed])
    assert float(per_path.std()) > 0.01
    assert abs(float(per_path.mean())) < 5 * float(per_path.std()) / math.sqrt(20_000)


def test_prompts_are_never_hidden() -> None:
    x_init = torch.tensor([[0, MASK, MASK, 2]]).expand(16, -1)
    with torch.no_grad():
        rollout = IntermediateStateMatcher(PROCESS, num_steps=(2,), positions="masked")(
            TimedTable(4), x_init=x_init, generator=seeded(0)
        )
    for step in rollout.steps:
        remasked = remask(PROCESS, step, rollout.generation_mask, mask_ratio=1.0, generator=seeded(0))
        assert bool((remasked.x_t[:, 0] == 0).all())
        assert bool((remasked.x_t[:, 3] == 2).all())
        expected = (step.x_t == MASK).sum(1).float() / 2
        torch.testing.assert_close(1.0 - PROCESS.schedule.alpha(remasked.t), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("hidden", [0.0, 1.2])
def test_a_fraction_outside_its_range_is_refused(hidden) -> None:
    rollout = path_of(2, batch=2)
    with pytest.raises(ValueError, match=f"mask_ratio.*{hidden}"):
        remask(PROCESS, rollout.steps[0], rollout.generation_mask, mask_ratio=hidden)


def test_a_path_that_kept_only_revealed_positions_cannot_be_remasked() -> None:
    rollout = IntermediateStateMatcher(PROCESS, num_steps=(2,))(TimedTable(6), (8, 6), generator=seeded(0))
    with pytest.raises(ValueError, match='positions="masked"'):
        remask(PROCESS, rollout.steps[0], rollout.generation_mask, generator=seeded(0))


@pytest.mark.parametrize("seed", range(6))
def test_the_steps_that_keep_a_graph_weigh_for_those_that_do_not(seed: int) -> None:
    """Same path and same values; the gradient is K / m times that of the m steps that were kept."""
    torch.manual_seed(seed)
    student = DiT(DiTConfig(vocab_size=5, max_length=6, hidden_size=8, num_layers=1, num_heads=1, cond_size=4))
    torch.nn.init.normal_(student.output_layer.linear.weight)
    process = MaskedDiffusion(4)
    weight = student.output_layer.linear.weight
    whole = IntermediateStateMatcher(process, num_steps=(4,))(student, (8, 6), generator=seeded(seed))
    part = IntermediateStateMatcher(process, num_steps=(4,), gradient_steps=2)(student, (8, 6), generator=seeded(seed))
    kept = [index for index, step in enumerate(part.steps) if step.logits_NV.requires_grad]
    assert len(kept) == 2
    torch.testing.assert_close(part.log_prob(), whole.log_prob())
    chosen = torch.stack([whole.steps[index].token_log_probs().sum() for index in kept]).sum()
    (expected,) = torch.autograd.grad(chosen, weight)
    (found,) = torch.autograd.grad(part.log_prob().sum(), weight)
    torch.testing.assert_close(found, 2.0 * expected)


def test_every_step_keeps_its_graph_equally_often() -> None:
    matcher = IntermediateStateMatcher(MaskedDiffusion(4), gradient_steps=1)
    kept = [matcher._gradient_weights(4, seeded(seed)).index(4.0) for seed in range(400)]
    counts = torch.tensor(kept).bincount(minlength=4)
    assert float(stats.chisquare(counts.numpy()).pvalue) > 1e-3


def branching_path(length: int = 4, steps: int = 3, seed: int = 0, group_size: int = 4) -> tuple[TimedTable, Rollout]:
    student = TimedTable(length)
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(steps,), branching=True)
    return student, matcher(student, (8, length), group_size=group_size, generator=seeded(seed))


@pytest.mark.parametrize("seed", range(6))
def test_the_rows_of_a_group_share_their_path_up_to_the_step_with_a_graph_and_all_unmasking_draws(seed) -> None:
    student, rollout = branching_path(length=6, seed=seed)
    (branch,) = (index for index, step in enumerate(rollout.steps) if step.logits_NV.requires_grad)
    for index, step in enumerate(rollout.steps):
        states = step.x_t.view(2, 4, 6)
        if index <= branch:
            assert bool((states == states[:, :1]).all())
        hidden = (step.x_s == MASK).view(2, 4, 6)
        assert bool((hidden == hidden[:, :1]).all())
    assert len({tuple(row) for row in rollout.sequences.tolist()}) > 2
    asked = [len(states) for states in student.asked]
    assert max(asked[: branch + 1]) <= 2
    assert max(asked[branch + 1 :], default=8) > 2
    torch.testing.assert_close(rollout.log_prob().detach(), brute_force_log_prob(student, rollout))


def test_rows_are_compared_in_order_after_a_branch() -> None:
    """Rows, tokens and log-probabilities of the shared step stand where its sequences do."""
    _, rollout = branching_path(length=6, seed=1)
    for step in rollout.steps:
        assert bool((step.positions.diff() > 0).all())
        assert bool((step.x_t.flatten()[step.positions] == MASK).all())
        assert bool((step.x_s.flatten()[step.revealed_positions()] == step.revealed_tokens()).all())


def test_the_expected_gradient_of_branching_paths_is_that_of_independent_ones() -> None:
    """Two words, length 2, reward = a fixed number of the sample: means of 400 batches within five standard errors."""
    student, reward = TimedTable(2), torch.randn(4, 4, dtype=torch.float64, generator=seeded(3))

    def gradients(branching: bool) -> Tensor:
        matcher = IntermediateStateMatcher(PROCESS, num_steps=(3,), branching=branching)
        found = []
        for seed in range(400):
            rollout = matcher(student, (64, 2), group_size=4, generator=seeded(seed))
            rewards = reward[rollout.sequences[:, 0], rollout.sequences[:, 1]]
            advantages = group_advantages(rewards, 4, baseline="leave_one_out", scale="none")
            value = (advantages * rollout.log_prob()).mean()
            found.append(torch.autograd.grad(value, student.table)[0][-1].flatten())  # the all-mask state
        return torch.stack(found)

    ours, truth = gradients(True), gradients(False)
    error = (ours.var(0) / len(ours) + truth.var(0) / len(truth)).sqrt()
    moved = error > 0
    assert int(moved.sum()) >= 4
    assert float((truth.mean(0)[moved] / error[moved]).abs().max()) > 10
    assert float(((ours.mean(0) - truth.mean(0))[moved] / error[moved]).abs().max()) < 5


def test_prompts_that_differ_within_a_group_cannot_branch() -> None:
    matcher = IntermediateStateMatcher(PROCESS, branching=True)
    x_init = torch.full((4, 4), MASK)
    x_init[:, 0] = torch.tensor([0, 0, 1, 1])
    assert matcher(TimedTable(4), x_init=x_init, group_size=2, generator=seeded(0)).sequences[:, 0].tolist() == [
        0,
        0,
        1,
        1,
    ]
    with pytest.raises(ValueError, match="x_init"):
        matcher(TimedTable(4), x_init=x_init, group_size=4, generator=seeded(0))


def test_a_branching_path_keeps_one_graph_and_no_choice_of_others() -> None:
    with pytest.raises(ValueError, match=r"gradient_steps.*\b2\b"):
        IntermediateStateMatcher(PROCESS, branching=True, gradient_steps=2)
    with pytest.raises(ValueError, match="times_per"):
        IntermediateStateMatcher(PROCESS, branching=True, time_distribution=UniformTime(), times_per="sample")


def test_a_given_number_of_steps_takes_the_place_of_the_drawn_one() -> None:
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(1, 2, 3), time_distribution=UniformTime())
    student = TimedTable(2)
    for count in (1, 2, 5):
        fixed = IntermediateStateMatcher(PROCESS, num_steps=(count,), time_distribution=UniformTime())
        given = matcher(student, (4, 2), generator=seeded(count), num_steps=count)
        expected = fixed(student, (4, 2), generator=seeded(count))
        assert len(given.steps) == count
        assert torch.equal(given.sequences, expected.sequences)
        assert torch.equal(given.log_prob(), expected.log_prob())
    assert {len(matcher(student, (4, 2), generator=seeded(seed)).steps) for seed in range(20)} == {1, 2, 3}
    with pytest.raises(ValueError, match=r"num_steps.*0"):
        matcher(student, (4, 2), num_steps=0)
    with pytest.raises(TypeError, match=r"num_steps.*1\.5"):
        matcher(student, (4, 2), num_steps=1.5)
