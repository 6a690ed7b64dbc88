"""Dream and LLaDA decode with the caches of their published code: Fast-dLLM's algorithm, token for token."""

import warnings

import pytest
import torch
from fast_dllm import MASK, generate
from hypothesis import given, settings
from hypothesis import strategies as st
from published_calls import (
    Dream,
    ForgetfulDream,
    ListedDream,
    ListedLLaDA,
    OwnLLaDA,
    PlainPublished,
    RefusingDream,
    UnturnedDream,
)

from discrete_distill import (
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    FirstHittingSampler,
    LinearSchedule,
    MaskedDiffusion,
    as_denoiser,
)
from discrete_distill.models import BlockDenoiser
from discrete_distill.samplers import prompted

PROCESS = MaskedDiffusion(MASK, LinearSchedule())
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def denoiser_of(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is given up
        return as_denoiser(kind())


DREAM = denoiser_of(Dream)
LISTED = {"LLaDA": denoiser_of(ListedLLaDA), "Dream": denoiser_of(ListedDream)}


def ids(*shape, seed=0):
    return torch.randint(MASK, shape, generator=torch.Generator().manual_seed(seed))


def batch_of(layout, side, seed):
    """Prompts with masks behind them, padded on a side; where tokens are real."""
    prompts = [ids(size, seed=seed + number).tolist() for number, (size, _) in enumerate(layout)]
    x, real = prompted(prompts, [size + length for size, length in layout], MASK)
    real = torch.ones_like(x, dtype=torch.bool) if real is None else real
    if side == "left":
        places = (torch.arange(x.shape[1]) - (~real).sum(1, keepdim=True)) % x.shape[1]
        x, real = x.gather(1, places), real.gather(1, places)
    return prompts, torch.where(real, x, 0), real


rules = st.sampled_from([{"threshold": 0.4}, {"num_steps": 1}, {"num_steps": 3}])
caches = st.sampled_from(["prefix", "dual"])


def sampler_of(rule, block_length, cache):
    return BlockwiseSampler(ConfidenceSampler(PROCESS, greedy=True, **rule), block_length=block_length, cache=cache)


def expected(denoiser, prompt, length, block_length, cache, rule):
    rule = {"steps": None, "threshold": None} | {name.removeprefix("num_"): value for name, value in rule.items()}
    return generate(PlainPublished(denoiser), prompt, length, block_length, dual=cache == "dual", **rule)[0]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 11)), min_size=1, max_size=3),
    st.sampled_from(["left", "right"]), caches, rules, st.integers(1, 6), st.integers(0, 10**6),
)  # fmt: skip
def test_dream_by_its_own_code(layout, side, cache, rule, block_length, seed) -> None:
    """Rows of any lengths: each has the tokens of the published algorithm by itself."""
    prompts, x_init, real = batch_of(layout, side, seed)
    out = sampler_of(rule, block_length, cache)(DREAM, x_init=x_init, attention_mask=real)
    for row, (prompt, (_, length)) in enumerate(zip(prompts, layout, strict=True)):
        tokens = expected(DREAM, prompt, length, block_length, cache, rule)
        assert out.sequences[row][real[row]].tolist() == tokens


@pytest.mark.parametrize("kind", LISTED)
@settings(max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 11), caches, rules, st.integers(1, 6), st.integers(0, 10**6)
)
def test_lists_of_keys(kind, batch, size, length, cache, rule, block_length, seed) -> None:
    prompts, x_init, _ = batch_of([(size, length)] * batch, "right", seed)
    out = sampler_of(rule, block_length, cache)(LISTED[kind], x_init=x_init)
    tokens = [expected(LISTED[kind], prompt, length, block_length, cache, rule) for prompt in prompts]
    assert out.sequences.tolist() == tokens


@pytest.mark.parametrize("denoiser", [DREAM, *LISTED.values()], ids=["Dream", *(f"listed {name}" for name in LISTED)])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_blocks_of_one_step_need_no_approximation_and_sequences_may_end(denoiser, cache) -> None:
    _, x_init, _ = batch_of([(5, 9)] * 4, "right", 3)
    for inner, block_length in ((AncestralSampler(PROCESS, num_steps=1), 3), (FirstHittingSampler(PROCESS), 1)):
        plain = BlockwiseSampler(inner, block_length=block_length)
        drawn = plain(denoiser, x_init=x_init, generator=torch.Generator().manual_seed(1)).sequences[:, 5:11]
        end = next(token for token in range(MASK) if 0 < int((drawn == token).any(1).sum()) < 4)
        outs = [
            BlockwiseSampler(inner, block_length=block_length, cache=each, end_token_id=end)(
                denoiser, x_init=x_init, generator=torch.Generator().manual_seed(1)
            )
            for each in (None, cache)
        ]
        assert outs[0].sequences.tolist() == outs[1].sequences.tolist()
        assert len(set(outs[0].num_tokens.tolist())) > 1


