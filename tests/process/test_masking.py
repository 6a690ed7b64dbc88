"""The masked process, checked against brute force on a vocabulary of two tokens and a mask."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor, nn

from discrete_distill.process import (
    BetaTime,
    Corruption,
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskedDiffusion,
    MaskingSchedule,
    PolynomialSchedule,
    StratifiedTime,
    TimeDistribution,
    UniformTime,
)

Seeded = Callable[[int], Generator]

VOCAB, LENGTH, MASK = 3, 3, 2
X = torch.tensor([0, 1, 1])
SUBSETS = [mask for mask in itertools.product([False, True], repeat=LENGTH) if any(mask)]
SCHEDULES = [
    LogLinearSchedule(),
    LinearSchedule(),
    CosineSchedule(),
    PolynomialSchedule(2.0),
    GeometricSchedule(),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


class TableDenoiser:
    """Logits looked up by the noisy sequence: any distribution at all, the same at every time."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = Generator().manual_seed(seed)
        self.table = torch.randn(VOCAB**LENGTH, LENGTH, VOCAB, generator=generator, dtype=torch.float64).to(dtype)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.table[(x_t * torch.tensor([VOCAB**2, VOCAB, 1])).sum(1)]

    def nats(self, hidden: tuple[bool, ...]) -> np.ndarray:
        """``-log p(x_i | x_t)`` of every position, with the ``hidden`` ones masked."""
        x_t = torch.where(torch.tensor(hidden), MASK, X)
        logits = self(x_t[None], torch.ones(1))[0, :, :MASK].double()
        return -(logits - logits.logsumexp(-1, keepdim=True))[torch.arange(LENGTH), X].numpy()


def any_order_nats(denoiser: TableDenoiser) -> float:
    """Mean over the orders of generation of ``-log p(x)``, one token at a time: what the NELBO is."""
    totals = []
    for order in itertools.permutations(range(LENGTH)):
        hidden = [True] * LENGTH
        total = 0.0
        for position in order:
            total += denoiser.nats(tuple(hidden))[position]
            hidden[position] = False
        totals.append(total)
    return float(np.mean(totals))


