"""Stored paths: the distribution that their tokens were drawn from, their times, and paths that cannot be."""

import copy

import pytest
import torch
from scipy import stats
from torch import Tensor

from discrete_distill import BetaTime, IntermediateStateMatcher, UniformTime
from discrete_distill.distillation.rollout import Rollout
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import MaskedDiffusion, evaluation_mode

MASK, LENGTH = 5, 6
PROCESS = MaskedDiffusion(MASK)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dropping_student() -> DiT:
    """In training mode, with a dropout that nobody could overlook, but for one block in evaluation mode."""
    config = DiTConfig(
        vocab_size=6, max_length=LENGTH, hidden_size=16, num_layers=2, num_heads=2, cond_size=8, dropout=0.5
    )
    network = DiT(config).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3, generator=seeded(0))
    network.blocks[1].eval()
    return network


def modes(network: torch.nn.Module) -> list[bool]:
    return [module.training for module in network.modules()]


def rescored(rollout: Rollout, network: DiT) -> Tensor:
    """Log-probabilities of the stored tokens, each state asked again, written down plainly; ``[B]``."""
    total = torch.zeros(len(rollout.sequences))
    for step in rollout.steps:
        with evaluation_mode(network):
            log_probs = PROCESS.log_probs(network(step.x_t, step.t), step.x_t)
        shown = (step.x_t == MASK) & (step.x_s != MASK)
        total = total + torch.where(shown, log_probs.gather(2, step.x_s[..., None])[..., 0], 0.0).sum(1)
    return total


@pytest.mark.parametrize("branching", [False, True])
def test_a_path_is_scored_again_as_it_was_drawn_though_the_student_drops_out(branching) -> None:
    student = dropping_student()
    before = modes(student)
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(3,), branching=branching)
    rollout = matcher(student, (4, LENGTH), group_size=2, generator=seeded(1))
    torch.testing.assert_close(rollout.log_prob(), rescored(rollout, student))
    assert modes(student) == before


def test_checkpointed_blocks_are_run_again_as_they_were_run() -> None:
    """The backward pass comes when the student is in its training mode again."""
    gradients = []
    for checkpointed in (False, True):
        student = dropping_student()
        student.checkpoint_blocks = checkpointed
        rollout = IntermediateStateMatcher(PROCESS, num_steps=(2,))(student, (4, LENGTH), generator=seeded(1))
        rollout.log_prob().sum().backward()
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("distribution", [UniformTime(0.02, 0.98), BetaTime(0.02, 0.98, a=2.0, b=3.0)])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_tau_has_the_density_of_the_distribution_of_times_whatever_the_number_of_steps(distribution, steps) -> None:
    """By Kolmogorov and Smirnov, and by importance weights: ``E[f / pi]`` is the integral of ``f``."""
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(steps,), time_distribution=distribution)
    denoiser = lambda x, t: torch.zeros(*x.shape, 6)  # noqa: E731
    rollout = matcher(denoiser, (8000, 1), group_size=2, generator=seeded(steps))
    tau = rollout.tau[::2].double()
    assert torch.equal(rollout.tau[::2], rollout.tau[1::2])
    a, b = (distribution.a, distribution.b) if isinstance(distribution, BetaTime) else (1.0, 1.0)
    assert stats.kstest(tau.numpy(), stats.beta(a, b, loc=0.02, scale=0.96).cdf).pvalue > 1e-3
    each = torch.sin(torch.pi * (tau - 0.02) / 0.96) ** 2 / distribution.density(tau)
    assert abs(float(each.mean()) - 0.48) < 5.0 * float(each.std()) / len(tau) ** 0.5
    interior = torch.stack([step.s for step in rollout.steps[:-1]])
    assert bool((interior == rollout.tau).any(0).all())


class BrokenAt(torch.nn.Module):
    """Uniform, but for one position of one sequence at times up to 0.5."""

    def __init__(self, value: float, every_class: bool) -> None:
        super().__init__()
        self.value, self.every_class = value, every_class
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        logits = torch.zeros(*x_t.shape, 6) + self.parameter
        broken = torch.full((6,), self.value) if self.every_class else torch.tensor([self.value, 0, 0, 0, 0, 0])
        marked = (x_t[:, 0] == 1) & (t <= 0.5)
        return torch.where(marked[:, None, None] & (torch.arange(x_t.shape[1]) == 3)[:, None], broken, logits)


@pytest.mark.parametrize(
    ("value", "every_class"), [(float("nan"), False), (float("inf"), False), (float("-inf"), True)]
)
@pytest.mark.parametrize("branching", [False, True])
def test_a_student_with_nothing_to_draw_from_is_refused_by_step_sequence_and_position(
    value, every_class, branching
) -> None:
    x_init = torch.full((4, LENGTH), MASK)
    x_init[:, 0] = torch.tensor([0, 0, 1, 1])
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(2,), branching=branching)
    student = BrokenAt(value, every_class)
    # In some paths the first step, which is whole, reveals the position in both rows already.
    found = [refusal(matcher, student, x_init, seed) for seed in range(8)]
    assert {"" if not words else words[:8] for words in found} <= {"", "step 1, "}
    assert any("sequence 2, position 3" in words or "sequence 3, position 3" in words for words in found)


def refusal(matcher: IntermediateStateMatcher, student: torch.nn.Module, x_init: Tensor, seed: int) -> str:
    """What a call was refused with; nothing where its path is whole."""
    try:
        rollout = matcher(student, x_init=x_init, group_size=2, generator=seeded(seed))
        assert bool(rollout.log_prob().isfinite().all())
    except ValueError as error:
        return str(error)
    return ""


def test_a_stored_path_that_is_broken_is_refused() -> None:
    rollout = IntermediateStateMatcher(PROCESS, num_steps=(2,))(dropping_student(), (2, LENGTH), generator=seeded(0))
    broken = copy.deepcopy(rollout.token_log_probs().detach())
    rollout.check_log_probs(broken)
    broken[1, 2] = float("nan")
    with pytest.raises(ValueError, match="sequence 1, position 2"):
        rollout.check_log_probs(broken)


def test_a_prompt_without_masks_is_warned_of() -> None:
    x_init = torch.randint(PROCESS.mask_token_id, (2, LENGTH), generator=seeded(0))
    with pytest.warns(UserWarning, match="mask_token_id"):
        IntermediateStateMatcher(PROCESS, num_steps=(2,))(dropping_student(), x_init=x_init, generator=seeded(0))


def test_the_earliest_step_is_named() -> None:
    student = lambda x, t: torch.full((*x.shape, 6), float("nan"))  # noqa: E731
    for seed in range(5):
        matcher = IntermediateStateMatcher(PROCESS, num_steps=(4,))
        with pytest.raises(ValueError, match="step 0"):
            matcher(student, (8, LENGTH), generator=seeded(seed))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_paths_of_nothing_are_refused(shape) -> None:
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(2,))
    with pytest.raises(ValueError, match="0"):
        matcher(dropping_student(), shape, generator=seeded(0))
    with pytest.raises(ValueError, match="0"):
        matcher(dropping_student(), x_init=torch.full(shape, MASK), generator=seeded(0))
