from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_distributions import chi_square, distribution, entropy_of
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from discrete_distill.kernels import sample_rows
from discrete_distill.kernels.reference_sampling import (
    LANES,
    inverse_cdf,
    lane_masses,
    reference_sample_rows,
    rows_per_chunk,
)

INF = float("inf")


def draw(logits, **options):
    options = {"seed": 11, "positions_R": torch.arange(len(logits)), "step": 2, "backend": "torch", **options}
    return sample_rows(logits, **options)


@pytest.mark.parametrize("vocab_size", [2, 7, 1500])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "mask": "last"},
        {"mask": "inside"},
        {"tilt": True, "mask": "last", "temperature": 0.8},
    ],
)
def test_tokens_follow_the_distribution(vocab_size, options):
    g = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(1, vocab_size, generator=g) * 1.5
    options = dict(options)
    where = options.pop("mask", None)
    if where is not None and vocab_size > 2:
        options["mask_token_id"] = {"last": vocab_size - 1, "inside": vocab_size // 2}[where]
    if options.pop("tilt", False):
        options |= {"tilt": torch.randn(1, vocab_size, generator=g) * 2, "tilt_scale": 1.3}
    sample = draw(logits, num_candidates=200_000, **options)
    log_probs = distribution(logits, **options)
    statistic, critical = chi_square(torch.bincount(sample.tokens[0], minlength=vocab_size), log_probs[0].exp())
    assert statistic < critical
    assert torch.allclose(sample.log_probs[0].double(), log_probs[0, sample.tokens[0]], atol=1e-5)


def test_distribution_over_rows_and_over_steps():
    """Independent draws come from the row number and from the step as well as from the candidate."""
    logits = torch.tensor([[0.3, -1.0, 1.1, 0.0, -0.4]])
    for rows, step, count in ((torch.arange(50_000), 0, 1), (torch.arange(5), 0, 1)):
        if len(rows) > 5:
            tokens = draw(logits.expand(len(rows), -1), positions_R=rows, step=step).tokens[:, 0]
        else:
            tokens = torch.cat([draw(logits.expand(5, -1), step=s).tokens[:, 0] for s in range(1500)])
        statistic, critical = chi_square(torch.bincount(tokens, minlength=5), distribution(logits)[0].exp())
        assert statistic < critical, count


def test_tail_probabilities_of_1e_7_are_unbiased():
    """1000 tokens of probability 1e-7 each: their total 1e-4 over 4 million draws."""
    tail, hits, draws = 1000, 0, 2**19
    logits = torch.zeros(1, 2048)
    logits[0, -tail:] = torch.log(torch.tensor(1e-7 * 1048 / (1 - tail * 1e-7)))
    for seed in range(8):
        hits += int((draw(logits, seed=seed, num_candidates=draws).tokens >= 1048).sum())
    expected = 8 * draws * tail * 1e-7
    assert abs(hits - expected) < 4 * expected**0.5


def test_exact_measure_of_the_words_that_reach_a_lane_of_probability_1e_7():
    """The number of 32-bit words that map to a lane is its probability, to one word."""
    probabilities = torch.full((1, LANES), (1 - 1e-7) / (LANES - 1), dtype=torch.float64)
    lane = 700
    probabilities[0, lane] = 1e-7
    masses = lane_masses(probabilities.float())
    cumulative = masses.double().cumsum(-1)[0]
    ends = [round(float(edge / cumulative[-1]) * 2**32) for edge in (cumulative[lane - 1], cumulative[lane])]
    words = torch.arange(ends[0] - 40, ends[1] + 40)
    index, _ = inverse_cdf(masses, ((words.double() + 0.5) * 2.0**-32)[None])
    reached = int((index == lane).sum())
    assert abs(reached - 1e-7 * 2**32) <= 1.0
    assert index.min() == lane - 1
    assert index.max() == lane + 1


@given(
    st.integers(1, 2500),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.floats(0.2, 3.0),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_log_prob_and_entropy_agree_with_fp64(vocab_size, rows, candidates, dtype, temperature, tilted, seed):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, vocab_size, generator=g) * 4).to(dtype)
    options = {"temperature": temperature}
    if vocab_size > 1:
        options["mask_token_id"] = seed % vocab_size
    if tilted:
        options |= {"tilt": torch.randn(rows, vocab_size, generator=g), "tilt_scale": 2.0}
    sample = draw(logits, num_candidates=candidates, return_entropy=True, seed=seed, **options)
    expected = distribution(logits, **options)
    assert sample.tokens.shape == (rows, candidates)
    assert ((sample.tokens >= 0) & (sample.tokens < vocab_size)).all()
    assert (sample.tokens != options.get("mask_token_id", -5)).all()
    torch.testing.assert_close(sample.log_probs.double(), expected.gather(1, sample.tokens), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sample.entropy.double(), entropy_of(expected), atol=2e-5, rtol=1e-5)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 1300))
