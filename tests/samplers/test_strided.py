"""The strided order: which masks share a step, the distribution of what is drawn, and the same on student paths."""

import itertools
from pathlib import Path

import pytest
import torch
from counting import chi_square_p, counts_of, seeded
from enumerated import RandomNetwork, advance, as_tensor, draws, probabilities, put
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from discrete_distill import (
    AncestralSampler,
    CudaGraphSampler,
    DiDiInstruct,
    DiDiInstructConfig,
    IntermediateStateMatcher,
    MaskedDiffusion,
    RGASampler,
    as_denoiser,
    exact,
    make_networks,
)
from discrete_distill.process import CosineSchedule, LogLinearSchedule, UniformTime
from discrete_distill.samplers import BlockwiseSampler, SamplerState, Stride
from discrete_distill.samplers.grid import unmask_flags

ROOT = Path(__file__).parents[2]
MASK, WORDS = 3, 3
PROCESS = MaskedDiffusion(MASK)
DRAWS = 20_000


class AnyLength:
    """Logits that depend on all tokens of the sequence, padding left out."""

    def __call__(self, x_t, t, /, attention_mask=None):
        weight = torch.arange(1.0, x_t.shape[1] + 1) % 5
        seen = (x_t * weight * (1 if attention_mask is None else attention_mask)).sum(1, keepdim=True)
        base = torch.stack([torch.sin(seen + 0.7 * weight + word) for word in range(MASK + 1)], dim=-1)
        return 2.0 * base


def steps_of(x_init, num_steps: int, *, seed: int = 0, times=None, attention_mask=None):
    """The step that reveals each position, int64 ``[B, L]``; -1 at what is given, ``num_steps`` at what is left."""
    state = SamplerState(PROCESS, AnyLength(), x_init=x_init, attention_mask=attention_mask, generator=seeded(seed))
    ends = torch.linspace(1.0, 0.0, num_steps + 1) if times is None else torch.tensor(times)
    flags, left = unmask_flags(state, ends, stride=Stride(num_steps, float(ends[0])))
    step = torch.full_like(x_init, -1)
    for index, each in enumerate([*flags, left]):
        step = torch.where(each, index, step)
    return step


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 10**6))
def test_masks_of_a_step_lie_as_many_masks_apart_as_there_are_steps(num_steps, length, seed) -> None:
    x_init = torch.full((5, length), MASK)
    x_init[torch.rand(5, length, generator=seeded(seed)) < 0.3] = 0
    for row, ids in zip(steps_of(x_init, num_steps, seed=seed), x_init, strict=True):
        generated = row[ids == MASK]
        assert bool((row[ids != MASK] == -1).all())
        assert bool(((generated[1:] - generated[:-1]) % num_steps == 1 % num_steps).all())
        assert generated.numel() == 0 or 0 <= int(generated.min()) <= int(generated.max()) < num_steps