def nats_between(denoiser: TableDenoiser, low: float, high: float) -> float:
    """The part of the NELBO that lies between two masked fractions: ``int du / u E[sum of masked nats]``."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    fractions = low + (high - low) * (nodes + 1.0) / 2.0
    total = 0.0
    for u, w in zip(fractions, weights * (high - low) / 2.0, strict=True):
        for hidden in SUBSETS:
            k = sum(hidden)
            probability = u**k * (1.0 - u) ** (LENGTH - k)
            total += w / u * probability * denoiser.nats(hidden)[list(hidden)].sum()
    return float(total)


def test_the_two_enumerations_of_the_bound_agree() -> None:
    denoiser = TableDenoiser()
    assert nats_between(denoiser, 0.0, 1.0) == pytest.approx(any_order_nats(denoiser), rel=1e-12)


def scripted(monkeypatch: pytest.MonkeyPatch, corruption: Corruption) -> None:
    """Make the process draw this corruption."""
    monkeypatch.setattr(MaskedDiffusion, "draw_corruption", lambda *_, **__: corruption)


# Forward process.


@pytest.mark.parametrize("time", [0.1, 0.5, 0.93])
@every_schedule
def test_tokens_are_masked_as_often_as_the_schedule_says(
    schedule: MaskingSchedule, time: float, seeded: Seeded
) -> None:
    x = torch.zeros(20, 5000, dtype=torch.long)
    x_t = MaskedDiffusion(MASK, schedule).corrupt(x, torch.full((20,), time), generator=seeded(0))
    expected = 1.0 - schedule.alpha(torch.tensor(time, dtype=torch.float64)).item()
    standard_error = math.sqrt(expected * (1.0 - expected) / x.numel())
    assert abs((x_t == MASK).double().mean().item() - expected) < 5 * standard_error


def test_positions_are_masked_independently(seeded: Seeded) -> None:
    x = torch.zeros(50_000, 2, dtype=torch.long)
    x_t = MaskedDiffusion(MASK).corrupt(x, torch.full((50_000,), 0.3), generator=seeded(1))
    masked = 0.3 * (1.0 - 1e-3)
    pairs = torch.bincount((x_t == MASK).long() @ torch.tensor([2, 1]), minlength=4).numpy()
    distribution = np.outer([1 - masked, masked], [1 - masked, masked]).flatten()
    assert chisquare(pairs, distribution * len(x)).pvalue > 1e-3


@every_schedule
def test_time_zero_is_data_and_time_one_is_all_mask(schedule: MaskingSchedule, seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK, schedule)
    x = torch.randint(2, (8, 4096), generator=seeded(2))
    assert torch.equal(process.corrupt(x, torch.zeros(8), generator=seeded(3)), x)
    assert process.is_masked(process.corrupt(x, torch.ones(8), generator=seeded(3))).all()


def test_corruption_by_count_masks_exactly_that_many(seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK)
    count = torch.arange(33)
    x_t = process.corrupt_by_count(torch.zeros(33, 32, dtype=torch.long), count, generator=seeded(4))
    assert torch.equal(process.is_masked(x_t).sum(1), count)


def test_corruption_by_count_picks_every_subset_equally_often(seeded: Seeded) -> None:
    x = torch.zeros(6000, 4, dtype=torch.long)
    x_t = MaskedDiffusion(MASK).corrupt_by_count(x, torch.full((6000,), 2), generator=seeded(5))
    codes = torch.bincount((x_t == MASK).long() @ torch.tensor([8, 4, 2, 1]), minlength=16)
    chosen = codes[codes > 0]
    assert len(chosen) == 6
    assert chisquare(chosen.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("by", ["time", "count"])
def test_positions_that_may_not_move_stay(by: str, seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK)
    x = torch.randint(2, (64, 16), generator=seeded(6))
    generation_mask = torch.rand(64, 16, generator=seeded(7)) < 0.5
    x_t = process.draw_corruption(x, by=by, generation_mask=generation_mask, generator=seeded(8)).x_t  # type: ignore[arg-type]
    assert torch.equal(x_t[~generation_mask], x[~generation_mask])
    assert process.is_masked(x_t[generation_mask]).float().mean() > 0.3


def test_counts_are_stratified_over_one_to_all(seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK)
    x_t = process.draw_corruption(torch.zeros(40, 8, dtype=torch.long), by="count", generator=seeded(9)).x_t
    assert torch.bincount(process.is_masked(x_t).sum(1), minlength=9).tolist() == [0, *[5] * 8]


@every_schedule
def test_a_count_comes_with_the_time_at_which_it_is_expected(schedule: MaskingSchedule, seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK, schedule)
    x_t, t, weight = process.draw_corruption(torch.zeros(16, 8, dtype=torch.long), by="count", generator=seeded(10))
    count = process.is_masked(x_t).sum(1)
    torch.testing.assert_close(weight, 8 / count)
    inside = (t > 0.0) & (t < 1.0)
    assert inside.sum() >= 12
    torch.testing.assert_close(1.0 - schedule.alpha(t[inside]), count[inside] / 8, rtol=1e-4, atol=1e-5)
    assert t[count == 8].min() > 0.9


@pytest.mark.parametrize("by", ["time", "count"])
def test_the_generator_alone_decides_the_corruption(by: str, seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK)
    x = torch.zeros(8, 32, dtype=torch.long)
    before = torch.get_rng_state()
    first, again, other = (
        process.draw_corruption(x, by=by, generator=seeded(seed)).x_t  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_every_movable_position_is_dealt_to_one_of_equal_parts(seeded: Seeded) -> None:
    generation_mask = torch.arange(11)[None] < torch.tensor([[11], [7], [0]])
    parts = MaskedDiffusion(5).draw_parts(
        torch.zeros(3, 11, dtype=torch.long), 3, generation_mask=generation_mask, generator=seeded(0)
    )
    assert bool(((parts >= 0) == generation_mask).all())
    sizes = torch.stack([(parts == part).sum(1) for part in range(3)], dim=1)
    assert sizes.tolist() == [[4, 4, 3], [3, 2, 2], [0, 0, 0]]


def test_pairs_of_positions_meet_in_a_part_as_often_as_by_chance(seeded: Seeded) -> None:
    parts = MaskedDiffusion(5).draw_parts(torch.zeros(6000, 4, dtype=torch.long), 2, generator=seeded(1))
    together = (parts[:, 0] == parts[:, 1]).double().mean()
    assert abs(float(together) - 1 / 3) < 5 * math.sqrt(2 / 9 / 6000)


def test_an_unknown_kind_of_corruption_is_refused() -> None:
    with pytest.raises(ValueError, match="'rows'"):
        MaskedDiffusion(MASK).draw_corruption(X[None], by="rows")  # type: ignore[arg-type]


def test_a_negative_mask_id_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        MaskedDiffusion(-1)


# Substitution rules.


def test_the_mask_is_never_predicted_and_visible_tokens_are_carried_over(seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK)
    x_t = torch.tensor([[0, MASK, 1], [MASK, MASK, MASK]])
    logits = 10.0 * torch.randn(2, 3, VOCAB, generator=seeded(11))
    probs = process.log_probs(logits, x_t).exp()
    assert probs[..., MASK].eq(0.0).all()
    assert probs[0, 0].tolist() == [1.0, 0.0, 0.0]
    assert probs[0, 2].tolist() == [0.0, 1.0, 0.0]
    masked = process.is_masked(x_t)
    torch.testing.assert_close(probs[masked][:, :MASK], logits[masked][:, :MASK].softmax(-1))


def test_raw_logits_are_not_modified(seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK)
    logits = torch.randn(2, 3, VOCAB, generator=seeded(12))
    x_t = torch.full((2, 3), MASK)
    before = logits.clone()
    process.log_probs(logits, x_t)
    process.masked_log_probs(logits)
    process.posterior(logits, x_t, torch.ones(2), torch.full((2,), 0.5))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_log_probs_have_at_least_single_precision(given: torch.dtype, expected: torch.dtype, seeded: Seeded) -> None:
    logits = torch.randn(1, 3, VOCAB, generator=seeded(13)).to(given)
    out = MaskedDiffusion(MASK).log_probs(logits, torch.full((1, 3), MASK))
    assert out.dtype == expected
    torch.testing.assert_close(out[..., :MASK].exp().sum(-1), torch.ones(1, 3, dtype=expected))


def test_gradients_of_log_probs_are_finite(seeded: Seeded) -> None:
    logits = torch.randn(1, 3, VOCAB, generator=seeded(14)).requires_grad_()
    x_t = torch.tensor([[MASK, 1, MASK]])
    log_probs = MaskedDiffusion(MASK).log_probs(logits, x_t).gather(-1, X[None, :, None])
    log_probs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1].eq(0.0).all()
    assert logits.grad[..., MASK].eq(0.0).all()
    assert logits.grad[0, 0, 0] > 0.0


def test_a_vocabulary_without_the_mask_is_refused() -> None:
    process = MaskedDiffusion(VOCAB)
    with pytest.raises(ValueError, match="mask_token_id 3 is outside the 3 classes"):
        process.log_probs(torch.zeros(1, 3, VOCAB), X[None])
    with pytest.raises(ValueError, match="token id 3"):
        process.nelbo(lambda x, t: torch.zeros(1, 3, VOCAB), X[None], by="count")


# Reverse process.


@every_schedule
def test_revealing_everything_by_time_zero_is_certain(schedule: MaskingSchedule) -> None:
    t = torch.tensor([1e-8, 1e-4, 1e-2, 0.5, 1.0])
    assert MaskedDiffusion(MASK, schedule).unmask_probability(t, torch.zeros(5)).eq(1.0).all()


@every_schedule
def test_the_first_step_from_all_mask_reveals_alpha(schedule: MaskingSchedule) -> None:
    s = torch.linspace(0.01, 0.99, 50)
    reveal = MaskedDiffusion(MASK, schedule).unmask_probability(torch.ones(50), s)
    assert torch.equal(reveal, schedule.alpha(s))


@every_schedule
def test_two_steps_reveal_what_one_step_does(schedule: MaskingSchedule, seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK, schedule)
    s, u, t = torch.rand(200, 3, generator=seeded(15), dtype=torch.float64).sort(dim=1).values.T
    stay = 1.0 - process.unmask_probability(t, s)
    stay_twice = (1.0 - process.unmask_probability(t, u)) * (1.0 - process.unmask_probability(u, s))
    torch.testing.assert_close(stay_twice, stay, rtol=1e-7, atol=1e-9)


@every_schedule
def test_the_posterior_sums_to_one_and_composes(schedule: MaskingSchedule) -> None:
    process = MaskedDiffusion(MASK, schedule)
    every_state = torch.arange(VOCAB)[None]
    logits = torch.tensor([0.3, -1.0, 5.0], dtype=torch.float64).expand(1, VOCAB, VOCAB)

    def step(t: float, s: float) -> Tensor:
        times = (torch.tensor([time], dtype=torch.float64) for time in (t, s))
        return process.posterior(logits, every_state, *times)[0]

    for matrix in (step(0.8, 0.5), step(1.0, 0.2), step(0.3, 0.0)):
        torch.testing.assert_close(matrix.sum(1), torch.ones(VOCAB, dtype=torch.float64))
    torch.testing.assert_close(step(0.8, 0.5) @ step(0.5, 0.1), step(0.8, 0.1))


@every_schedule
def test_the_posterior_is_bayes_rule_on_the_forward_process(schedule: MaskingSchedule) -> None:
    process = MaskedDiffusion(MASK, schedule)
    prior = torch.tensor([0.35, 0.65], dtype=torch.float64)
    t, s = torch.tensor([[0.7], [0.4]], dtype=torch.float64)
    alpha_t, alpha_s = schedule.alpha(t).item(), schedule.alpha(s).item()
    joint = torch.zeros(VOCAB, dtype=torch.float64)  # P(x_s, x_t = mask), summed over x
    for x, probability in enumerate(prior):
        joint[x] += probability * alpha_s * (1.0 - alpha_t / alpha_s)
        joint[MASK] += probability * (1.0 - alpha_s)
    logits = torch.cat([prior.log(), torch.tensor([3.0], dtype=torch.float64)]).reshape(1, 1, VOCAB)
    posterior = process.posterior(logits, torch.tensor([[MASK]]), t, s)[0, 0]
    torch.testing.assert_close(posterior, joint / joint.sum())


def test_the_posterior_leaves_visible_tokens_alone(seeded: Seeded) -> None:
    logits = torch.randn(1, 3, VOCAB, generator=seeded(16))
    posterior = MaskedDiffusion(MASK).posterior(logits, X[None], torch.tensor([0.9]), torch.tensor([0.1]))
    assert torch.equal(posterior[0], torch.eye(VOCAB)[X])


# The likelihood bound.


@every_schedule
def test_the_bound_by_time_is_the_any_order_enumeration(
    schedule: MaskingSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expectation over all masks and times, with the estimator's own weights, by quadrature."""
    denoiser = TableDenoiser()
    process = MaskedDiffusion(MASK, schedule)
    # Panels that get shorter towards both ends, for schedules that are steep there.
    edges = 0.5 * (1.0 - np.cos(np.linspace(0.0, np.pi, 41)))
    nodes, node_weights = np.polynomial.legendre.leggauss(12)
    t = torch.from_numpy((edges[:-1, None] + np.diff(edges)[:, None] * (nodes + 1) / 2).flatten())
    dt = torch.from_numpy((np.diff(edges)[:, None] * node_weights / 2).flatten())
    hidden = torch.tensor(SUBSETS)
    times = t.repeat_interleave(len(SUBSETS))
    rows = hidden.repeat(len(t), 1)
    masked = 1.0 - schedule.alpha(times)
    probability = torch.where(rows, masked[:, None], 1.0 - masked[:, None]).prod(1)
    x = X.repeat(len(rows), 1)
    scripted(monkeypatch, Corruption(torch.where(rows, MASK, x), times, schedule.elbo_weight(times)))
    nats = process.nelbo(denoiser, x).nats
    expectation = (nats * probability * dt.repeat_interleave(len(SUBSETS))).sum().item()
    first, last = (1.0 - schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))).tolist()
    assert expectation == pytest.approx(nats_between(denoiser, first, last), rel=1e-8)
    if not isinstance(schedule, (LogLinearSchedule, GeometricSchedule)):  # those that reach both ends
        assert expectation == pytest.approx(any_order_nats(denoiser), rel=1e-8)


