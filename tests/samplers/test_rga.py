"""Reward-guided ancestral sampling: what it reduces to, what it improves, and what it costs."""

import math

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, random_table, seeded
from torch import Tensor

from discrete_distill import AncestralSampler, Discriminator, RGASampler, exact
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import MaskedDiffusion
from discrete_distill.samplers import SamplerState

PROCESS = MaskedDiffusion(3)
SHAPE = DiTConfig(vocab_size=4, max_length=6, hidden_size=16, num_layers=2, num_heads=2, cond_size=8, dropout=0.0)


def small_discriminator(seed: int = 0) -> Discriminator:
    torch.manual_seed(seed)
    network = Discriminator(SHAPE, trainable_blocks=1).eval()
    with torch.no_grad():
        for block in network.backbone.blocks:
            block.adaLN_modulation.weight.normal_(std=0.3)
    return network


def indifferent(x, t, **_):
    return torch.zeros(*x.shape, 4)


def exact_ratio(student_distribution: Tensor, teacher_distribution: Tensor):
    """The optimal discriminator: the exact ratio of the state, at every position."""
    table = exact.log_ratio(student_distribution, teacher_distribution, PROCESS)
    return lambda x_t, t, **_: exact.look_up(table, x_t)[:, None].expand(x_t.shape).float()


@pytest.mark.parametrize("x_init", [None, torch.tensor([[0, 3, 3, 3, 2], [3, 3, 1, 3, 3]])])
def test_one_candidate_and_no_tilt_is_ancestral_sampling_token_for_token(x_init) -> None:
    table = random_table(3, 5, exact.uniform_times(4), 0, 3)
    shape = (16, 5) if x_init is None else None
    plain = AncestralSampler(PROCESS, num_steps=4)(table, shape, x_init=x_init, generator=seeded(1))
    guided = RGASampler(PROCESS, reward=small_discriminator(), num_steps=4, num_candidates=1, tilt_fraction=0.0)
    out = guided(table, shape, x_init=x_init, generator=seeded(1))
    assert bool((out.sequences == plain.sequences).all())
    assert bool((out.log_probs == plain.log_probs).all())
    assert out.nfe == out.network_evaluations == plain.nfe


def test_a_blind_discriminator_leaves_the_distribution_as_it_is() -> None:
    times = exact.uniform_times(2)
    table = random_table(3, 3, times, 0, 3)
    blind = lambda x_t, t: torch.zeros(x_t.shape)  # noqa: E731
    out = RGASampler(PROCESS, reward=blind, num_steps=2)(table, (20_000, 3), generator=seeded(2))
    assert chi_square_p(counts_of(out.sequences, 3, 3), exact.sampler_distribution(table, PROCESS, times, 3, 3)) > 1e-3


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_temperature_is_that_of_the_tokens_when_reranking_and_when_tilting(fraction) -> None:
    times = exact.uniform_times(1)
    table = random_table(3, 3, times, 0, 3)
    blind = small_discriminator()
    with torch.no_grad():
        blind.head = torch.nn.Sequential(torch.nn.Linear(16, 1))
        blind.head[0].weight.zero_()
    sampler = RGASampler(PROCESS, reward=blind, num_steps=1, tilt_fraction=fraction, temperature=0.5)
    out = sampler(table, (20_000, 3), generator=seeded(2))
    distribution = exact.sampler_distribution(lambda x, t: table(x, t) / 0.5, PROCESS, times, 3, 3)
    assert chi_square_p(counts_of(out.sequences, 3, 3), distribution) > 1e-3


def test_reranking_with_the_exact_ratio_moves_the_distribution_towards_the_chain() -> None:
    """One step: candidates are whole samples, and re-ranking is importance resampling towards the chain."""
    chain = exact.random_chain(3, seeded(4))
    distribution, draws = chain.distribution(3), 20_000
    student = exact.sampler_distribution(chain.denoiser(3), PROCESS, [1.0, 0.0], 3, 3)
    kls = {}
    for candidates in (1, 4, 16):
        sampler = RGASampler(PROCESS, reward=exact_ratio(student, distribution), num_steps=1, num_candidates=candidates)
        out = sampler(chain.denoiser(3), (draws, 3), generator=seeded(5))
        frequency = (counts_of(out.sequences, 3, 3).double() / draws).view(3, 3, 3)
        kls[candidates] = float(exact.kl(frequency, distribution))
    assert kls[1] == pytest.approx(float(exact.kl(student, distribution)), rel=0.05)
    assert kls[4] < 0.5 * kls[1]
    assert kls[16] < 0.5 * kls[4]


