"""Re-ranking by the teacher against the student, and by plain rewards."""

import pytest
import torch
from counting import Counting, counts_of, seeded
from enumerated import RandomNetwork

from discrete_distill import MaskedDiffusion, RGASampler, TeacherRatio, exact
from discrete_distill.samplers import Candidate

MASK = 3
PROCESS = MaskedDiffusion(MASK)


def test_the_score_is_the_teachers_log_probability_minus_the_students_at_what_was_hidden() -> None:
    teacher, student = RandomNetwork(3, 4, 0), RandomNetwork(3, 4, 1)
    x_t = torch.tensor([[0, 1, 2, MASK], [2, 2, MASK, 0]])
    revealed = torch.tensor([0, 1, 5, 7])
    draw = torch.tensor([[0.2, 0.9, 0.1, 0.1], [0.1, 0.4, 0.1, 0.3]])
    candidate = Candidate(x_t, torch.full((2,), 0.5), revealed, torch.ones_like(x_t, dtype=torch.bool), draw)
    hidden = [[0], [1, 3]]
    scores = TeacherRatio(teacher, student, PROCESS, mask_ratio=0.5).score_candidate(candidate)
    for row, places in enumerate(hidden):
        state = x_t[row].clone()
        state[places] = MASK
        logs = [PROCESS.masked_log_probs(net(state[None], torch.ones(1)))[0] for net in (teacher, student)]
        expected = sum(float(logs[0][i, x_t[row, i]] - logs[1][i, x_t[row, i]]) for i in places)
        assert float(scores[row]) == pytest.approx(expected, abs=1e-5)


def test_the_networks_are_told_the_time_of_as_many_masks() -> None:
    told = []

    def network(x, t):
        told.append((x.tolist(), t.tolist()))
        return torch.zeros(*x.shape, 4)

    generation_mask = torch.ones(1, 4, dtype=torch.bool)
    candidate = Candidate(
        torch.tensor([[0, 1, MASK, 2]]), torch.tensor([0.1]), torch.tensor([0, 1]), generation_mask, torch.zeros(1, 4)
    )
    TeacherRatio(network, network, PROCESS).score_candidate(candidate)
    for x, t in told:
        assert x == [[MASK, MASK, MASK, 2]]
        assert t == pytest.approx([0.75 / (1 - 1e-3)])


def test_it_brings_samples_of_few_steps_closer_to_the_chain_without_training() -> None:
    """Two steps of a perfect denoiser draw tokens that do not go together; half of them tell about the others."""
    chain, length, draws = exact.random_chain(3, seeded(4)), 4, 20_000
    denoiser, distribution = chain.denoiser(MASK), chain.distribution(length)
    independent = torch.zeros(4).index_fill(0, torch.tensor(MASK), -torch.inf)
    scorer = TeacherRatio(denoiser, lambda x, t: independent.expand(*x.shape, 4), PROCESS)
    kls = []
    for candidates in (1, 4):
        sampler = RGASampler(PROCESS, reward=scorer, num_steps=2, num_candidates=candidates)
        out = sampler(denoiser, (draws, length), generator=seeded(5))
        frequency = (counts_of(out.sequences, 3, MASK).double() / draws).view([3] * length)
        kls.append(float(exact.kl(frequency, distribution)))
    assert kls[1] < 0.75 * kls[0]


def test_its_passes_are_counted_and_a_seed_fixes_a_rows_tokens_whatever_the_batch() -> None:
    teacher, student = (Counting(RandomNetwork(3, 4, seed)) for seed in (0, 1))
    scorer = TeacherRatio(teacher, student.inner, PROCESS)
    sampler = RGASampler(PROCESS, reward=scorer, num_steps=2, num_candidates=3)
    out = sampler(student, (64, 4), generator=seeded(0))
    assert (out.nfe, out.network_evaluations) == (2, 2 + 2 * 3 * 2)
    assert (student.calls, teacher.calls) == (2, 6)
    small = sampler(student, (7, 4), generator=seeded(0))
    rest = sampler(student, (57, 4), generator=seeded(0), first_row=7)
    assert bool((torch.cat((small.sequences, rest.sequences)) == out.sequences).all())


def test_any_reward_of_whole_sequences_reranks() -> None:
    network, share = RandomNetwork(3, 4, 0), []
    for scale in (0.0, 5.0):
        sampler = RGASampler(
            PROCESS, reward=lambda x_t, t: (x_t == 0).sum(1), num_steps=3, num_candidates=4, rerank_scale=scale
        )
        out = sampler(network, (2000, 4), generator=seeded(0))
        share.append((out.sequences == 0).float().mean().item())
    assert share[1] > share[0] + 0.1


def test_log_ratios_of_another_shape_are_refused() -> None:
    sampler = RGASampler(PROCESS, reward=lambda x_t, t: torch.zeros(len(x_t), 1), num_steps=1, num_candidates=2)
    with pytest.raises(ValueError, match=r"logits \[5, 4\], a reward \[5\]; got \[5, 1\]"):
        sampler(RandomNetwork(3, 4, 0), (5, 4))
    with pytest.raises(ValueError, match=r"mask_ratio must lie in \(0, 1\], got 0.0"):
        TeacherRatio(RandomNetwork(3, 4, 0), RandomNetwork(3, 4, 0), PROCESS, mask_ratio=0.0)
