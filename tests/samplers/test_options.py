"""The options that all samplers share, seen through the simplest of them."""

import math

import pytest
import torch
from counting import Counting, chi_square_p, counts_of, random_table, seeded
from enumerated import RandomNetwork

from discrete_distill import AncestralSampler, ConfidenceSampler, FirstHittingSampler, MaskedDiffusion, exact
from discrete_distill.samplers.filtering import TokenDistribution

MASK, DRAWS = 3, 20_000
PROCESS = MaskedDiffusion(MASK)


def frequencies(sampler, logits, draws=DRAWS, **options):
    """How often each id is drawn at one position of fixed logits, and the log-probabilities reported for it."""
    network = lambda x, t, **_: logits.expand(*x.shape, len(logits))  # noqa: E731
    out = sampler(network, (draws, 1), generator=seeded(0), **options)
    return torch.bincount(out.sequences.flatten(), minlength=len(logits)), out


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("choices", "kept"),
    [
        ({}, [0, 1, 2, 4, 5]),
        ({"temperature": 2.0}, [0, 1, 2, 4, 5]),
        ({"top_k": 2}, [1, 4]),
        ({"top_k": 99}, [0, 1, 2, 4, 5]),
        ({"top_p": 0.5}, [1]),
        ({"top_p": 0.88}, [0, 1, 4]),
        ({"top_p": 0.88, "temperature": 3.0}, [0, 1, 2, 4]),
        ({"top_k": 3, "top_p": 0.8}, [1, 4]),
    ],
)
def test_tokens_outside_are_never_drawn_and_the_others_are_renormalised(choices, kept, precision) -> None:
    """The mask (3) has the greatest logit, and takes no room among the ``k`` or in ``p``."""
    masses = torch.tensor([0.15, 0.55, 0.08, 9.0, 0.2, 0.02], dtype=torch.float64)
    distribution = torch.zeros(6, dtype=torch.float64)
    distribution[kept] = masses[kept] ** (1.0 / choices.get("temperature", 1.0))
    distribution /= distribution.sum()
    sampler = AncestralSampler(PROCESS, num_steps=1, precision=precision, **choices)
    counts, out = frequencies(sampler, masses.log())
    assert int(counts[distribution == 0].sum()) == 0
    if len(kept) > 2:
        assert chi_square_p(counts, distribution) > 1e-3
    else:
        assert bool(
            (
                (counts / DRAWS - distribution).abs() < 5 * (distribution * (1 - distribution) / DRAWS).sqrt() + 1e-9
            ).all()
        )
    torch.testing.assert_close(out.log_probs, distribution.log()[out.sequences].float(), atol=1e-5, rtol=1e-5)


def test_fewest_tokens_hold_the_probability_by_their_own_definition() -> None:
    logits = torch.randn(40, 30, generator=seeded(0))
    kept = TokenDistribution(29, top_p=0.7).probabilities(logits) > 0
    probs = TokenDistribution(29).probabilities(logits)
    for row in range(40):
        ranked = sorted(range(29), key=lambda v: -float(probs[row, v]))
        mass, expected = 0.0, []
        while mass < 0.7:
            expected.append(ranked[len(expected)])
            mass += float(probs[row, expected[-1]])
        assert kept[row].nonzero().flatten().tolist() == sorted(expected)


def test_logits_are_never_written_to() -> None:
    logits = torch.randn(1, 1, 4, generator=seeded(0))
    before = logits.clone()
    for choices in ({}, {"top_k": 1}, {"top_p": 0.5}, {"precision": torch.float64}):
        AncestralSampler(PROCESS, num_steps=1, **choices)(lambda x, t: logits, (1, 1))
    assert bool((logits == before).all())


@pytest.mark.parametrize("grid", ["cosine", [1.0, 0.9, 0.25, 0.0], torch.tensor([1.0, 0.5, 0.1, 0.0])])
def test_steps_are_taken_between_the_times_of_the_grid(grid) -> None:
    sampler = AncestralSampler(PROCESS, num_steps=3, grid=grid)
    times = torch.tensor(sampler.times, dtype=torch.float64)
    if grid == "cosine":
        assert times.tolist() == pytest.approx([math.cos(math.pi * k / 6) for k in range(4)], abs=1e-12)
    times[0], times[-1] = 1.0, 0.0
    table = random_table(3, 3, times, 0, MASK)
    out = sampler(table, (DRAWS, 3), generator=seeded(1))
    assert (
        chi_square_p(counts_of(out.sequences, 3, MASK), exact.sampler_distribution(table, PROCESS, times, 3, 3)) > 1e-3
    )