def test_reranking_at_every_step_of_several_helps_too() -> None:
    chain = exact.random_chain(3, seeded(4))
    distribution, draws = chain.distribution(4), 20_000
    student = exact.sampler_distribution(chain.denoiser(3), PROCESS, exact.uniform_times(2), 4, 3)
    kls = []
    for candidates in (1, 4):
        sampler = RGASampler(PROCESS, reward=exact_ratio(student, distribution), num_steps=2, num_candidates=candidates)
        out = sampler(chain.denoiser(3), (draws, 4), generator=seeded(5))
        frequency = (counts_of(out.sequences, 3, 3).double() / draws).view(3, 3, 3, 3)
        kls.append(float(exact.kl(frequency, distribution)))
    assert kls[1] < 0.6 * kls[0]


def test_two_candidates_are_chosen_with_the_softmax_of_their_scores() -> None:
    """One position, two words, scores 0 and -log 3: the distribution is that of the better of two, by hand."""
    logit = torch.tensor([0.0, math.log(3.0), 0.0])
    judge = lambda x_t, t: logit[x_t]  # noqa: E731
    sampler = RGASampler(MaskedDiffusion(2), reward=judge, num_steps=1, num_candidates=2)
    out = sampler(lambda x, t: torch.zeros(*x.shape, 3), (20_000, 1), generator=seeded(0))
    first = 0.25 + 0.5 * 0.75
    counts = torch.bincount(out.sequences.flatten(), minlength=2)
    assert abs(float(counts[0]) / 20_000 - first) < 5 * (first * (1 - first) / 20_000) ** 0.5


def test_the_scale_multiplies_scores_and_sum_adds_them_over_positions() -> None:
    judge = lambda x_t, t: -x_t.float()  # noqa: E731
    state = SamplerState(MaskedDiffusion(9), indifferent, (1, 4), generator=seeded(0))
    tokens = torch.tensor([1, 2, 3, 6])
    t = torch.tensor([0.5])
    mean, total = (RGASampler(MaskedDiffusion(9), reward=judge, normalize=how) for how in ("mean", "sum"))
    rows = torch.arange(4)
    assert mean._candidate_scores(state, rows, tokens, t).tolist() == [3.0]
    assert total._candidate_scores(state, rows, tokens, t).tolist() == [12.0]
    scores = torch.tensor([[0.0, 1.0]]).expand(20_000, 2)
    wide = SamplerState(MaskedDiffusion(9), indifferent, (20_000, 1), generator=seeded(1))
    for scale in (1.0, 3.0):
        sampler = RGASampler(MaskedDiffusion(9), reward=judge, num_candidates=2, rerank_scale=scale)
        share = sampler._choose(wide, 0, scores).float().mean().item()
        assert share == pytest.approx(1.0 / (1.0 + math.exp(-scale)), abs=0.02)


def test_masked_positions_alone_count_where_so_chosen_and_prompt_and_padding_never() -> None:
    judge = lambda x_t, t, attention_mask: torch.arange(1.0, 5.0).expand(x_t.shape)  # noqa: E731
    x_init = torch.tensor([[0, 3, 3, 3]])
    real = torch.tensor([[True, True, True, False]])
    state = SamplerState(PROCESS, indifferent, x_init=x_init, attention_mask=real, generator=seeded(0))
    every, masked = (RGASampler(PROCESS, reward=judge, rerank_positions=which) for which in ("all", "masked"))
    arguments = state, torch.tensor([1]), torch.tensor([2]), torch.tensor([0.5])
    assert every._candidate_scores(*arguments).tolist() == [-2.5]
    assert masked._candidate_scores(*arguments).tolist() == [-3.0]