@settings(max_examples=25, deadline=None)
def test_tokens_do_not_depend_on_chunking_or_batch_split(rows, part, vocab_size):
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(rows))
    numbers = torch.arange(rows) + 10**6
    whole = draw(logits, positions_R=numbers, num_candidates=2).tokens
    split = [
        draw(a, positions_R=b, num_candidates=2).tokens
        for a, b in zip(logits.split(part), numbers.split(part), strict=True)
    ]
    assert torch.equal(whole, torch.cat(split))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    assert torch.equal(whole[order], draw(logits[order], positions_R=numbers[order], num_candidates=2).tokens)
    zero, one = torch.tensor(0), torch.tensor(1)
    chunked = reference_sample_rows(
        logits, zero + 11, numbers, one + 1, 2, 1.0, -1, None, None, None, False, chunk_rows=part
    )
    assert torch.equal(whole, chunked[0])


def test_fewer_candidates_are_the_first_ones_of_more():
    logits = torch.randn(5, 300)
    assert torch.equal(draw(logits, num_candidates=3).tokens, draw(logits, num_candidates=8).tokens[:, :3])


def test_two_level_inverse_cdf_by_hand():
    """V = 3 lanes of one token each: the first word decides alone."""
    from discrete_distill.kernels.philox import STREAM_TOKEN, uniform

    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(4000, -1)
    u = uniform(11, row=torch.arange(4000), step=2, stream=STREAM_TOKEN)
    expected = (u >= 0.2).long() + (u >= 0.7).long()
    assert torch.equal(draw(logits).tokens[:, 0], expected)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_extreme_logits(offset):
    one = torch.full((3, 1100), -INF)
    one[0, 5], one[1, 1024], one[2, 1099] = offset, offset, offset
    sample = draw(one, return_entropy=True, num_candidates=4)
    assert torch.equal(sample.tokens[:, 0], torch.tensor([5, 1024, 1099]))
    assert (sample.log_probs == 0).all()
    assert (sample.entropy.abs() < 1e-6).all()
    equal = draw(torch.full((2, 1100), offset), return_entropy=True, temperature=0.3)
    assert torch.allclose(equal.entropy, torch.tensor(1100.0).log(), atol=1e-5)
    lowest = torch.full((2, 50), torch.finfo(torch.float32).min)
    lowest[:, 3] = offset
    assert (draw(lowest, temperature=0.5).tokens == 3).all()


def test_rows_with_nothing_to_draw_are_marked():
    logits = torch.zeros(4, 6)
    logits[0], logits[1, 2], logits[2, 4] = -INF, float("nan"), INF
    sample = draw(logits)
    assert sample.tokens[:3, 0].tolist() == [-1, -1, -1]
    assert sample.tokens[3, 0] >= 0
    assert sample.log_probs[:3].isnan().all()
    assert sample.log_probs[3].isfinite().all()


def test_inactive_rows_return_minus_one_and_leave_the_others_alone():
    logits = torch.randn(50, 200)
    logits[::2] = float("nan")  # an inactive row is not even read
    active = torch.arange(50) % 2 == 1
    sample = draw(logits, active_R=active, return_entropy=True, num_candidates=2)
    assert (sample.tokens[~active] == -1).all()
    assert (sample.log_probs[~active] == 0).all()
    assert (sample.entropy[~active] == 0).all()
    assert torch.equal(
        sample.tokens[active],
        draw(logits[active], positions_R=torch.arange(50)[active], num_candidates=2).tokens,
    )
    assert (draw(logits, active_R=torch.zeros(50, dtype=torch.bool)).tokens == -1).all()


@pytest.mark.parametrize("vocab_size", [900, 3000])
def test_strides_do_not_matter_and_nothing_is_written_to(vocab_size):
    base = torch.randn(6, vocab_size + 64)
    padded = base[:, 3 : vocab_size + 3]
    transposed = padded.t().contiguous().t()
    tilt = torch.randn(6, vocab_size)
    copies = base.clone(), tilt.clone()
    options = {
        "tilt": tilt,
        "tilt_scale": 2.0,
        "temperature": 0.7,
        "mask_token_id": 4,
        "return_entropy": True,
    }
    expected = draw(padded.contiguous(), **options)
    for view in (padded, transposed, padded.expand(6, -1)):
        assert torch.equal(draw(view, **options).tokens, expected.tokens)
    draw(padded), draw(transposed, return_entropy=True)
    assert torch.equal(base, copies[0])
    assert torch.equal(tilt, copies[1])