def test_a_grid_may_start_late_and_few_positions_are_then_revealed_by_its_first_step() -> None:
    sampler = AncestralSampler(PROCESS, grid=[0.5, 0.25, 0.0])
    out = sampler(RandomNetwork(3, 3, 0), (DRAWS, 3), generator=seeded(0), return_history=True)
    assert out.history is not None
    share = (out.history[1] != MASK).float().mean().item()
    assert abs(share - 0.5) < 5 * (0.25 / (3 * DRAWS)) ** 0.5


@pytest.mark.parametrize("removal", ["sample", "greedy", "none"])
def test_what_a_grid_leaves_is_sampled_or_guessed_or_left_and_counted(removal) -> None:
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    network = Counting(lambda x, t: logits.expand(*x.shape, 4))
    sampler = AncestralSampler(PROCESS, num_steps=2, end=0.4, noise_removal=removal)
    out = sampler(network, (DRAWS, 1), generator=seeded(0), return_history=True)
    assert out.history is not None
    left = out.history[2][:, 0] == MASK
    share = 1.0 - float(PROCESS.schedule.alpha(torch.tensor(0.4)))
    assert abs(left.float().mean().item() - share) < 5 * (share * (1 - share) / DRAWS) ** 0.5
    last = out.sequences[left, 0]
    assert out.nfe == network.calls == (2 if removal == "none" else 3)
    assert len(out.history) == out.nfe + 1
    if removal == "sample":
        assert chi_square_p(torch.bincount(last, minlength=4), logits.softmax(0)) > 1e-3
    else:
        assert bool((last == (0 if removal == "greedy" else MASK)).all())


def test_noise_removal_with_nothing_to_remove_is_free() -> None:
    network = Counting(RandomNetwork(3, 2, 0))
    sampler = AncestralSampler(PROCESS, num_steps=1, end=1e-6)
    out = sampler(network, (4, 2), generator=seeded(0))
    assert out.nfe == network.calls == 1