def test_a_seed_fixes_the_tokens_of_a_row_whatever_the_batch() -> None:
    table, judge = random_table(3, 5, exact.uniform_times(4), 7, 3), small_discriminator()
    for fraction in (0.0, 0.5):
        sampler = RGASampler(PROCESS, reward=judge, num_steps=4, tilt_fraction=fraction)
        small, large = (sampler(table, (rows, 5), generator=seeded(8)).sequences for rows in (7, 40))
        assert bool((small == large[:7]).all())


@pytest.mark.parametrize(("candidates", "fraction"), [(4, 0.0), (4, 0.5), (1, 0.5), (2, 1.0)])
def test_every_network_evaluation_is_counted(candidates, fraction) -> None:
    """A tilted step: one of the denoiser, a forward and a backward pass, which is two, of the discriminator."""
    table, judge = Counting(random_table(3, 6, exact.uniform_times(4), 0, 3)), small_discriminator()
    forwards: list[int] = []
    judge.backbone.blocks[0].register_forward_hook(lambda *_: forwards.append(1))
    sampler = RGASampler(PROCESS, reward=judge, num_steps=4, num_candidates=candidates, tilt_fraction=fraction)
    out = sampler(table, (64, 6), generator=seeded(1))
    tilted = sampler.tilted_steps
    assert tilted == round(4 * fraction)
    reranks = candidates if candidates > 1 else 0
    assert out.nfe == table.calls == 4
    assert len(forwards) == tilted + (4 - tilted) * reranks
    assert out.network_evaluations == 4 + 3 * tilted + (4 - tilted) * reranks


def test_tilting_leaves_no_gradient_on_any_parameter() -> None:
    table, judge = random_table(3, 6, exact.uniform_times(4), 0, 3), small_discriminator()
    trainable = [parameter.requires_grad for parameter in judge.parameters()]
    RGASampler(PROCESS, reward=judge, num_steps=4, tilt_fraction=1.0)(table, (8, 6), generator=seeded(1))
    assert all(parameter.grad is None for parameter in (*judge.parameters(), *table.parameters()))
    assert [parameter.requires_grad for parameter in judge.parameters()] == trainable


def test_the_strength_runs_linearly_over_the_tilted_steps() -> None:
    judge = small_discriminator()
    sampler = RGASampler(PROCESS, reward=judge, num_steps=10, tilt=(30.0, 40.0), tilt_fraction=0.5)
    assert sampler.tilted_steps == 5
    assert [sampler.strength(step) for step in range(5)] == [30.0, 32.5, 35.0, 37.5, 40.0]
    short = RGASampler(PROCESS, reward=judge, num_steps=2, tilt=(30.0, 40.0), tilt_fraction=0.5)
    assert short.strength(0) == 30.0


@pytest.mark.parametrize("normalize", ["mean", "sum"])
def test_the_gradient_of_the_reward_is_that_of_finite_differences(normalize) -> None:
    """Of minus the discriminator's mean (or summed) logit over masked positions, through the soft embeddings."""
    judge = small_discriminator(3).double()
    judge.logits_of_features = lambda h: judge.head(h).squeeze(-1)  # type: ignore[method-assign]
    sampler = RGASampler(PROCESS, reward=judge, normalize=normalize, tilt_fraction=1.0)
    state = SamplerState(PROCESS, indifferent, x_init=torch.tensor([[0, 3, 3], [3, 1, 2]]), generator=seeded(0))
    rows = state.masked().flatten().nonzero().squeeze(1)
    logits = torch.randn(3, 4, dtype=torch.float64, generator=seeded(1))
    t = torch.full((2,), 0.5)
    actual = sampler.reward_gradient(state, rows, logits, t)

    def reward(log_probs: Tensor) -> float:
        h = judge.backbone.embed(state.tokens).flatten(0, 1)
        h = h.index_copy(0, rows, log_probs.softmax(-1) @ judge.embedding_weight()).view(2, 3, -1)
        values = judge(state.tokens, t, inputs_embeds=h) * state.masked()
        count = state.masked().sum(1) if normalize == "mean" else torch.ones(2)
        return -float((values.sum(1) / count).sum())

    with torch.no_grad():
        start, step = PROCESS.masked_log_probs(logits), 2e-2
        for row in range(3):
            for word in range(3):
                push = torch.zeros_like(start)
                push[row, word] = step
                slope = (reward(start + push) - reward(start - push)) / (2 * step)
                assert float(actual[row, word]) == pytest.approx(slope, abs=5e-5)
    assert actual[:, 3].tolist() == [0.0] * 3
    assert float(actual.abs().max()) > 1e-3