def test_scalars_may_be_tensors_and_seeds_are_64_bit():
    logits = torch.randn(20, 40)
    expected = draw(logits, seed=2**64 - 5, step=3).tokens
    assert torch.equal(expected, draw(logits, seed=torch.tensor([-5]), step=torch.tensor(3)).tokens)
    assert not torch.equal(expected, draw(logits, seed=2**32 - 5, step=3).tokens)
    assert not torch.equal(expected, draw(logits, seed=2**64 - 5, step=4).tokens)
    tilt = torch.randn(20, 40)
    a = draw(logits, tilt=tilt, tilt_scale=2.5)
    b = draw(logits, tilt=tilt, tilt_scale=torch.tensor(2.5))
    assert torch.equal(a.tokens, b.tokens)


def test_nothing_carries_a_gradient_and_no_rows_are_fine():
    logits = torch.randn(3, 5, requires_grad=True)
    assert not draw(logits).log_probs.requires_grad
    empty = draw(torch.zeros(0, 5), return_entropy=True, num_candidates=2)
    assert empty.tokens.shape == (0, 2)
    assert empty.entropy.shape == (0,)


class PeakBytes(TorchDispatchMode):
    """The most bytes alive at one time among tensors made inside; views of `given` do not count."""

    def __init__(self, *given):
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_reference_holds_at_most_two_chunks_of_rows(dtype, entropy):
    vocab_size, rows = 50_258, 40
    logits = torch.randn(rows, vocab_size).to(dtype)
    zero = torch.tensor(0)
    chunk = rows_per_chunk(logits.device, vocab_size)
    assert rows > 3 * chunk
    active = torch.arange(rows) % 8 != 0
    for tilt in (None, torch.randn(rows, vocab_size)):
        with PeakBytes(logits, *([] if tilt is None else [tilt])) as memory:
            reference_sample_rows(
                logits, zero, torch.arange(rows), zero, 1, 1.25, vocab_size - 1,
                tilt, None if tilt is None else torch.tensor(1.0), active, entropy,
            )  # fmt: skip
        lanes = chunk * LANES * 12 + 2**20
        assert memory.peak <= 2 * chunk * vocab_size * 4 + lanes


def test_errors_name_the_value_and_the_remedy():
    logits = torch.randn(3, 5)
    for error, match, options in [
        (ValueError, "temperature is 0", {"temperature": 0.0}),
        (ValueError, "temperature is nan", {"temperature": float("nan")}),
        (ValueError, "num_candidates is 0", {"num_candidates": 0}),
        (ValueError, "mask_token_id is 5 and the logits have 5", {"mask_token_id": 5}),
        (ValueError, "tilt and tilt_scale go together", {"tilt": logits}),
        (ValueError, r"tilt has shape \(3, 4\)", {"tilt": logits[:, 1:], "tilt_scale": 1.0}),
        (ValueError, "tilt_scale is inf", {"tilt": logits, "tilt_scale": INF}),
        (ValueError, r"positions_R has shape \(2,\)", {"positions_R": torch.arange(2)}),
        (TypeError, "positions_R is torch.int32", {"positions_R": torch.arange(3, dtype=torch.int32)}),
        (TypeError, "active_R is torch.int64", {"active_R": torch.ones(3, dtype=torch.int64)}),
        (ValueError, r"active_R has shape", {"active_R": torch.ones(2, dtype=torch.bool)}),
        (TypeError, "seed is 0.5", {"seed": 0.5}),
        (TypeError, "step is a tensor of torch.float32", {"step": torch.zeros(1)}),
        (ValueError, r"seed has shape \(2,\)", {"seed": torch.arange(2)}),
        (ValueError, "backend is 'cuda'", {"backend": "cuda"}),
    ]:
        with pytest.raises(error, match=match):
            draw(logits, **options)
    with pytest.raises(ValueError, match=r"logits have shape \(5,\)"):
        draw(logits[0, :5])
    with pytest.raises(TypeError, match=r"logits are torch.int64"):
        draw(torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="only class is the mask token"):
        draw(logits[:, :1], mask_token_id=0)
