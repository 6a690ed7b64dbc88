"""Blocks with caches: the exact one changes no token, the approximate ones are the published algorithm."""

import pytest
import torch
from counting import chi_square_p, counts_of, seeded
from enumerated import advance, as_tensor, draws, probabilities, put
from fast_dllm import MASK, PlainDiT, PlainLlama, V, dit, generate, llama
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill import (
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    EntropyBoundedSampler,
    FirstHittingSampler,
    LinearSchedule,
    MaskedDiffusion,
    PathPlanningSampler,
    ReMaskingSampler,
    RGASampler,
)
from discrete_distill.samplers import prompted

PROCESS = MaskedDiffusion(MASK, LinearSchedule())
K = 4
INNER = {
    "ancestral": AncestralSampler(PROCESS, num_steps=3),
    "greedy": ConfidenceSampler(PROCESS, num_steps=3, greedy=True),
    "threshold": ConfidenceSampler(PROCESS, threshold=0.5),
    "factor": ConfidenceSampler(PROCESS, factor=1.0),
    "entropy-bounded": EntropyBoundedSampler(PROCESS, gamma=0.5),
    "first-hitting": FirstHittingSampler(PROCESS),
    "remasking": ReMaskingSampler(PROCESS, num_steps=3, eta=0.5),
    "path planning": PathPlanningSampler(PROCESS, num_steps=3),
}
BLOCK_CAUSAL = {"DiT": dit(K), "Llama": llama(K), "shifted Llama": llama(K, shifted=True)}
BOTH_WAYS = {"DiT": dit(), "Llama": llama(), "shifted Llama": llama(shifted=True)}


def batch_of(layout, side, seed):
    """Prompts with masks behind them, padded on a side; where tokens are real."""
    prompts = [torch.randint(MASK, (size,), generator=seeded(seed + n)).tolist() for n, (size, _) in enumerate(layout)]
    x, real = prompted(prompts, [size + length for size, length in layout], MASK)
    real = torch.ones_like(x, dtype=torch.bool) if real is None else real
    if side == "left":
        shift = (~real).sum(1, keepdim=True)
        places = (torch.arange(x.shape[1]) - shift) % x.shape[1]
        x, real = x.gather(1, places), real.gather(1, places)
    return prompts, torch.where(real, x, 0), real


layouts = st.lists(st.tuples(st.integers(1, 11), st.integers(1, 11)), min_size=1, max_size=3)
sides = st.sampled_from(["left", "right"])


@pytest.mark.parametrize("kind", BLOCK_CAUSAL)
@settings(max_examples=25)
@given(layouts, sides, st.sampled_from(list(INNER)), st.sampled_from([None, 0]), st.integers(0, 10**6))
def test_the_exact_cache_changes_no_token(kind, layout, side, inner, end, seed) -> None:
    """Any batch, prompts of different lengths, padding on either side, sequences that end early."""
    network, (_, x_init, real) = BLOCK_CAUSAL[kind], batch_of(layout, side, seed)
    options = {"block_length": K, "align": "start", "end_token_id": end}
    outs = [
        BlockwiseSampler(INNER[inner], cache=cache, **options)(
            network, x_init=x_init, attention_mask=real, generator=seeded(seed), return_history=True
        )
        for cache in (None, "exact")
    ]
    assert outs[0].sequences.tolist() == outs[1].sequences.tolist()
    torch.testing.assert_close(outs[0].log_probs, outs[1].log_probs, rtol=1e-3, atol=1e-4)
    assert [state.tolist() for state in outs[0].history] == [state.tolist() for state in outs[1].history]
    assert outs[0].nfe == outs[1].nfe
    assert outs[0].num_tokens.tolist() == outs[1].num_tokens.tolist()
    assert outs[0].history[-1].tolist() == outs[0].sequences.tolist()


TIMED = dit(time_conditioning=True, step_conditioning=True)