def test_a_tilted_step_follows_the_tilted_distribution() -> None:
    judge, strength = small_discriminator(1), 20.0
    chain = exact.random_chain(3, seeded(0), 1.0)
    sampler = RGASampler(
        PROCESS, reward=judge, num_steps=1, tilt=(strength, strength), tilt_fraction=1.0, normalize="sum"
    )
    out = sampler(chain.denoiser(3), (20_000, 3), generator=seeded(2))
    state = SamplerState(PROCESS, indifferent, (1, 3), generator=seeded(0))
    logits = chain.denoiser(3)(state.tokens)[0]
    gradient = sampler.reward_gradient(state, torch.arange(3), logits, torch.ones(1))
    tilted = (PROCESS.masked_log_probs(logits) + strength * gradient.clamp(-1.0, 1.0)).softmax(-1)[:, :3]
    distribution = tilted[0][:, None, None] * tilted[1][None, :, None] * tilted[2]
    counts = counts_of(out.sequences, 3, 3)
    assert chi_square_p(counts, distribution) > 1e-3
    assert chi_square_p(counts, exact.sampler_distribution(chain.denoiser(3), PROCESS, [1.0, 0.0], 3, 3)) < 1e-6


def test_tilting_raises_the_reward() -> None:
    table, judge = random_table(3, 6, exact.uniform_times(4), 0, 3), small_discriminator(2)
    rewards = []
    for strength in (0.0, 100.0):
        sampler = RGASampler(
            PROCESS, reward=judge, num_steps=4, num_candidates=1, tilt=(strength, strength), tilt_fraction=1.0
        )
        out = sampler(table, (2000, 6), generator=seeded(3))
        with torch.no_grad():
            rewards.append(float(-judge(out.sequences, torch.zeros(2000)).mean()))
    assert rewards[1] > rewards[0] + 0.01


def test_prompt_and_padding_stay_and_no_mask_is_left() -> None:
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    x_init = torch.tensor([[0, 3, 3, 1, 3, 3], [3, 3, 2, 3, 3, 3]])
    network = lambda x, t, attention_mask: torch.zeros(*x.shape, 4)  # noqa: E731
    sampler = RGASampler(PROCESS, reward=small_discriminator(), num_steps=4, num_candidates=2, tilt_fraction=0.5)
    out = sampler(network, x_init=x_init, attention_mask=real, generator=seeded(0), return_history=True)
    generation_mask = (x_init == 3) & real
    assert bool((out.sequences[~generation_mask] == x_init[~generation_mask]).all())
    assert bool((out.sequences[generation_mask] != 3).all())
    assert out.history is not None
    assert len(out.history) == 5


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_candidates": 0}, "num_candidates.*0"),
        ({"tilt_fraction": 1.5}, "tilt_fraction.*1.5"),
        ({"normalize": "max"}, "got 'max'"),
        ({"rerank_positions": "some"}, "got 'some'"),
    ],
)
def test_bad_choices_are_refused(choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        RGASampler(PROCESS, reward=small_discriminator(), **choices)


def test_tilting_by_a_plain_function_is_refused() -> None:
    with pytest.raises(TypeError, match="EmbeddingDenoiser"):
        RGASampler(PROCESS, reward=lambda x_t, t: x_t.float(), num_steps=4, tilt_fraction=0.5)


def test_a_reward_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="got str"):
        RGASampler(PROCESS, reward="discriminator")  # type: ignore[arg-type]