class Conditional:
    """Logits that depend on a class given by keyword, or on the first token where none is given."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x, t, topic=None):
        self.calls += 1
        base = torch.tensor([0.0, 0.3, -0.2, 0.0]).expand(*x.shape, 4)
        told = x[:, 0] if topic is None else topic
        return torch.where(told[:, None, None] == 1, base + torch.tensor([1.0, 0.0, -1.0, 0.0]), base)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("by", ["condition", "prompt"])
def test_guidance_mixes_both_distributions_and_both_calls_are_counted(scale, by) -> None:
    network = Conditional()
    x_init = torch.full((DRAWS, 2), MASK)
    x_init[:, 0] = 1 if by == "prompt" else 0
    cond = {"topic": torch.ones(DRAWS, dtype=torch.long)} if by == "condition" else {}
    sampler = AncestralSampler(PROCESS, num_steps=1, cfg_scale=scale)
    out = sampler(network, x_init=x_init, generator=seeded(0), model_kwargs=cond)
    assert bool((out.sequences[:, 0] == x_init[:, 0]).all())
    logits = torch.tensor([0.0, 0.3, -0.2, -torch.inf]) + scale * torch.tensor([1.0, 0.0, -1.0, 0.0])
    assert chi_square_p(torch.bincount(out.sequences[:, 1], minlength=4), logits.softmax(0)) > 1e-3
    assert out.nfe == out.network_evaluations == network.calls == (1 if scale == 1.0 else 2)


def test_what_a_condition_forbids_stays_forbidden_under_guidance() -> None:
    def network(x, t, topic=None):
        logits = torch.zeros(*x.shape, 4)
        return logits if topic is None else logits.index_fill(-1, torch.tensor([0, 1]), -torch.inf)

    sampler = AncestralSampler(PROCESS, num_steps=2, cfg_scale=3.0)
    out = sampler(network, (50, 3), generator=seeded(0), model_kwargs={"topic": torch.zeros(50)})
    assert bool((out.sequences == 2).all())


def test_tails_of_many_steps_are_not_lost() -> None:
    """1024 steps, and thousands of tokens each of probability 1e-5, 1e-6 and 1e-7, logits in bf16: drawn as often as
    they say. One draw of mask and token in fp32 would not find tokens whose share of a step is 1e-7 / 1024.
    """
    sizes = torch.tensor([1, 1, 3000, 3000, 10_000])
    masses = torch.tensor([0.6, 0.366, 1e-5, 1e-6, 1e-7]).repeat_interleave(sizes)
    logits = torch.cat((masses, torch.ones(1))).log().bfloat16()
    network = lambda x, t: logits.expand(*x.shape, len(logits))  # noqa: E731
    sampler = AncestralSampler(MaskedDiffusion(len(masses)), num_steps=1024)
    drawn = sampler(network, (40, 200), generator=seeded(0)).sequences.flatten()
    group = torch.arange(5).repeat_interleave(sizes)
    expected = torch.zeros(5, dtype=torch.float64).index_add(0, group, logits[:-1].double().softmax(0))
    assert float(expected[4] * 8000) > 5
    assert chi_square_p(torch.bincount(group[drawn], minlength=5), expected) > 1e-3


def test_a_bar_is_shown_on_request(capsys) -> None:
    for sampler in (AncestralSampler(PROCESS, num_steps=3, progress=True), FirstHittingSampler(PROCESS, progress=True)):
        sampler(RandomNetwork(3, 3, 0), (1, 3), generator=seeded(0))
        assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "got 0"),
        ({"top_p": 0.0}, "top_p.*0.0"),
        ({"precision": torch.bfloat16}, "precision is torch.float32 or torch.float64, got torch.bfloat16"),
        ({"cfg_scale": math.nan}, "cfg_scale must be finite"),
        ({"chunk_rows": 0}, "chunk_rows.*0"),
        ({"grid": "quadratic"}, "got 'quadratic'"),
        ({"grid": [0.5]}, r"a grid needs two times or more, got \[0.5\]"),
        ({"grid": [0.0, 0.5, 1.0]}, "step 0 goes from 0.0 to 0.5. Reverse the grid"),
        ({"grid": [1.0, 0.5, 0.5]}, "step 1 goes from 0.5 to 0.5"),
        ({"grid": [1.5, 0.0]}, r"times lie in \[0, 1\].*got 1.5"),
        ({"grid": [1.0, -0.1]}, r"times lie in \[0, 1\].*got -0.1"),
        ({"grid": [1.0, math.nan]}, r"times lie in \[0, 1\].*got nan"),
        ({"grid": [1.0, 0.1], "end": 0.1}, "a grid of given times ends where they end; leave out end = 0.1"),
        ({"end": 1.0}, "end.*1.0"),
        ({"noise_removal": "argmax"}, "noise_removal is .*, got 'argmax'"),
        ({"noise_removal": "greedy"}, "nothing to do on a grid that ends at 0"),
    ],
)
def test_bad_options_are_refused(choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        AncestralSampler(PROCESS, **choices)


def test_guidance_by_nothing_and_a_mask_that_is_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cfg_scale = 2.0 guides by what a denoiser is conditioned on"):
        AncestralSampler(PROCESS, cfg_scale=2.0)(RandomNetwork(3, 2, 0), (1, 2))
    with pytest.raises(ValueError, match="no sequence holds the mask token 3 at a real position"):
        AncestralSampler(PROCESS, check=True)(RandomNetwork(3, 2, 0), x_init=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="token id 9"):
        AncestralSampler(MaskedDiffusion(9))(RandomNetwork(3, 2, 0), x_init=torch.tensor([[0, 9]]))


@pytest.mark.parametrize(
    ("bad", "reason"), [(torch.nan, "are NaN"), (torch.inf, r"are \+inf"), (-torch.inf, "are all -inf")]
)
def test_a_bad_row_is_named_with_its_reason(bad, reason) -> None:
    def network(x, t):
        logits = torch.zeros(*x.shape, 4)
        logits[1, 2, :3] = bad
        return logits

    x_init = torch.full((3, 4), MASK)
    x_init[:, 0] = 0
    for sampler in (AncestralSampler(PROCESS, num_steps=1), ConfidenceSampler(PROCESS, num_steps=1)):
        with pytest.raises(ValueError, match="sequence 11, position 2: logits of the denoiser were"):
            sampler(network, x_init=x_init, generator=seeded(0), first_row=10)
    with pytest.raises(ValueError, match=f"step 0, sequence 1, position 2: logits of the denoiser {reason}"):
        AncestralSampler(PROCESS, num_steps=1, check=True)(network, x_init=x_init)
