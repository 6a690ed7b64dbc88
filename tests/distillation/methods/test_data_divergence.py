"""Forward KL in states of reference sequences: its value by enumeration, where it is zero, and who pays it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from discrete_distill import DiDiInstruct, DiDiInstructConfig, exact
from discrete_distill.distillation.methods.data_divergence import data_divergence
from tests.distillation.methods.chain_networks import LENGTH, PROCESS, seeded, small_dit, small_method

CONFIG = DiDiInstructConfig(path_steps=(3,), group_size=4, data_kl_coefficient=0.5, log_ratio_warmup=0)


def method(config: DiDiInstructConfig = CONFIG) -> DiDiInstruct:
    return small_method(config)


def divergence_of(made: DiDiInstruct, reference: Tensor, seed: int = 0, x_init: Tensor | None = None) -> Tensor:
    size = None if x_init is not None else (len(reference), LENGTH)
    rollout = made.rollout(*(size or ()), x_init=x_init, generator=seeded(1))
    return data_divergence(
        PROCESS, made.student, made.teacher, rollout, reference, num_tokens=rollout.num_tokens(), generator=seeded(seed)
    )


def by_enumeration(made: DiDiInstruct, reference: Tensor, generated: Tensor) -> float:
    """The definition: all steps of the path, all sets of masked positions."""
    total = 0.0
    grid = [1.0, 2.0 / 3.0, 1.0 / 3.0, 0.0]
    for x, generation_mask in zip(reference, generated, strict=True):
        places = generation_mask.nonzero().flatten().tolist()
        for t, s in pairwise(grid):
            for chosen in exact.enumerate_sequences(2, len(places)).bool():
                weight = float(t ** int(chosen.sum()) * (1.0 - t) ** int((~chosen).sum()))
                if not weight or not bool(chosen.any()):
                    continue
                masked = torch.zeros(LENGTH, dtype=torch.bool)
                masked[torch.tensor(places)[chosen]] = True
                x_t = torch.where(masked, PROCESS.mask_token_id, x)[None]
                teacher, student = (
                    PROCESS.masked_log_probs(logits)[..., :-1]
                    for logits in (
                        made.teacher(x_t, torch.tensor([t])),
                        made.student(x_t, torch.tensor([t]), s=torch.tensor([s])),
                    )
                )
                total += weight * (t - s) / t * float((teacher.exp() * (teacher - student))[0][masked].sum())
    return total / int(generated.sum())


@torch.no_grad()
def test_the_mean_over_draws_is_the_sum_over_all_steps_and_states() -> None:
    """Within four standard errors of 1500 draws, with given tokens and without."""
    made = method()
    made.student = small_dit(0, step_conditioning=True)
    reference = torch.randint(5, (4, LENGTH), generator=seeded(2))
    free = torch.ones_like(reference, dtype=torch.bool)
    given = free.clone()
    given[:, 0] = False
    for generated, x_init in ((free, None), (given, torch.where(given, PROCESS.mask_token_id, reference))):
        expected = by_enumeration(made, reference, generated)
        draws = torch.stack([divergence_of(made, reference, seed, x_init) for seed in range(1500)])
        assert expected > 0.05
        assert abs(float(draws.mean()) - expected) < 4.0 * float(draws.std()) / len(draws) ** 0.5
        assert float(draws.std()) / len(draws) ** 0.5 < 0.02 * expected


def test_a_student_that_is_its_teacher_pays_nothing_and_feels_nothing() -> None:
    made = method(replace(CONFIG, step_conditioning=False))
    made.student.load_state_dict(made.teacher.state_dict())
    loss = divergence_of(made, torch.randint(5, (4, LENGTH), generator=seeded(2)))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert max(float(each.grad.abs().max()) for each in made.student.parameters() if each.grad is not None) < 1e-5
    assert all(each.grad is None for each in made.teacher.parameters())


def test_a_student_of_one_mode_pays_for_the_others() -> None:
    """On a language of two sequences, a student that always writes the first one."""
    one, other = torch.zeros(4, LENGTH, dtype=torch.long), torch.full((4, LENGTH), 1)

    def teacher(x_t: Tensor, t: Tensor) -> Tensor:
        """Half and half until a token shows which."""
        shown = torch.stack([(x_t == word).any(1) for word in (0, 1)], 1).float()
        logits = torch.full((*x_t.shape, 6), -20.0)
        logits[..., :2] = (8.0 * (shown[:, :1] - shown[:, 1:]) * torch.tensor([1.0, -1.0]))[:, None]
        return logits

    def student(x_t: Tensor, t: Tensor) -> Tensor:
        logits = torch.full((*x_t.shape, 6), -20.0)
        logits[..., 0] = 8.0
        return logits

    made = method()
    rollout = made.rollout(4, LENGTH, generator=seeded(1))
    costs = [
        data_divergence(PROCESS, student, teacher, rollout, each, num_tokens=24.0, generator=seeded(seed))
        for each in (one, other)
        for seed in range(20)
    ]
    # At the first state, all mask, sequences of both modes cost the same.
    assert torch.stack(costs[20:]).mean() > 3.0 * torch.stack(costs[:20]).mean()


def test_the_loss_has_it_with_its_weight() -> None:
    made, plain = method(), method(replace(CONFIG, data_kl_coefficient=0.0))
    reference = torch.randint(5, (4, LENGTH), generator=seeded(2))
    losses = []
    for each in (made, plain):
        rollout = each.rollout(4, LENGTH, generator=seeded(1))
        losses.append(each.student_loss(rollout, reference=reference, generator=seeded(3)))
    added = losses[0].loss - losses[1].loss
    torch.testing.assert_close(added, 0.5 * losses[0].metrics["data_divergence"])
    assert added > 0.0
    assert "data_divergence" not in losses[1].metrics


def test_networks_keep_their_mode_and_the_value_does_not_depend_on_it() -> None:
    torch.manual_seed(0)
    made = method()
    made.student = small_dit(0, step_conditioning=True, dropout=0.5)
    made.teacher = small_dit(1, dropout=0.5)
    reference = torch.randint(5, (4, LENGTH), generator=seeded(2))
    still = divergence_of(made, reference)
    made.student.train()
    made.teacher.train()
    assert torch.equal(divergence_of(made, reference), still)
    assert made.student.training
    assert made.teacher.training


@pytest.mark.parametrize("credit", ["token", "vocabulary"])
def test_the_reference_is_asked_for_where_it_is_read(credit: str) -> None:
    made = method(replace(CONFIG, credit=credit))
    rollout = made.rollout(4, LENGTH, generator=seeded(1))
    with pytest.raises(ValueError, match=r"reference"):
        made.student_loss(rollout, generator=seeded(3))
    with pytest.raises(ValueError, match=r"\(2, 6\)"):
        made.student_loss(rollout, reference=torch.zeros(2, 6, dtype=torch.long), generator=seeded(3))


def test_randomness_is_the_generators() -> None:
    made, reference = method(), torch.randint(5, (4, LENGTH), generator=seeded(2))
    before = torch.get_rng_state()
    first, again, other = (divergence_of(made, reference, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