@pytest.mark.parametrize("kind", ["DiT", "timed"])
@pytest.mark.parametrize("cache", [None, "exact", "prefix", "dual"])
@pytest.mark.parametrize("inner", INNER)
def test_a_sequence_in_a_batch_is_the_sequence_alone(cache, inner, kind) -> None:
    """A network that is passed the time keeps the keys of each sequence at the time of its own first step."""
    if kind == "timed" and cache == "exact":
        return  # Reading by blocks goes without the time.
    layout = [(3, 9), (10, 2), (6, 6)]
    for side in ("left", "right"):
        _, x_init, real = batch_of([*layout, (1, 3)], side, 5)
        network = TIMED if kind == "timed" else (BLOCK_CAUSAL if cache == "exact" else BOTH_WAYS)["DiT"]
        sampler = BlockwiseSampler(INNER[inner], block_length=K, align="start", cache=cache, end_token_id=1)
        whole = sampler(network, x_init=x_init, attention_mask=real, generator=seeded(2))
        for row in range(4):
            part = slice(row, row + 1)
            alone = sampler(network, x_init=x_init[part], attention_mask=real[part], generator=seeded(2), first_row=row)
            assert alone.sequences.tolist() == whole.sequences[part].tolist(), (side, row)
            torch.testing.assert_close(alone.log_probs, whole.log_probs[part], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", BOTH_WAYS)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@settings(max_examples=20)
@given(layouts, sides, st.integers(1, 6), st.sampled_from([None, 1, 3]), st.integers(0, 10**6))
def test_approximate_caches_are_those_of_fast_dllm(kind, cache, layout, side, block_length, steps, seed) -> None:
    network, (prompts, x_init, real) = BOTH_WAYS[kind], batch_of(layout, side, seed)
    plain = PlainDiT(network) if kind == "DiT" else PlainLlama(network)
    rule = {"threshold": 0.4} if steps is None else {"num_steps": steps}
    sampler = BlockwiseSampler(ConfidenceSampler(PROCESS, greedy=True, **rule), block_length=block_length, cache=cache)
    out = sampler(network, x_init=x_init, attention_mask=real)
    calls = []
    for row, (prompt, (_, length)) in enumerate(zip(prompts, layout, strict=True)):
        expected, count = generate(
            plain, prompt, length, block_length, dual=cache == "dual", steps=steps, threshold=0.4
        )
        assert out.sequences[row][real[row]].tolist() == expected
        calls.append(count)
    assert out.nfe >= max(calls)
    assert len(layout) > 1 or out.nfe == calls[0]


@pytest.mark.parametrize("kind", BOTH_WAYS)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_blocks_of_one_step_need_no_approximation(kind, cache) -> None:
    _, x_init, real = batch_of([(3, 9), (7, 4)], "right", 1)
    outs = [
        BlockwiseSampler(AncestralSampler(PROCESS, num_steps=1), block_length=3, cache=each)(
            BOTH_WAYS[kind], x_init=x_init, attention_mask=real, generator=seeded(3)
        )
        for each in (None, cache)
    ]
    assert outs[0].sequences.tolist() == outs[1].sequences.tolist()
    more = BlockwiseSampler(INNER["greedy"], block_length=9, cache=cache)
    plain = BlockwiseSampler(INNER["greedy"], block_length=9)
    stale = [each(BOTH_WAYS[kind], x_init=x_init, attention_mask=real).log_probs for each in (plain, more)]
    assert not torch.allclose(*stale)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_steps_and_times_reach_a_network_with_a_cache(cache) -> None:
    """A network that is passed its step draws the same in blocks of one step, whoever takes part in it."""
    network = dit(time_conditioning=True, step_conditioning=True)
    _, x_init, real = batch_of([(3, 4), (5, 2)], "left", 1)
    for inner in (AncestralSampler(PROCESS, num_steps=1), FirstHittingSampler(PROCESS)):
        outs = [
            BlockwiseSampler(inner, block_length=1, cache=each)(
                network, x_init=x_init, attention_mask=real, generator=seeded(4)
            ).sequences
            for each in (None, cache)
        ]
        assert outs[0].tolist() == outs[1].tolist()


def test_samples_follow_the_enumerated_distribution() -> None:
    """One step a block: a product over blocks, each given those before it."""
    network, length, count = dit(2), 3, 20_000
    distribution = {(MASK,) * length: 1.0}
    for block in ((0, 1), (2,)):

        def moves(state, block=block):
            rows = probabilities(network, state, 1.0, MASK)
            return ((p, put(state, tokens)) for p, tokens in draws({i: rows[i] for i in block}))

        with torch.no_grad():
            distribution = advance(distribution, moves)
    inner = AncestralSampler(PROCESS, num_steps=1)
    sampler = BlockwiseSampler(inner, block_length=2, align="start", cache="exact")
    out = sampler(network, (count, length), generator=seeded(1))
    assert chi_square_p(counts_of(out.sequences, V - 1, MASK), as_tensor(distribution, V - 1, MASK)) > 1e-3


class Passes:
    """How many tokens each pass of a network reads."""

    def __init__(self, network) -> None:
        self.sizes = []
        self.hook = network.vocab_embed.register_forward_hook(lambda _, ids, __: self.sizes.append(tuple(ids[0].shape)))

    def of(self, sampler, network, **given):
        self.sizes.clear()
        return sampler(network, **given), list(self.sizes)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_passes_at_the_times_of_single_sequences_are_counted(cache) -> None:
    """Sequences whose first steps in a block are others are read in passes of their own."""
    network = dit(time_conditioning=True)
    x_init = torch.full((3, 8), MASK)
    sampler = BlockwiseSampler(AncestralSampler(PROCESS, num_steps=6), block_length=2, cache=cache)
    out, sizes = Passes(network).of(sampler, network, x_init=x_init, generator=seeded(0))
    whole = [rows for rows, length in sizes if length == 8]
    assert len(sizes) == out.network_evaluations > out.nfe
    # Each sequence once in each of its four blocks; without a prompt the first suffix is a whole sequence too.
    assert sum(whole) == 12 if cache == "dual" else sum(whole) >= 12


def test_passes_and_commits_are_counted() -> None:
    """A prompt of two blocks, three blocks behind it, two steps a block."""
    x_init = torch.cat((torch.ones(2, 2 * K, dtype=torch.long), torch.full((2, 3 * K), MASK)), dim=1)
    inner = ConfidenceSampler(PROCESS, num_steps=2, greedy=True)
    expected = {
        "exact": [(2, 2 * K), *[(2, K)] * 3, *[(2, K)] * 3, *[(2, K)] * 2],
        "prefix": [each for left in (3, 2, 1) for each in ((2, 5 * K), (2, left * K))],
        "dual": [each for _ in range(3) for each in ((2, 5 * K), (2, K))],
    }
    for cache, sizes in expected.items():
        network = dit(K if cache == "exact" else None)
        sampler = BlockwiseSampler(inner, block_length=K, align="start", cache=cache)
        out, seen = Passes(network).of(sampler, network, x_init=x_init)
        assert seen == sizes
        assert (out.nfe, out.commits) == (6, 2 if cache == "exact" else 0)
        assert out.network_evaluations == len(sizes)
        assert out.tokens_per_forward == 3 * K / (6 + out.commits)


@pytest.mark.parametrize("cache", [None, "exact", "prefix", "dual"])
def test_sequences_that_end_drop_out_and_are_filled_up(cache) -> None:
    """The first sequence draws the end token in its first block, the second never does."""
    network = dit(K if cache == "exact" else None)
    x_init = torch.full((2, 3 * K), MASK)
    x_init[:, 0] = torch.tensor([1, 5])
    options = {"block_length": K, "align": "start", "cache": cache}
    inner = AncestralSampler(PROCESS, num_steps=1)
    plain = BlockwiseSampler(inner, **options)(network, x_init=x_init, generator=seeded(0)).sequences
    (end,) = {int(token) for token in plain[0, 1:K]} - {int(token) for token in plain[1]}
    place = plain[0].tolist().index(end)
    sampler = BlockwiseSampler(inner, **options, end_token_id=end)
    out, sizes = Passes(network).of(sampler, network, x_init=x_init, generator=seeded(0))
    assert out.sequences[0].tolist() == plain[0, :place].tolist() + [end] * (3 * K - place)
    assert out.sequences[1].tolist() == plain[1].tolist()
    assert out.num_tokens.tolist() == [place, 3 * K - 1]
    assert bool((out.log_probs[0, place + 1 :] == 0).all())
    assert [rows for rows, _ in sizes] == [2] + [1] * (len(sizes) - 1)


def test_room_behind_prompts_is_that_of_masks() -> None:
    for side in ("left", "right"):
        _, x_init, real = batch_of([(3, 6), (7, 6)], side, 2)
        prompts, _, _ = batch_of([(3, 6), (7, 6)], side, 2)
        width = 7
        ids, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            place = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
            ids[row, place], mask[row, place] = torch.tensor(prompt), True
        options = {"block_length": 4, "cache": "dual"}
        stated = BlockwiseSampler(INNER["ancestral"], **options)(
            BOTH_WAYS["DiT"], x_init=x_init, attention_mask=real, generator=seeded(0)
        )
        made = BlockwiseSampler(INNER["ancestral"], max_new_tokens=6, **options)(
            BOTH_WAYS["DiT"], x_init=ids, attention_mask=mask, generator=seeded(0)
        )
        assert made.sequences.tolist() == stated.sequences.tolist()
    no_padding = BlockwiseSampler(INNER["greedy"], block_length=4, max_new_tokens=5)
    out = no_padding(BOTH_WAYS["DiT"], x_init=ids[:, -2:])
    assert out.sequences.shape == (2, 7)
    assert out.num_tokens.tolist() == [5, 5]


def test_a_stream_yields_blocks_as_they_are_finished() -> None:
    _, x_init, real = batch_of([(3, 9), (7, 4)], "right", 1)
    network = BLOCK_CAUSAL["DiT"]
    sampler = BlockwiseSampler(INNER["ancestral"], block_length=K, align="start", cache="exact", end_token_id=0)
    whole = sampler(network, x_init=x_init, attention_mask=real, generator=seeded(3)).sequences
    passes, filled, sizes = Passes(network), x_init.clone(), []
    for block in sampler.stream(network, x_init=x_init, attention_mask=real, generator=seeded(3)):
        sizes.append(len(passes.sizes))
        rows = block.rows[:, None].expand_as(block.positions)
        filled[rows[block.real], block.positions[block.real]] = block.tokens[block.real]
    reached = filled != MASK
    assert torch.equal(filled[reached], whole[reached])
    assert sizes == sorted(set(sizes))
    assert bool((whole[~reached] == 0).all())


class Refuses(torch.nn.Module):
    """Not to be called."""

    def forward(self, x, t, **_):
        raise AssertionError("a pass was made")


def test_bad_input_is_refused_before_a_pass() -> None:
    inner = INNER["greedy"]
    x_init = torch.full((2, 8), MASK)

    def exact(**options):
        return BlockwiseSampler(inner, **{"block_length": K, "align": "start", "cache": "exact", **options})

    passes = [Passes(BLOCK_CAUSAL["DiT"]), Passes(BOTH_WAYS["DiT"])]
    for wrong, network, given_in, error, value in (
        (exact(block_length=2), BLOCK_CAUSAL["DiT"], {}, ValueError, "2"),
        (exact(), BOTH_WAYS["DiT"], {}, ValueError, "exact"),
        (exact(), BLOCK_CAUSAL["DiT"], {"model_kwargs": {"topic": 1}}, TypeError, "topic"),
        (exact(), Refuses(), {}, TypeError, "Refuses"),
        (BlockwiseSampler(inner, block_length=K, cache="dual"), BLOCK_CAUSAL["DiT"], {}, ValueError, "dual"),
        (BlockwiseSampler(inner, block_length=K, cache="prefix"), lambda x, t: x, {}, TypeError, "BlockDenoiser"),
        (exact(max_new_tokens=K), BLOCK_CAUSAL["DiT"], {"x_init": torch.zeros(1, 69).long()}, ValueError, "64"),
        (
            exact(),
            BLOCK_CAUSAL["DiT"],
            {"attention_mask": torch.tensor([[1, 0] * 4] * 2).bool()},
            ValueError,
            "gap|padding",
        ),
        (
            exact(max_new_tokens=K),
            BLOCK_CAUSAL["DiT"],
            {"x_init": None, "shape": (2, 8)},
            ValueError,
            "max_new_tokens = 4",
        ),
    ):
        with pytest.raises(error, match=value):
            wrong(network, **{"x_init": x_init, **given_in})
    assert not passes[0].sizes + passes[1].sizes
    guided = RGASampler(PROCESS, reward=lambda x, t: x.float().sum(1), num_steps=2, num_candidates=2)
    for options, error, value in (
        ({"end_token_id": MASK}, ValueError, str(MASK)),
        ({"end_token_id": "."}, TypeError, r"'\.'"),
        ({"max_new_tokens": 0}, ValueError, "0"),
        ({"cache": "exact", "align": "prompt"}, ValueError, "prompt"),
        ({"cache": "none"}, ValueError, "none"),
        ({"cache": "dual", "sampler": guided}, ValueError, "RGASampler"),
        ({"cache": "dual", "sampler": ConfidenceSampler(PROCESS, cfg_scale=2.0)}, ValueError, "2.0"),
    ):
        with pytest.raises(error, match=value):
            BlockwiseSampler(**{"sampler": inner, "block_length": K, **options})
