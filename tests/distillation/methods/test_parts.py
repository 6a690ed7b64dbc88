"""A batch in parts: paths are walked again with their graph, and rewards are those of the whole batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, RunningMean
from discrete_distill.distillation.methods import (
    CorruptionByCount,
    Regularization,
    SequenceCredit,
    TokenCredit,
    VocabularyCredit,
)
from discrete_distill.distillation.methods.parts import draw_part, tokens_per_part
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import BetaTime

PROCESS = MaskedDiffusion(8)
PATHS: dict[str, dict[str, Any]] = {
    "grid": {"paths": {"num_steps": (3,)}},
    "random times": {"paths": {"num_steps": (2, 4), "time_distribution": BetaTime(0.02, 0.98, a=1.0, b=1.0)}},
    "some steps": {"paths": {"num_steps": (4,), "gradient_steps": 2}},
    "branching": {"paths": {"num_steps": (4,), "branching": True}},
    "vocabulary": {"paths": {"num_steps": (3,)}, "credit": VocabularyCredit()},
}


def method(**choices: Any) -> DiDiInstruct:
    torch.manual_seed(0)
    small = {"advantages": {"group_size": 2}, "log_ratio": {"warmup": 0}, "regularization": Regularization()}
    config = DiDiInstructConfig.recommended(**{**small, **choices})
    teacher = DiT(DiTConfig(vocab_size=9, max_length=6, hidden_size=16, num_layers=1, num_heads=2, cond_size=8))
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.3)
    auxiliary = DiDiInstruct.make_auxiliary(teacher, config)
    for parameter in auxiliary.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return DiDiInstruct(
        Networks(DiDiInstruct.make_student(teacher, config), teacher, auxiliary=auxiliary), PROCESS, config
    )


def gradient(made: DiDiInstruct, loss: torch.Tensor) -> torch.Tensor:
    made.student.zero_grad()
    loss.backward()
    return torch.cat([each.grad.flatten() for each in made.student.parameters() if each.grad is not None])


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_walked_again_with_its_graph(path: str) -> None:
    made = method(**PATHS[path])
    once = made.rollout(4, 6, generator=Generator().manual_seed(3))
    part = draw_part(
        lambda g, tokens: made.rollout(4, 6, generator=g, tokens=tokens), Generator().manual_seed(3), keep_logits=False
    )
    state = part.generator.get_state()
    again = part.again()
    assert torch.equal(part.generator.get_state(), state)
    assert all(not step.logits_NV.requires_grad and not step.logits_NV.numel() for step in part.rollout.steps)
    for rollout in (part.rollout, again):
        for step, expected in zip(rollout.steps, once.steps, strict=True):
            for name in ("x_t", "x_s", "t", "s", "rows", "revealed"):
                assert torch.equal(getattr(step, name), getattr(expected, name)), name
    first, second = (gradient(made, rollout.log_prob().sum()) for rollout in (once, again))
    torch.testing.assert_close(second, first, atol=1e-6, rtol=1e-5)
    assert first.abs().max() > 0


def test_a_path_stays_where_the_student_has_moved() -> None:
    """Coins do not depend on the student; its log-probabilities of the same tokens do."""
    made = method(paths={"num_steps": (3,)})
    once = made.rollout(4, 6, generator=Generator().manual_seed(3))
    for parameter in made.student.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=Generator().manual_seed(1))
    fresh = made.rollout(4, 6, generator=Generator().manual_seed(3))
    again = made.rollout(4, 6, generator=Generator().manual_seed(3), tokens=once.sequences)
    assert not torch.equal(fresh.sequences, once.sequences)
    assert torch.equal(again.sequences, once.sequences)
    assert (again.log_prob() - once.log_prob()).abs().min() > 1e-3
    expected = [
        PROCESS.masked_log_probs(step.revealed_logits()).gather(1, step.revealed_tokens()[:, None]).sum()
        for step in again.steps
    ]
    torch.testing.assert_close(again.log_prob().sum(), torch.stack(expected).sum())


@pytest.mark.parametrize(
    ("tokens", "error"),
    [(torch.zeros(4, 5, dtype=torch.long), ValueError), (torch.zeros(4, 6), TypeError), ([[0] * 6] * 4, TypeError)],
)
def test_tokens_of_another_path_are_refused(tokens: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="tokens"):
        method().rollout(4, 6, tokens=tokens)


@pytest.mark.parametrize("credit", ["token", "sequence"])
@pytest.mark.parametrize("baseline", ["batch", "leave_one_out", "running"])
def test_advantages_of_parts_are_those_of_the_whole_batch(credit: str, baseline: str) -> None:
    """Parts of unlike lengths and numbers; a running mean takes the step in once."""
    by_count = CorruptionByCount()
    made = method(
        credit=SequenceCredit(corruption=by_count) if credit == "sequence" else TokenCredit(window=1),
        advantages={"group_size": 2, "scale": "batch", "clip": None},
    )
    assert made.estimator is not None
    chosen: Any = RunningMean(0.5) if baseline == "running" else baseline
    made.estimator = estimator = replace(made.estimator, baseline=chosen)
    rollouts = [
        made.rollout(rows, length, generator=Generator().manual_seed(rows)) for rows, length in ((4, 6), (2, 3))
    ]
    credits = made.credits(rollouts, generators=[Generator().manual_seed(7) for _ in rollouts])
    assert credits is not None
    ratios = [
        each.scores.per_sequence.double()
        if credit == "sequence"
        else nn.functional.avg_pool1d(each.scores.per_position.double(), 3, 1, 1) * 3
        for each in credits
    ]
    rewards = [-ratio.view(-1, 2, *ratio.shape[1:]) for ratio in ratios]
    everything = torch.cat([reward.flatten() for reward in rewards])
    for each, reward in zip(credits, rewards, strict=True):
        centre = {"batch": everything.mean(), "running": 0.0, "leave_one_out": reward.flip(1)}[baseline]
        each_centred = reward - centre
        others = torch.cat([(r - (r.flip(1) if baseline == "leave_one_out" else centre)).flatten() for r in rewards])
        expected = each_centred / (others.square().mean().sqrt() + 1e-4)
        torch.testing.assert_close(each.advantages.double(), expected.view(each.advantages.shape), atol=1e-4, rtol=1e-4)
    if baseline == "running":
        mean = estimator.baseline
        assert isinstance(mean, RunningMean)
        assert mean.batches == 1
        assert float(mean.value) == pytest.approx(float(everything.mean()), rel=1e-4)


def test_tokens_are_counted_over_all_parts() -> None:
    made = method()
    rollouts = [made.rollout(2, length) for length in (6, 3)]
    assert float(tokens_per_part(rollouts)) == (2 * 6 + 2 * 3) / 2


def test_parts_of_unlike_groups_are_refused() -> None:
    made = method()
    assert made.estimator is not None
    scores = [
        made.estimator.score(torch.zeros(4, 3, dtype=torch.long), group_size=size, s=torch.ones(4)) for size in (2, 4)
    ]
    for wrong in (scores, []):
        with pytest.raises(ValueError, match="group_size"):
            made.estimator.advantages(wrong)