@pytest.mark.parametrize("schedule", [LogLinearSchedule(), CosineSchedule()])
@pytest.mark.parametrize("times", [[1.0, 0.75, 0.5, 0.25, 0.0], [1.0, 0.9, 0.3, 0.2], [0.8, 0.35, 0.1]])
def test_each_position_is_revealed_at_the_time_of_the_reverse_process(schedule, times) -> None:
    """Chi-square of the step that reveals a position, against the probabilities of the unmasking draws."""
    process, num_steps = MaskedDiffusion(MASK, schedule), len(times) - 1
    state = SamplerState(process, AnyLength(), (DRAWS, 6), generator=seeded(5))
    flags, left = unmask_flags(state, torch.tensor(times), stride=Stride(num_steps, times[0]))
    hidden, expected = 1.0, []
    for t, s in itertools.pairwise(times):
        reveal = float(process.unmask_probability(torch.tensor(t), torch.tensor(s)))
        expected.append(hidden * reveal)
        hidden *= 1.0 - reveal
    expected = torch.tensor([*expected, hidden]).double()
    expected = expected / expected.sum()
    for position in range(6):
        counts = torch.stack([each[:, position].sum() for each in (*flags, left)]).double()
        seen = expected > 1e-9
        assert int(counts[~seen].sum()) == 0
        assert stats.chisquare(counts[seen].numpy(), (expected[seen] * DRAWS).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_samples_follow_the_distribution_by_enumeration(num_steps) -> None:
    network, length = RandomNetwork(WORDS, 3, seed=7), 3
    total: dict = {}
    for offset in range(num_steps):
        distribution = {(MASK,) * length: 1.0 / num_steps}
        for step in range(num_steps):
            places = [r for r in range(length) if (r + offset) % num_steps == step]

            def moves(state, places=places):
                rows = probabilities(network, state, 0.5, MASK)
                return ((share, put(state, tokens)) for share, tokens in draws({i: rows[i] for i in places}))

            distribution = advance(distribution, moves)
        for state, share in distribution.items():
            total[state] = total.get(state, 0.0) + share
    out = AncestralSampler(PROCESS, num_steps=num_steps, order="strided")(network, (DRAWS, length), generator=seeded(2))
    counts, expected_distribution = counts_of(out.sequences, WORDS, MASK), as_tensor(total, WORDS, MASK)
    assert chi_square_p(counts, expected_distribution) > 1e-3
    if num_steps > 1:  # In random order the same steps draw from another distribution.
        other = AncestralSampler(PROCESS, num_steps=num_steps)(network, (DRAWS, length), generator=seeded(2))
        assert chi_square_p(counts_of(other.sequences, WORDS, MASK), expected_distribution) < 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_ragged_batch_is_the_row_alone(side) -> None:
    sampler = AncestralSampler(PROCESS, num_steps=4, order="strided")
    x_init = torch.full((4, 12), MASK)
    x_init[:, :2] = 1
    real = torch.ones(4, 12, dtype=torch.bool)
    for row, pad in enumerate((0, 1, 5, 7)):
        real[row, slice(0, pad) if side == "left" else slice(12 - pad, 12)] = False
    batch = sampler(AnyLength(), x_init=x_init, attention_mask=real, generator=seeded(3))
    for row in range(4):
        alone = sampler(
            AnyLength(),
            x_init=x_init[row : row + 1],
            attention_mask=real[row : row + 1],
            generator=seeded(3),
            first_row=row,
        )
        assert torch.equal(alone.sequences[0], batch.sequences[row])


def test_padding_has_no_part_in_the_order() -> None:
    x_init = torch.full((1, 8), MASK)
    real = torch.tensor([[False, False, True, True, True, True, True, True]])
    step = steps_of(x_init, 3, attention_mask=real)[0, 2:]
    assert bool(((step[1:] - step[:-1]) % 3 == 1).all())


def test_blocks_have_an_order_each() -> None:
    inner = AncestralSampler(PROCESS, num_steps=2, order="strided")
    out = BlockwiseSampler(inner, block_length=4, align="start")(
        AnyLength(), (3, 8), generator=seeded(1), return_history=True
    )
    assert out.history is not None
    first = out.history[1]
    masked = first[:, :4] == MASK
    assert bool((masked.sum(1) == 2).all())
    assert bool((first[:, 4:] == MASK).all())
    assert bool((masked[:, 0] != masked[:, 1]).all())


@pytest.mark.parametrize("options", [{}, {"grid": "cosine"}, {"end": 0.2}])
def test_a_fixed_trajectory_draws_the_same(options) -> None:
    sampler = AncestralSampler(PROCESS, num_steps=4, order="strided", **options)
    for seed in range(5):
        plain = sampler(AnyLength(), (6, 16), generator=seeded(seed), device="cpu")
        fixed = CudaGraphSampler(sampler)(AnyLength(), (6, 16), generator=seeded(seed), device="cpu")
        assert torch.equal(plain.sequences, fixed.sequences)


def test_one_candidate_of_a_guided_sampler_is_the_strided_sampler() -> None:
    plain = AncestralSampler(PROCESS, num_steps=4, order="strided")(AnyLength(), (6, 16), generator=seeded(4))
    guided = RGASampler(PROCESS, reward=lambda x, t: t, num_candidates=1, num_steps=4, order="strided")
    assert torch.equal(guided(AnyLength(), (6, 16), generator=seeded(4)).sequences, plain.sequences)


@pytest.mark.parametrize("sampler", [AncestralSampler, IntermediateStateMatcher])
def test_an_unknown_order_is_refused(sampler) -> None:
    with pytest.raises(ValueError, match="order"):
        sampler(PROCESS, order="dilated")


@pytest.mark.parametrize("end_policy", ["padding", "stop"])
@pytest.mark.parametrize("branching", [False, True])
def test_student_paths_reveal_what_the_sampler_reveals(branching, end_policy) -> None:
    end = None if end_policy == "padding" else 2
    matcher = IntermediateStateMatcher(
        PROCESS, num_steps=(4,), order="strided", branching=branching, end_token_id=end, end_policy=end_policy
    )
    rollout = matcher(AnyLength(), (6, 16), group_size=3, generator=seeded(8))
    masked, steps = [], []
    for step in rollout.steps:
        before, after = step.x_t == MASK, step.x_s == MASK
        gone = before & ~after
        filled = torch.zeros_like(gone)
        filled.view(-1)[step.revealed_positions()] = True
        assert bool((filled <= gone).all())
        masked.append(before)
        steps.append(filled)
    number = sum(index * each.long() for index, each in enumerate(steps))
    drawn = torch.stack(steps).any(0)
    for row in range(6):
        places = drawn[row].nonzero()[:, 0]
        offset = (number[row][places] - places) % 4
        assert len(set(offset.tolist())) == 1
    if branching:
        assert torch.equal(number.view(2, 3, 16)[:, 0], number.view(2, 3, 16)[:, 1]) or end is not None
    torch.testing.assert_close(rollout.log_prob(AnyLength()), rollout.log_prob())


def test_a_path_between_random_times_reveals_every_mask_once() -> None:
    matcher = IntermediateStateMatcher(
        PROCESS, num_steps=(5,), order="strided", time_distribution=UniformTime(), times_per="sample"
    )
    rollout = matcher(AnyLength(), (8, 20), generator=seeded(9))
    times = torch.zeros(8, 20)
    for step in rollout.steps:
        times.view(-1)[step.revealed_positions()] += 1
    assert bool((times == 1).all())


def hugging_face(kind: str):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {
        "vocab_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    if kind == "bert":
        config = transformers.BertConfig(**size, max_position_embeddings=16, hidden_dropout_prob=0.3, pad_token_id=None)
        return as_denoiser(transformers.BertForMaskedLM(config))
    config = transformers.LlamaConfig(**size, max_position_embeddings=16)
    return as_denoiser(transformers.LlamaForCausalLM(config), attention="full", shifted=True)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_models_of_other_libraries_are_distilled_along_strided_paths(kind) -> None:
    """With dropout on, prompts and padding; the gradient reaches the student alone."""
    process, teacher = MaskedDiffusion(7), hugging_face(kind).eval()
    config = DiDiInstructConfig.recommended(
        paths={"order": "strided", "num_steps": (3,)}, advantages={"group_size": 2}, log_ratio={"warmup": 0}
    )
    networks = make_networks(teacher, step_conditioning=True, log_ratio_conditioning=True)
    networks.student.train()
    with torch.no_grad():  # The auxiliary has learned something, so that rewards differ.
        for parameter in networks.auxiliary.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(5)))
    method = DiDiInstruct(networks, process, config)
    x_init, real = torch.full((4, 12), 7), torch.ones(4, 12, dtype=torch.bool)
    x_init[:, :3], real[2:, :2] = 1, False
    rollout = method.rollout(x_init=x_init, attention_mask=real, generator=seeded(1))
    for step in rollout.steps[:-1]:
        revealed = torch.zeros(4, 12, dtype=torch.bool)
        revealed.view(-1)[step.revealed_positions()] = True
        assert not bool((revealed[:, 1:] & revealed[:, :-1]).any())
    reference = torch.randint(7, (4, 12), generator=seeded(2))
    reference[:, :3] = 1
    method.loss("student", rollout, reference=reference, generator=seeded(3)).loss.backward()
    norms = [each.grad.norm() for each in networks.student.parameters() if each.grad is not None]
    assert sum(norms) > 0
    out = AncestralSampler(process, num_steps=3, order="strided")(networks.student, x_init=x_init, attention_mask=real)
    assert bool((out.sequences[real] != 7).all())


def test_the_benchmark_enumerates_what_the_sampler_draws(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.orders import on_sudoku, strided_distribution

    chain, length = exact.random_chain(WORDS, seeded(4)), 4
    for num_steps in (1, 2, 4):
        expected_distribution = strided_distribution(chain.denoiser(MASK), MASK, WORDS, length, num_steps)
        assert float(expected_distribution.sum()) == pytest.approx(1.0)
        sampler = AncestralSampler(PROCESS, num_steps=num_steps, order="strided")
        out = sampler(chain.denoiser(MASK), (DRAWS, length), generator=seeded(6))
        assert chi_square_p(counts_of(out.sequences, WORDS, MASK), expected_distribution.flatten()) > 1e-3
    torch.testing.assert_close(expected_distribution, chain.distribution(length))
    assert {row["order"] for row in on_sudoku((18,), 8)} == {"random", "strided", "confidence"}