def test_the_discriminator_may_be_made_of_a_denoiser() -> None:
    torch.manual_seed(0)
    denoiser = DiT(SHAPE)
    judge = Discriminator.from_denoiser(denoiser, trainable_blocks=1).eval()
    out = RGASampler(PROCESS, reward=judge, num_steps=3, tilt_fraction=0.4)(
        denoiser.eval(), (4, 6), generator=seeded(0)
    )
    assert bool((out.sequences != 3).all())
    assert bool(out.log_probs.isfinite().all())


@pytest.mark.parametrize("chunk_rows", [1, 7, 13])
@pytest.mark.parametrize(
    "x_init", [None, torch.tensor([[0, 3, 3, 3, 2, 3], [3, 3, 1, 3, 3, 3], [1, 1, 3, 3, 1, 1]] * 3)]
)
def test_groups_of_sequences_change_no_token_of_a_tilted_step(chunk_rows, x_init) -> None:
    table, judge = random_table(3, 6, exact.uniform_times(4), 0, 3), small_discriminator(2)
    shape = (9, 6) if x_init is None else None
    whole, parts = (
        RGASampler(PROCESS, reward=judge, num_steps=4, tilt=(50.0, 80.0), tilt_fraction=0.8, chunk_rows=rows)(
            table, shape, x_init=x_init, generator=seeded(1)
        )
        for rows in (10**6, chunk_rows)
    )
    assert torch.equal(parts.sequences, whole.sequences)
    torch.testing.assert_close(parts.log_probs, whole.log_probs)
    assert (parts.nfe, parts.network_evaluations) == (whole.nfe, whole.network_evaluations)


def test_no_more_rows_than_a_chunk_or_a_sequence_are_tilted_at_once() -> None:
    table, judge, sizes = random_table(3, 6, exact.uniform_times(2), 0, 3), small_discriminator(), []
    judge.backbone.blocks[0].register_forward_hook(lambda _m, inputs, _o: sizes.append(inputs[0].shape[0]))
    sampler = RGASampler(PROCESS, reward=judge, num_steps=1, num_candidates=1, tilt_fraction=1.0, chunk_rows=12)
    sampler(table, (5, 6), generator=seeded(0))
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("per_position", [False, True])
def test_scores_that_are_no_numbers_are_refused_and_the_sequence_named(check, bad, per_position) -> None:
    def judge(x_t, t):
        scores = torch.zeros(x_t.shape) if per_position else torch.zeros(len(x_t))
        scores[2] = -bad if per_position else bad
        return scores

    with pytest.raises(ValueError, match="sequence 12"):
        RGASampler(PROCESS, reward=judge, num_steps=2, check=check)(
            indifferent, (4, 3), generator=seeded(0), first_row=10
        )


def test_a_candidate_of_reward_minus_infinity_is_never_kept_and_all_of_them_are_refused() -> None:
    """Words 0 are forbidden; with many candidates one without them is there."""
    forbidden = lambda x_t, t: torch.where((x_t == 0).any(1), -math.inf, 0.0)  # noqa: E731
    sampler = RGASampler(PROCESS, reward=forbidden, num_steps=1, num_candidates=200)
    out = sampler(indifferent, (20, 3), generator=seeded(0))
    assert bool((out.sequences != 0).all())
    hopeless = RGASampler(PROCESS, reward=lambda x_t, t: torch.full((len(x_t),), -math.inf), num_steps=1)
    with pytest.raises(ValueError, match="sequence 0"):
        hopeless(indifferent, (2, 3), generator=seeded(0))


@pytest.mark.parametrize("check", [False, True])
def test_a_tilt_that_is_no_number_is_refused_and_so_are_logits(check) -> None:
    judge = small_discriminator()
    sampler = RGASampler(PROCESS, reward=judge, num_steps=2, tilt_fraction=1.0, check=check)
    broken = lambda x, t: torch.where(torch.arange(len(x))[:, None, None] == 1, math.nan, indifferent(x, t))  # noqa: E731
    with pytest.raises(ValueError, match="sequence 1"):
        sampler(broken, x_init=torch.tensor([[0, 3], [1, 3]]), generator=seeded(0))
    with torch.no_grad():
        judge.head[2].bias.fill_(math.nan)
    with pytest.raises(ValueError, match="sequence 0"):
        sampler(indifferent, (3, 6), generator=seeded(0))