@pytest.mark.parametrize("kind", LISTED)
def test_a_part_against_a_list_is_read_and_the_list_stays_as_it_was(kind) -> None:
    denoiser, x = LISTED[kind], ids(3, 9)
    cache, whole = denoiser.prefill(x), denoiser(x, torch.zeros(3))
    for low, high in ((2, 5), (0, 4), (5, 9), (7, 9), (2, 5)):
        starts = torch.full((3,), low)
        part = denoiser.denoise(x[:, low:high], torch.zeros(3), cache, starts=starts)
        torch.testing.assert_close(part, whole[:, low:high], **CLOSE)
        other = denoiser.denoise(ids(3, high - low, seed=1), torch.zeros(3), cache, starts=starts)
        assert not torch.allclose(part, other, **CLOSE)
    some = cache.rows(torch.tensor([2, 0]))
    part = denoiser.denoise(x[[2, 0], 3:6], torch.zeros(2), some, starts=torch.tensor([3, 3]))
    torch.testing.assert_close(part, whole[[2, 0], 3:6], **CLOSE)
    assert cache.nbytes > 2 * 2 * 3 * 9 * 16 * 4  # keys and values of two layers


@pytest.mark.parametrize("kind", LISTED)
def test_rows_at_different_places_are_refused_before_a_pass(kind, monkeypatch) -> None:
    denoiser = LISTED[kind]
    cache = denoiser.prefill(ids(2, 9))
    passes = []
    monkeypatch.setattr(denoiser.model, "run", lambda *_, **__: passes.append(1))
    for layout, side, masked in (
        ([(3, 6), (4, 6)], "left", True),
        ([(3, 6), (3, 5)], "right", True),
        ([(3, 6), (5, 4)], "right", False),
    ):
        _, x_init, real = batch_of(layout, side, 0)
        with pytest.raises(ValueError, match="one length"):
            sampler_of({"num_steps": 2}, 3, "dual")(denoiser, x_init=x_init, attention_mask=real if masked else None)
    with pytest.raises(ValueError, match=r"\[3, 4\].* 2"):
        denoiser.denoise(ids(2, 2), torch.zeros(2), cache, starts=torch.tensor([2, 3]))
    with pytest.raises(ValueError, match=r"-1"):
        denoiser.prefill(ids(2, 3), attention_mask=torch.tensor([[1, 1, 1], [0, 1, 1]]))
    assert not passes


@pytest.mark.parametrize("kind", [ForgetfulDream, UnturnedDream, RefusingDream])
def test_a_cache_that_does_not_work_is_found_out(kind) -> None:
    with pytest.warns(UserWarning, match="BlockDenoiser"):
        denoiser = as_denoiser(kind())
    assert not isinstance(denoiser, BlockDenoiser)
    x_init = torch.full((2, 6), MASK)
    with pytest.raises(TypeError, match="BlockDenoiser"):
        sampler_of({"num_steps": 2}, 3, "prefix")(denoiser, x_init=x_init)
    assert sampler_of({"num_steps": 2}, 3, None)(denoiser, x_init=x_init).sequences.shape == (2, 6)
    assert isinstance(as_denoiser(kind(), verify=False), BlockDenoiser)


def test_lladas_own_code_has_no_cache_and_the_error_says_what_has() -> None:
    denoiser = denoiser_of(OwnLLaDA)
    x = ids(2, 5)
    torch.testing.assert_close(denoiser(x, torch.zeros(2)), LISTED["LLaDA"](x, torch.zeros(2)))
    assert not isinstance(denoiser, BlockDenoiser)
    with pytest.raises(TypeError, match="Fast-dLLM"):
        sampler_of({"num_steps": 2}, 3, "prefix")(denoiser, x_init=torch.full((2, 6), MASK))


def test_half_precision_is_no_reason_for_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(as_denoiser(Dream().bfloat16()), BlockDenoiser)