@every_schedule
def test_the_bound_by_count_is_the_any_order_enumeration(
    schedule: MaskingSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = TableDenoiser()
    process = MaskedDiffusion(MASK, schedule)
    hidden = torch.tensor(SUBSETS)
    count = hidden.sum(1)
    probability = torch.tensor([1.0 / LENGTH / math.comb(LENGTH, int(k)) for k in count], dtype=torch.float64)
    x = X.repeat(len(SUBSETS), 1)
    size = torch.full_like(count, LENGTH)
    scripted(
        monkeypatch,
        Corruption(torch.where(hidden, MASK, x), process.time_of_count(count, size), (size / count).double()),
    )
    expectation = (process.nelbo(denoiser, x).nats * probability).sum().item()
    assert expectation == pytest.approx(any_order_nats(denoiser), rel=1e-6)


@every_schedule
def test_the_default_by_time_is_the_any_order_enumeration_too(
    schedule: MaskingSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Levels by quadrature and masks by enumeration are dictated; weights, times and states are the library's own."""
    denoiser, process = TableDenoiser(), MaskedDiffusion(MASK, schedule)
    nodes, node_weights = np.polynomial.legendre.leggauss(6)
    level, width = torch.from_numpy((nodes + 1.0) / 2.0), torch.from_numpy(node_weights / 2.0)
    hidden = torch.tensor(SUBSETS).repeat(len(level), 1)
    levels, widths = (each.repeat_interleave(len(SUBSETS)) for each in (level, width))
    monkeypatch.setattr(StratifiedTime, "_unit_sample", lambda *_: levels)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.where(hidden, 2.0, -1.0))
    nats = process.nelbo(denoiser, X.repeat(len(hidden), 1)).nats
    probability = torch.where(hidden, levels[:, None], 1.0 - levels[:, None]).prod(1)
    assert float((nats * probability * widths).sum()) == pytest.approx(any_order_nats(denoiser), rel=1e-6)


def replicate(process: MaskedDiffusion, seed: int, **settings: object) -> tuple[float, float]:
    """Mean and standard error of the bound over 300 independent batches of 32."""
    generator = Generator().manual_seed(seed)
    denoiser = TableDenoiser()
    x = X.repeat(32, 1)
    means = torch.stack(
        [process.nelbo(denoiser, x, generator=generator, **settings).nats.mean() for _ in range(300)]  # type: ignore[arg-type]
    )
    return means.mean().item(), means.std().item() / math.sqrt(len(means))


@every_schedule
@pytest.mark.parametrize("time_distribution", [None, UniformTime(low=1e-3), BetaTime(low=1e-3, a=1.0, b=1.5)], ids=repr)
def test_the_estimate_by_time_is_unbiased(
    schedule: MaskingSchedule, time_distribution: TimeDistribution | None
) -> None:
    mean, standard_error = replicate(
        MaskedDiffusion(MASK, schedule), 17, by="time", time_distribution=time_distribution
    )
    ends = 1.0 - schedule.alpha(torch.tensor([1e-3, 1.0], dtype=torch.float64))
    assert standard_error < 0.03 * mean
    assert abs(mean - nats_between(TableDenoiser(), *ends.tolist())) < 5 * standard_error


def test_the_estimate_by_count_is_unbiased_and_varies_less_than_by_time() -> None:
    process = MaskedDiffusion(MASK)
    mean, standard_error = replicate(process, 18, by="count")
    assert standard_error < 0.03 * mean
    assert abs(mean - any_order_nats(TableDenoiser())) < 5 * standard_error
    assert standard_error < 0.8 * replicate(process, 18, by="time")[1]


def test_uneven_micro_batches_add_up_to_the_whole_batch(monkeypatch: pytest.MonkeyPatch, seeded: Seeded) -> None:
    """The loss is per token of the whole batch, so sums, not means, are what micro-batches pass on."""
    process = MaskedDiffusion(MASK)
    denoiser = TableDenoiser()
    x = torch.randint(2, (6, LENGTH), generator=seeded(19))
    generation_mask = torch.arange(LENGTH) < torch.tensor([1, 1, 1, 3, 3, 2])[:, None]
    drawn = process.draw_corruption(x, by="count", generation_mask=generation_mask, generator=seeded(20))
    scripted(monkeypatch, drawn)
    whole = process.nelbo(denoiser, x, generation_mask=generation_mask)
    parts = []
    for rows in (slice(0, 3), slice(3, 4), slice(4, 6)):
        scripted(monkeypatch, Corruption(*(field[rows] for field in drawn)))
        parts.append(process.nelbo(denoiser, x[rows], generation_mask=generation_mask[rows]))
    nats = torch.cat([part.nats for part in parts])
    num_tokens = torch.cat([part.num_tokens for part in parts])
    torch.testing.assert_close(nats, whole.nats)
    assert num_tokens.tolist() == [1, 1, 1, 3, 3, 2]
    torch.testing.assert_close(nats.sum() / num_tokens.sum(), whole.loss)
    mean_of_means = torch.stack([part.loss for part in parts]).mean()
    assert abs(mean_of_means - whole.loss) > 1e-2


def test_padding_that_looks_like_the_mask_is_not_counted(seeded: Seeded) -> None:
    process = MaskedDiffusion(MASK)
    padded = torch.tensor([[0, 1, MASK], [1, MASK, MASK]])
    out = process.nelbo(TableDenoiser(), padded, by="count", generation_mask=padded != MASK, generator=seeded(21))
    assert out.num_tokens.tolist() == [2, 1]
    assert out.nats.isfinite().all()


@pytest.mark.parametrize("by", ["time", "count"])
def test_sequences_that_are_read_a_few_at_once_are_corrupted_together(by: Any, seeded: Seeded) -> None:
    process, x_0 = MaskedDiffusion(3), torch.randint(3, (6, 4), generator=seeded(0))
    seen = []

    def denoiser(x_t: Tensor, t: Tensor, *, label: Tensor, scale: float) -> Tensor:
        seen.append(len(x_t))
        return torch.arange(4.0) * (scale + label[:, None, None] + x_t[..., None] + t[:, None, None])

    given: dict[str, Any] = {"by": by, "model_kwargs": {"label": torch.arange(6.0), "scale": 2.0}}
    whole = process.nelbo(denoiser, x_0, generator=seeded(1), **given)
    parts = process.nelbo(denoiser, x_0, generator=seeded(1), batch_size=4, **given)
    assert seen == [6, 4, 2]
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("by", ["time", "count"])
def test_a_row_with_nothing_to_mask_costs_nothing(by: str, seeded: Seeded) -> None:
    generation_mask = torch.tensor([[True] * LENGTH, [False] * LENGTH])
    x = X.repeat(2, 1)
    out = MaskedDiffusion(MASK).nelbo(TableDenoiser(), x, by=by, generation_mask=generation_mask, generator=seeded(22))  # type: ignore[arg-type]
    assert out.nats[1] == 0.0
    assert out.loss.isfinite()
    nothing = MaskedDiffusion(MASK).nelbo(TableDenoiser(), x, by=by, generation_mask=torch.zeros_like(generation_mask))  # type: ignore[arg-type]
    assert nothing.loss == 0.0


class TwoPart(nn.Module):
    """A network with ``features`` and ``project``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 8)
        self.mix = nn.Linear(8 * LENGTH, 8 * LENGTH)
        self.head = nn.Linear(8, VOCAB)

    def features(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.mix(self.embedding(x_t).flatten(1))).unflatten(1, (LENGTH, 8))

    def project(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.project(self.features(x_t, t))


@pytest.mark.parametrize("by", ["time", "count"])
def test_the_bound_is_the_same_whether_or_not_the_head_runs_alone(by: str, seeded: Seeded) -> None:
    torch.manual_seed(0)
    network = TwoPart()
    process = MaskedDiffusion(MASK)
    x = torch.randint(2, (16, LENGTH), generator=seeded(23))
    results = []
    for denoiser in (network, lambda x_t, t: network(x_t, t)):
        loss = process.nelbo(denoiser, x, by=by, generator=seeded(24)).loss  # type: ignore[arg-type]
        results.append((loss, *torch.autograd.grad(loss, list(network.parameters()))))
    for alone, full in zip(*results, strict=True):
        torch.testing.assert_close(alone, full, rtol=1e-5, atol=1e-6)


def test_conditioning_reaches_the_denoiser() -> None:
    heard = {}

    def denoiser(x_t: Tensor, t: Tensor, *, label: int) -> Tensor:
        heard["label"] = label
        return torch.zeros(1, LENGTH, VOCAB)

    MaskedDiffusion(MASK).nelbo(denoiser, X[None], model_kwargs={"label": 7})
    assert heard == {"label": 7}
