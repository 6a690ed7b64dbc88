"""Stored paths asked again: under the weights that drew them, to the last bit, and under others, with gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discrete_distill import Frame, IntermediateStateMatcher, UniformTime
from discrete_distill.distillation.rollout import Rollout, TrajectoryStep
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import MaskedDiffusion

MASK, LENGTH = 5, 6
PROCESS = MaskedDiffusion(MASK)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int, *, told_step: bool = False, drops_out: float = 0.3) -> DiT:
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 8, "dropout": drops_out}
    made = DiT(DiTConfig(vocab_size=MASK + 1, max_length=LENGTH, step_conditioning=told_step, **shape)).train()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.4, generator=seeded(seed))
    return made


class Plain:
    """A function of tokens and of the end of the step, without features."""

    accepts_step = True

    def __init__(self, seed: int) -> None:
        self.table = torch.randn(MASK + 1, MASK + 1, dtype=torch.float64, generator=seeded(seed)).requires_grad_()

    def __call__(self, x_t, t, *, s, attention_mask=None, scale=None):
        real = torch.ones_like(x_t) if attention_mask is None else attention_mask.long()
        context = (torch.nn.functional.one_hot(x_t, MASK + 1) * real[..., None]).sum(1).double()
        logits = self.table[x_t] + (context @ self.table)[:, None] * (1.0 + s)[:, None, None].double()
        return logits if scale is None else logits * scale[:, None, None]


def by_states(rollout: Rollout, denoiser, temperature: float = 1.0, forbidden: tuple[int, ...] = ()) -> torch.Tensor:
    """Log-probabilities of the tokens of a path from its states alone, ``[B]``."""
    total = torch.zeros(len(rollout.sequences), dtype=torch.float64)
    for step in rollout.steps:
        kwargs = rollout.denoiser_kwargs()
        if getattr(denoiser, "accepts_step", False):
            kwargs["s"] = step.s
        logits = denoiser(step.x_t, step.t, **kwargs).double() / temperature
        logits[..., [MASK, *forbidden]] = -torch.inf
        shown = torch.zeros_like(step.x_t, dtype=torch.bool).flatten()
        shown[step.revealed_positions()] = True
        token = logits.log_softmax(-1).gather(2, step.x_s.clamp(max=MASK)[..., None])[..., 0]
        total = total + torch.where(shown.view_as(step.x_t), token, 0.0).sum(1)
    return total


X_INIT = torch.full((6, LENGTH), MASK)
X_INIT[:3, 0], X_INIT[3:, :2] = 1, 2
REAL = torch.ones(6, LENGTH, dtype=torch.bool)
REAL[3:, -2:] = False
STARTS = {
    "shape": {"shape": (6, LENGTH)},
    "frame": {"shape": (6, Frame(LENGTH - 2, [1], [2]))},
    "prompts": {"x_init": X_INIT},
    "padding": {"x_init": X_INIT, "attention_mask": REAL},
}
CHOICES = {
    "two": {},
    "times of each": {"time_distribution": UniformTime(), "times_per": "sample", "num_steps": (3,)},
    "masked": {"positions": "masked", "num_steps": (3,)},
    "branching": {"branching": True, "num_steps": (3,)},
    "tempered": {"temperature": 0.6, "num_steps": (3,)},
    "margin": {"order": "margin", "num_steps": (3,), "temperature": 1.4},
    "entropy": {"order": "entropy", "num_steps": (3,)},
    "stop": {"end_token_id": 0, "end_policy": "stop", "num_steps": (3,)},
    "stop, branching": {"end_token_id": 0, "end_policy": "stop", "num_steps": (3,), "branching": True},
}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("kind", ["dit", "told", "plain"])
def test_the_network_that_drew_a_path_has_its_log_probability_to_the_last_bit(kind, choice, start, keep) -> None:
    student = Plain(0) if kind == "plain" else network(0, told_step=kind == "told")
    matcher = IntermediateStateMatcher(PROCESS, **CHOICES[choice])
    rollout = matcher(student, **STARTS[start], group_size=3, generator=seeded(1), keep_logits=keep)
    stored = rollout.token_log_probs()
    assert stored.requires_grad == keep
    again = rollout.token_log_probs(student)
    assert float((again - stored).abs().max()) == 0.0
    assert torch.equal(rollout.log_prob(student), again.sum(1))
    if kind != "plain":
        student.eval()
    expected = by_states(rollout, student, CHOICES[choice].get("temperature", 1.0))
    torch.testing.assert_close(again.sum(1).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_other_weights_and_their_gradient(choice) -> None:
    process, other = MaskedDiffusion(MASK, forbidden_token_ids=[3]), Plain(7)
    matcher = IntermediateStateMatcher(process, **CHOICES[choice])
    temperature = CHOICES[choice].get("temperature", 1.0)
    scale = torch.tensor([0.5, 0.5, 0.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        rollout = matcher(
            Plain(0), **STARTS["padding"], group_size=3, generator=seeded(1), model_kwargs={"scale": scale}
        )
    found = rollout.log_prob(other)
    expected = by_states(rollout, other, temperature, forbidden=(3,))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(6, dtype=torch.float64, generator=seeded(3))
    gradients = [torch.autograd.grad((weight * each.double()).sum(), other.table)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_paths_without_a_graph_keep_no_logits_and_hold_few_at_a_time(monkeypatch) -> None:
    from discrete_distill.samplers.state import SamplerState

    monkeypatch.setattr(
        SamplerState.__init__, "__kwdefaults__", {**SamplerState.__init__.__kwdefaults__, "chunk_rows": 4}
    )
    heights: list[int] = []

    class Watched(DiT):
        def project(self, features):
            heights.append(len(features))
            return super().project(features)

        projection = None

    student = network(0)
    student.__class__ = Watched
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(3,))
    with torch.no_grad():
        rollout = matcher(student, x_init=X_INIT, generator=seeded(0))
    assert max(heights) <= 4
    assert sum(heights) == int((X_INIT == MASK).sum())
    assert all(step.logits_NV.shape == (0, MASK + 1) for step in rollout.steps)
    assert float((rollout.token_log_probs(student) - rollout.token_log_probs()).abs().max()) == 0.0
    with pytest.raises(ValueError, match="keep_logits=True"):
        rollout.steps[0].losses()
    kept = matcher(student, x_init=X_INIT, generator=seeded(0))
    assert torch.equal(kept.sequences, rollout.sequences)
    torch.testing.assert_close(kept.log_prob().detach(), rollout.log_prob())


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, LENGTH), st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_any_shape(groups, length, steps, keep, seed) -> None:
    student = Plain(seed)
    matcher = IntermediateStateMatcher(PROCESS, num_steps=(steps,))
    rollout = matcher(student, (2 * groups, length), group_size=2, generator=seeded(seed), keep_logits=keep)
    assert rollout.token_log_probs(student).shape == (2 * groups, length)
    assert torch.equal(rollout.log_prob(student), rollout.log_prob())


def test_a_step_of_ones_own_is_not_asked_again() -> None:
    x, nothing = torch.full((1, 2), MASK), torch.empty(0, dtype=torch.long)
    step = TrajectoryStep(x, x, torch.ones(1), torch.zeros(1), nothing, nothing.bool(), torch.empty(0, 6), MASK)
    with pytest.raises(ValueError, match="IntermediateStateMatcher"):
        Rollout([step], x == MASK, 1, None, {}).log_prob(Plain(0))
